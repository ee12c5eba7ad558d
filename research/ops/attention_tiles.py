"""Attention by tiles of queries and keys, computed again in the backward pass: no [T, S] array is ever there.

The running maximum and sum of Milakov & Gimelshein (2018), as Rabe & Staats (2021) and FlashAttention (Dao et al. 2022)
use them. Time grows with T S, memory with T + S; about a third more products than when weights are kept.

B examples, T queries, S keys, H heads, K heads of keys and values, G = H / K, E width of a head, N tokens of a tile.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.ops.softmax import MASKED, capped


class View(NamedTuple):
    """Who sees whom, by rules and not as a mask; as `research.ops.attention.visible` takes them."""

    queries: jax.Array  # int [T], places in the row
    keys: jax.Array  # int [S]
    segments: tuple[jax.Array, jax.Array]  # int [B, T] and [B, S], 0 = nobody sees it
    # int [B or 1, T] and [B or 1, S], by which the window counts
    positions: tuple[jax.Array, jax.Array]
    window: jax.Array  # int [], of positions; a very large one for none


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def by_tiles(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    view: View,
    causal: bool,
    scale: float,
    softcap: float,
    block: int,
) -> jax.Array:
    """Attention [B, T, H, E] in v's dtype, as `research.ops.attention.attend`; q [B, T, H, E]; k, v [B, S, K, E].

    Args:
      q, k, v: of one dtype.
      view: who sees whom, but for `causal`.
      causal: a query sees no later place; T = S, and tiles of later keys are left out.
      scale: of the logits.
      softcap: c > 0 makes the logits c tanh(logits / c).
      block: N.
    """
    return _forward(q, k, v, view, causal, scale, softcap, block)[0]


def _forward(q, k, v, view, causal, scale, softcap, block) -> tuple:
    length = q.shape[1]
    queries, keys, values, rules = _cut(q, k, v, view, block)
    shape = queries.shape[1:-1]  # of a tile's rows, [B, K, G, N]

    def row(_: None, i: jax.Array) -> tuple:
        ours = queries[i]

        def tile(j: jax.Array, carry: tuple) -> tuple:
            total, most, out = carry
            logits, _ = _logits(ours, keys[j], scale, softcap)
            logits = jnp.where(_seen(rules, i, j, causal), logits, MASKED)
            new = jnp.maximum(most, logits.max(-1))
            odds, kept = jnp.exp(logits - new[..., None]), jnp.exp(most - new)
            part = _product("bkgts,bkse->bkgte", odds.astype(v.dtype), values[j])
            return total * kept + odds.sum(-1), new, out * kept[..., None] + part

        empty = (
            jnp.zeros(shape, jnp.float32),
            jnp.full(shape, MASKED / 2, jnp.float32),
            jnp.zeros((*shape, q.shape[-1]), jnp.float32),
        )
        count = i + 1 if causal else len(keys)
        total, most, out = jax.lax.fori_loop(0, count, tile, empty)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        return None, ((out / total[..., None]).astype(v.dtype), most + jnp.log(total))

    found: Any = jax.lax.scan(row, None, jnp.arange(len(queries)))[1]
    out, size = found
    joined = _joined(out, length)
    return joined, (q, k, v, view, joined, size)


def _backward(causal, scale, softcap, block, saved, g) -> tuple:
    q, k, v, view, out, size = saved
    queries, keys, values, rules = _cut(q, k, v, view, block)
    slopes = _tiles(g, block, k.shape[2])
    # As columns too: a product that contracts over the rows of both operands takes a CPU twice as long.
    turned, asked = _columns_of(slopes), _columns_of(queries)
    sums = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), -1, keepdims=True)
    sums = _tiles(sums, block, k.shape[2])  # [count, B, K, G, N, 1]

    def flat(x: jax.Array) -> jax.Array:  # [B, K, G, N, N] -> [B, K, G N, N]
        return x.reshape(*x.shape[:2], -1, block)

    def row(carry: tuple, i: jax.Array) -> tuple:
        ours, slope = queries[i], slopes[i]

        def tile(j: jax.Array, carry: tuple) -> tuple:
            dq, dk, dv = carry
            logits, tanh = _logits(ours, keys[j], scale, softcap)
            seen = _seen(rules, i, j, causal)
            weights = jnp.where(seen, jnp.exp(logits - size[i][..., None]), 0.0)
            dv = dv.at[j].add(_product("bket,bkts->bkes", turned[i], flat(weights.astype(v.dtype))))
            change = weights * (_product("bkgte,bkse->bkgts", slope, values[j]) - sums[i]) * scale
            if softcap:
                change = change * (1 - jnp.square(tanh))
            change = change.astype(q.dtype)
            dk = dk.at[j].add(_product("bket,bkts->bkes", asked[i], flat(change)))
            return dq + _product("bkgts,bkse->bkgte", change, keys[j]), dk, dv

        count = i + 1 if causal else len(keys)
        zeros = jnp.zeros(ours.shape, jnp.float32)
        dq, *carry = jax.lax.fori_loop(0, count, tile, (zeros, *carry))
        return tuple(carry), dq.astype(q.dtype)

    zeros = tuple(jnp.zeros(x.swapaxes(3, 4).shape, jnp.float32) for x in (keys, values))
    found: Any = jax.lax.scan(row, zeros, jnp.arange(len(queries)))
    (dk, dv), dq = found
    dk, dv = (
        _joined(x.swapaxes(3, 4)[:, :, :, None], k.shape[1]).astype(k.dtype) for x in (dk, dv)
    )
    return _joined(dq, q.shape[1]), dk, dv, None


by_tiles.defvjp(_forward, _backward)


def _product(how: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _logits(q, k, scale, softcap) -> tuple[jax.Array, Any]:
    """[B, K, G, N, N] in float32, and the tanh of a softcap."""
    return capped(_product("bkgte,bkse->bkgts", q, k) * scale, softcap)


def _cut(q, k, v, view: View, block: int) -> tuple:
    """Queries [count, B, K, G, N, E], keys and values [count, B, K, N, E], and the rules by tiles."""
    kv = k.shape[2]
    keys, values = (_tiles(x, block, kv)[:, :, :, 0] for x in (k, v))

    def rows(x: jax.Array) -> jax.Array:
        """[B or 1, T] -> [count, B or 1, N]; nobody sees what is filled up."""
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)))
        return x.reshape(len(x), -1, block).swapaxes(0, 1)

    pairs = ((view.queries[None], view.keys[None]), view.segments, view.positions)
    return (
        _tiles(q, block, kv),
        keys,
        values,
        (*((rows(a), rows(b)) for a, b in pairs), view.window),
    )


def _seen(rules: tuple, i: jax.Array, j: jax.Array, causal: bool) -> jax.Array:
    """Of tile i of queries and tile j of keys, bool [B, 1, 1, N, N]."""
    places, segments, positions, window = rules

    def both(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return pair[0][i][:, :, None], pair[1][j][:, None, :]

    ours, theirs = both(segments)
    seen = (ours == theirs) & (theirs != 0)
    ours, theirs = both(positions)
    seen &= jnp.abs(ours - theirs) < window
    if causal:
        ours, theirs = both(places)
        seen &= ours >= theirs
    return seen[:, None, None]


def _tiles(x: jax.Array, block: int, kv: int) -> jax.Array:
    """[B, T, H, E] -> [count, B, K, G, N, E], filled up with zeros."""
    b, t, h, e = x.shape
    x = jnp.pad(x, ((0, 0), (0, -t % block), (0, 0), (0, 0)))
    return x.reshape(b, -1, block, kv, h // kv, e).transpose(1, 0, 3, 4, 2, 5)


def _columns_of(x: jax.Array) -> jax.Array:
    """[count, B, K, G, N, E] -> [count, B, K, E, G N]."""
    return x.transpose(0, 1, 2, 5, 3, 4).reshape(*x.shape[:3], x.shape[5], -1)


def _joined(x: jax.Array, length: int) -> jax.Array:
    """[count, B, K, G, N, E] -> [B, T, H, E]."""
    count, b, kv, group, block, e = x.shape
    x = x.transpose(1, 0, 4, 2, 3, 5).reshape(b, count * block, kv * group, e)
    return x[:, :length]
