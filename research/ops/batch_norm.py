"""Normalisation of each channel over a batch, with a gradient that keeps nothing but the input.

B..., the axes that statistics are over, N their product; C channels.

Of the definition XLA's gradient keeps x - mean beside x, for each layer of a network another picture, and makes more
passes over them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.dtypes import widened
from research.ops.order import after


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias (Ioffe & Szegedy 2015).

    Args:
      x: float [B..., C], not empty.
      scale, bias: float32 [C].
      epsilon: added to the variance.
      axis_name: the devices' axis that the batch is cut along, or None.

    Returns:
      The result in x's dtype, and mean and variance [C], in float32 or wider. No gradient goes through the last two.
    """
    wide = widened(x)
    mean, square = _means(axis_name, wide, wide * wide)
    variance = jnp.maximum(square - mean * mean, 0)
    factor = lax.rsqrt(variance + epsilon) * scale
    return ((wide - mean) * factor + bias).astype(x.dtype), mean, variance


def _forward(x, scale, bias, epsilon, axis_name):
    y, mean, variance = batch_norm(x, scale, bias, epsilon, axis_name)
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _backward(epsilon, axis_name, saved, changes):
    """With z = (x - mean) / deviation: dx = (g - mean(g) - z * mean(g * z)) * scale / deviation."""
    x, scale, bias, mean, variance = saved
    g = widened(changes[0])
    spread = lax.rsqrt(variance + epsilon)
    centred = widened(after(changes[0], x)) - mean
    axes = tuple(range(x.ndim - 1))
    dbias, dscale = g.sum(axes), (g * centred).sum(axes) * spread
    count = x.size // x.shape[-1]
    means = jnp.stack([dbias, dscale]) / count
    if axis_name is not None:
        means = lax.pmean(means, axis_name)
    dx = (g - means[0] - centred * (means[1] * spread)) * (scale * spread)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


batch_norm.defvjp(_forward, _backward)


def _means(axis_name: str | None, *arrays: jax.Array) -> jax.Array:
    means = jnp.stack([a.mean(tuple(range(a.ndim - 1))) for a in arrays])
    return means if axis_name is None else lax.pmean(means, axis_name)
