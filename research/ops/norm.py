"""Normalisation of each token by itself, computed in float32. D the width.

The gradients are written out: two sums over a row, two over a column, and one pass for x's, where XLA's CPU compiler
makes of the plain forms' twice as many passes.
"""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ba et al. 2016), in x's dtype.

    Args:
      x: [..., D].
      scale, bias: float32 [D].
      epsilon: added to the variance.
    """
    return _layer_forward(x, scale, bias, epsilon)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean(x**2) + epsilon) * scale over the last axis (Zhang & Sennrich 2019), in x's dtype."""
    return _rms_forward(x, scale, epsilon)[0]


def _layer_forward(x, scale, bias, epsilon):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    wide = wide - mean
    spread = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (wide * spread * scale + bias).astype(x.dtype), (x, scale, bias, mean, spread)


def _layer_backward(epsilon, saved, g):
    x, scale, bias, mean, spread = saved
    g = g.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * spread
    along = g * normal
    dx = spread * (g * scale - _row_means(g, scale) - normal * _row_means(along, scale))
    return dx.astype(x.dtype), _column_sums(along, scale), _column_sums(g, bias)


def _rms_forward(x, scale, epsilon):
    wide = x.astype(jnp.float32)
    spread = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return (wide * spread * scale).astype(x.dtype), (x, scale, spread)


def _rms_backward(epsilon, saved, g):
    x, scale, spread = saved
    g = g.astype(jnp.float32)
    normal = x.astype(jnp.float32) * spread
    along = g * normal
    dx = spread * (g * scale - normal * _row_means(along, scale))
    return dx.astype(x.dtype), _column_sums(along, scale)


layer_norm.defvjp(_layer_forward, _layer_backward)
rms_norm.defvjp(_rms_forward, _rms_backward)


def _row_means(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The mean of x * scale over the last axis, which stays; a product, since it is summed over."""
    flat = x.reshape(-1, x.shape[-1])
    sums = jnp.dot(flat, scale / x.shape[-1], precision=jax.lax.Precision.HIGHEST)
    return sums.reshape(*x.shape[:-1], 1)


def _column_sums(x: jax.Array, like: jax.Array) -> jax.Array:
    """Plain sums: as products with ones they cost MiniLM's step a tenth, though alone they are faster."""
    return x.reshape(-1, x.shape[-1]).sum(0).astype(like.dtype)
