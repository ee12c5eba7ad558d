"""Dropout whose masks belong to examples: a mask depends on the example's key and a salt, and on nothing else.

So a batch may be cut over devices or micro-batches, or reordered, and every example still meets the same mask.
B examples.
"""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, keys: jax.Array | None, rate: float, salt: int = 0) -> jax.Array:
    """Zeroes entries with probability `rate` and divides the others by 1 - rate (Srivastava et al. 2014).

    Args:
      x: [B, ...].
      keys: typed keys [B], one per example; None = identity.
      rate: 0 <= rate < 1.
      salt: tells the dropouts of one model apart; below 2**32.

    Raises:
      ValueError: a rate outside [0, 1).
    """
    return _drop(x, keys, rate, salt, x.shape[1:])


def drop_path(x: jax.Array, keys: jax.Array | None, rate: float, salt: int = 0) -> jax.Array:
    """Zeroes whole examples of a residual branch (stochastic depth, Huang et al. 2016); arguments as `dropout`."""
    return _drop(x, keys, rate, salt, (1,) * (x.ndim - 1))


def _drop(x: jax.Array, keys: jax.Array | None, rate: float, salt: int, shape: tuple) -> jax.Array:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"the rate of dropout is {rate}; it must be at least 0 and below 1")
    if keys is None or rate == 0.0:
        return x

    def mask(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, salt), 1.0 - rate, shape)

    keep = jax.vmap(mask)(keys)  # [B, ...]
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
