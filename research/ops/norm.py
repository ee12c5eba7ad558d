"""Normalisation of each token by itself, computed in float32. D the width."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al. 2016), in x's dtype.

    Args:
      x: [..., D].
      scale, bias: float32 [D].
      epsilon: added to the variance.
    """
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (wide * spread * scale + bias).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) * scale over the last axis (Zhang & Sennrich 2019), in x's dtype."""
    wide = x.astype(jnp.float32)
    spread = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (wide * spread * scale).astype(x.dtype)
