"""Scaled dot-product attention and who sees whom.

B examples, T queries, S keys, H heads, K heads of keys and values (H = K G), E width of a head.
"""

import jax
import jax.numpy as jnp

from research.ops.dropout import dropout

# Far below any logit, and twice as far as the least maximum that is subtracted, so that exp gives exactly 0.
MASKED = -1e30
# Of a causal product: how many blocks queries are cut into, and the shortest. Of 256 tokens in 4 blocks 5/8 is left; on
# a CPU that takes 0.6 of the time with its gradient, and 8 blocks take more again.
BLOCKS, LEAST = 4, 64


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`attend` with positions in front of heads, everything visible: q [B, T, H, E]; k, v [B, S, H, E].

    Returns:
      The output [B, T, H, E] in q's dtype, and the weights [B, H, T, S] in float32.
    """
    out, weights = attend(*(a.swapaxes(1, 2) for a in (q, k, v)))
    return out.swapaxes(1, 2), weights


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    keys: jax.Array | None = None,
    rate: float = 0.0,
    salt: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax(q k^T scale) v for each head (Vaswani et al. 2017), and the weights.

    Heads stand in front of positions, so that both products run over contiguous blocks: on a CPU that takes half the
    time of `jax.nn.dot_product_attention` with its gradient. Query head h reads key head h // G (Ainslie et al. 2023).
    A query that sees nothing gets zeros. Weights cost nothing where nobody reads them.

    Args:
      q: [B, H, T, E].
      k, v: [B, K, S, E].
      mask: bool [B or 1, T, S], True where a query sees a key; None = everywhere.
      causal: the mask hides whatever comes later, T = S. What it hides from whole blocks of queries is then left out.
      scale: of the logits; None = E**-0.5.
      softcap: c > 0 makes the logits c tanh(logits / c) (Gemma 2).
      keys, rate, salt: of the dropout of the weights, as in `research.ops.dropout`; keys None = none.

    Returns:
      The output [B, H, T, E] in v's dtype, and the weights [B, H, T, S] in float32, before dropout.
    """
    b, h, t, e = q.shape
    kv, s = k.shape[1], k.shape[2]
    size = max(-(-t // BLOCKS), LEAST)
    if causal and mask is not None and t == s > size and (keys is None or rate == 0.0):
        parts = []
        for start in range(0, t, size):
            end = min(start + size, t)
            seen = mask[:, start:end, :end]
            out, weights = attend(
                q[:, :, start:end],
                k[:, :, :end],
                v[:, :, :end],
                mask=seen,
                scale=scale,
                softcap=softcap,
            )
            parts.append((out, jnp.pad(weights, ((0, 0), (0, 0), (0, 0), (0, t - end)))))
        out, weights = (jnp.concatenate(part, 2) for part in zip(*parts, strict=True))
        return out, weights
    # The queries of one group are rows of one product.
    q = (q * (e**-0.5 if scale is None else scale)).reshape(b, kv, h // kv * t, e)
    logits = jnp.einsum("bkte,bkse->bkts", q, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(b, h, t, s)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    weights = softmax(logits, None if mask is None else mask[:, None])
    used = dropout(weights, keys, rate, salt).astype(v.dtype).reshape(b, kv, h // kv * t, s)
    out = jnp.einsum("bkts,bkse->bkte", used, v)
    return out.reshape(b, h, t, e), weights


def softmax(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax over the last axis, 0 where `mask` is False; a row without any True is all 0.

    Written out, since XLA's CPU compiler makes of `jax.nn.softmax(..., where=mask)` passes that it does not join.
    """
    return _softmax(logits if mask is None else jnp.where(mask, logits, MASKED))


@jax.custom_jvp
def _softmax(logits: jax.Array) -> jax.Array:
    odds = jnp.exp(logits - jnp.maximum(jnp.max(logits, -1, keepdims=True), MASKED / 2))
    total = odds.sum(-1, keepdims=True)
    return odds / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


@_softmax.defjvp
def _softmax_jvp(given, changes):
    """From the result alone, which is kept anyhow: one [B, H, T, S] for each block less than of what it is made of."""
    y = _softmax(*given)
    change = y * changes[0]
    return y, change - y * change.sum(-1, keepdims=True)


def visible(
    queries: jax.Array,
    keys: jax.Array,
    *,
    causal: bool,
    segments: tuple[jax.Array, jax.Array] | None = None,
    window: int = 0,
    positions: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array | None:
    """Returns the mask of `attend`, bool [B or 1, T, S]; None where everything is visible.

    Args:
      queries: int [T], the places of the queries in the row.
      keys: int [S].
      causal: a query sees no later place.
      segments: int [B, T] and [B, S]: only equal segments see each other, and nobody sees 0.
      window: n > 0: only positions less than n away, itself among them.
      positions: int [B or 1, T] and [B or 1, S], by which a window counts; None = the places.
    """
    rules = []
    if causal:
        rules.append(queries[None, :, None] >= keys[None, None, :])
    if segments is not None:
        ours, theirs = segments[0][:, :, None], segments[1][:, None, :]
        rules.append((ours == theirs) & (theirs != 0))
    if window:
        ours, theirs = (queries[None], keys[None]) if positions is None else positions
        rules.append(jnp.abs(ours[:, :, None] - theirs[:, None, :]) < window)
    mask = None
    for rule in rules:
        mask = rule if mask is None else mask & rule
    return mask
