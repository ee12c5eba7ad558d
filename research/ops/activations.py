"""Activations."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution's (Hendrycks & Gimpel 2016), by erf and not by an approximation of it.

    Computed as PyTorch does, x (1 + erf(x / sqrt(2))) / 2: for large negative x the error is half a unit of the last
    place of x, and not of the result. The gradient, Phi(x) + x phi(x), takes Phi as the result over x, so that besides
    x it reads only what the next product keeps anyhow, and erf is not computed again.
    """
    return _gelu(x)


def _gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


def _gelu_forward(x):
    y = _gelu(x)
    return y, (x, y)


def _gelu_backward(saved, g):
    x, y = saved
    wide = x.astype(jnp.float32)
    share = jnp.where(jnp.abs(wide) < 1e-30, 0.5, y.astype(jnp.float32) / wide)
    density = jnp.exp(-0.5 * jnp.square(wide)) * np.float32((2 * np.pi) ** -0.5)
    return (((share + wide * density) * g.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
