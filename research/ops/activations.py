"""Activations."""

import jax
import jax.numpy as jnp
import numpy as np

from research.ops import platform


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution's (Hendrycks & Gimpel 2016), by erf and not by an approximation of it.

    Computed as PyTorch does, x (1 + erf(x / sqrt(2))) / 2: for large negative x the error is half a unit of the last
    place of x, and not of the result. The gradient, Phi(x) + x phi(x), keeps x alone, and computes erf again: on a CPU
    that takes less time than to write it and to read it back.
    """
    # JAX's own is made of operations that every reader of an exported program knows, and erf is not one of them.
    return jax.nn.gelu(x, approximate=False) if platform.is_portable() else _with_gradient(x)


@jax.custom_vjp
def _with_gradient(x: jax.Array) -> jax.Array:
    return _gelu(x)


def _gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * _share(wide)).astype(x.dtype)


def _share(x: jax.Array) -> jax.Array:
    """Phi(x)."""
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(0.5**0.5))


def _backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)  # else erf is kept
    density = jnp.exp(-0.5 * jnp.square(wide)) * np.float32((2 * np.pi) ** -0.5)
    return (((_share(wide) + wide * density) * g.astype(jnp.float32)).astype(x.dtype),)


_with_gradient.defvjp(lambda x: (_gelu(x), x), _backward)
