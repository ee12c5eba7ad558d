"""Softmax with a mask, written out."""

import jax
import jax.numpy as jnp

# Far below any logit, and twice as far as the least maximum that is subtracted, so that exp gives exactly 0.
MASKED = -1e30


def softmax(logits: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Softmax over the last axis, 0 where `mask` is False; a row without any True is all 0.

    Written out, since XLA's CPU compiler makes of `jax.nn.softmax(..., where=mask)` passes that it does not join.
    """
    return _softmax(logits if mask is None else jnp.where(mask, logits, MASKED))


def capped(logits: jax.Array, softcap: float) -> tuple[jax.Array, jax.Array | None]:
    """c tanh(logits / c), and that tanh, which a gradient is made of; as they are and None where c is 0.

    What keeps the logits of Gemma 2 small (Gemma Team 2024, section 2).
    """
    if not softcap:
        return logits, None
    tanh = jnp.tanh(logits / softcap)
    return softcap * tanh, tanh


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
