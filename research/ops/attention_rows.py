"""Attention whose gradient is written out, by blocks of queries: the form for a CPU.

What makes it fast there: a causal block of queries meets only the keys up to its end; each product has its operands in
the order in which they are read, so that none contracts over the rows of both (which takes XLA's compiler for CPUs two
to four times as long); and the gradient of the softmax is one pass over the weights.

B examples, T queries, S keys, H heads, K heads of keys and values, G = H / K, E width of a head.
"""

from functools import partial

import jax
import jax.numpy as jnp

from research.ops.softmax import capped, softmax

# Of a causal product: how many blocks queries are cut into, and the shortest. Of 256 tokens in 4 blocks 5/8 is left;
# 8 blocks take longer again.
BLOCKS, LEAST = 4, 64
# The first query, the one after the last, and how many keys.
Blocks = tuple[tuple[int, int, int], ...]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def by_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> jax.Array:
    """Attention [B, T, H, E] in v's dtype, as `research.ops.attention.attend`; q [B, T, H, E]; k, v [B, S, K, E].

    Args:
      q, k, v: of one dtype.
      mask: bool [B or 1, T, S]; None = everywhere.
      causal: the mask hides whatever comes later, T = S.
      scale: of the logits.
      softcap: c > 0 makes the logits c tanh(logits / c).
    """
    return _forward(q, k, v, mask, causal, scale, softcap)[0]


def blocks_of(length: int, keys: int, causal: bool) -> Blocks:
    """How the queries are cut."""
    size = max(-(-length // BLOCKS), LEAST) if causal else max(length, 1)
    cuts = ((start, min(start + size, length)) for start in range(0, length, size))
    return tuple((start, end, end if causal else keys) for start, end in cuts)


def _forward(q, k, v, mask, causal, scale, softcap) -> tuple:
    group = q.shape[2] // k.shape[2]
    rows, kept = [], []
    for start, end, keys in blocks_of(q.shape[1], k.shape[1], causal):
        ours = _heads(q[:, start:end] * scale, group)
        logits = jnp.einsum(
            "bkte,bkse->bkts", ours, _heads(k[:, :keys]), preferred_element_type=jnp.float32
        )
        logits, tanh = capped(logits, softcap)
        seen = None if mask is None else mask[:, None, start:end, :keys]
        if seen is not None and group > 1:
            seen = jnp.tile(seen, (1, 1, group, 1))
        weights = softmax(logits, seen)
        out = jnp.einsum("bkts,bkse->bkte", weights.astype(v.dtype), _heads(v[:, :keys]))
        rows.append(_positions(out, group))
        kept.append((weights, tanh))
    out = jnp.concatenate(rows, 1)
    return out, (q, k, v, out, kept)


def _backward(causal, scale, softcap, saved, g) -> tuple:
    q, k, v, out, kept = saved
    group, blocks = q.shape[2] // k.shape[2], blocks_of(q.shape[1], k.shape[1], causal)
    # The sum over a row of weights times their gradients.
    sums = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), -1, keepdims=True)
    dq, dk, dv = [], [], []
    for (start, end, keys), (weights, tanh) in zip(blocks, kept, strict=True):
        theirs, values = _heads(k[:, :keys]), _heads(v[:, :keys])
        part = g[:, start:end]
        # Without the barrier the compiler folds the transpositions back into the products.
        turned, queries = jax.lax.optimization_barrier(
            (_columns(part, group), _columns(q[:, start:end], group))
        )
        dv.append(jnp.einsum("bket,bkts->bkes", turned, weights.astype(v.dtype)))
        change = jnp.einsum(
            "bkte,bkse->bkts", _heads(part, group), values, preferred_element_type=jnp.float32
        )
        change = weights * (change - _heads(sums[:, start:end], group)) * scale
        if softcap:
            change = change * (1 - jnp.square(tanh))
        change = change.astype(q.dtype)
        dq.append(_positions(jnp.einsum("bkts,bkse->bkte", change, theirs), group))
        dk.append(jnp.einsum("bket,bkts->bkes", queries, change))
    # One copy each: what it is that reads them, there may be several.
    return (
        *jax.lax.optimization_barrier(
            (jnp.concatenate(dq, 1), _added(dk, blocks, k.dtype), _added(dv, blocks, v.dtype))
        ),
        None,
    )


by_rows.defvjp(_forward, _backward)


def _heads(x: jax.Array, group: int = 1) -> jax.Array:
    """[B, T, H, E] -> [B, K, G T, E]: the queries of one group are rows of one product."""
    b, t, h, e = x.shape
    x = x.reshape(b, t, h // group, group, e).transpose(0, 2, 3, 1, 4)
    return x.reshape(b, h // group, group * t, e)


def _columns(x: jax.Array, group: int) -> jax.Array:
    """[B, T, H, E] -> [B, K, E, G T]."""
    b, t, h, e = x.shape
    x = x.reshape(b, t, h // group, group, e).transpose(0, 2, 4, 3, 1)
    return x.reshape(b, h // group, e, group * t)


def _positions(x: jax.Array, group: int) -> jax.Array:
    """[B, K, G T, E] -> [B, T, H, E]."""
    b, kv, rows, e = x.shape
    x = x.reshape(b, kv, group, rows // group, e).transpose(0, 3, 1, 2, 4)
    return x.reshape(b, rows // group, kv * group, e)


def _added(parts: list[jax.Array], blocks: Blocks, dtype: jnp.dtype) -> jax.Array:
    """Sums what blocks of queries give their keys, [B, K, E, keys] each -> [B, S, K, E]."""
    ends = [keys for _, _, keys in blocks]
    starts = [0, *ends[:-1]] if len(set(ends)) > 1 else [0]
    pieces = []
    for i, start in enumerate(starts):
        piece = parts[i][..., start : ends[i]]
        for part in parts[i + 1 :]:
            piece = piece + part[..., start : ends[i]]
        pieces.append(piece)
    return jnp.concatenate(pieces, -1).transpose(0, 3, 1, 2).astype(dtype)
