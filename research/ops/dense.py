"""Products with a matrix. B..., any leading axes; D, E widths in and out."""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from research.ops import platform


def dense(x: jax.Array, kernel: jax.Array, *, wide: bool = False) -> jax.Array:
    """x [..., D] times kernel [D, E].

    Leading axes are joined first: on a CPU the gradient by the kernel takes nearly twice the time where the product
    contracts over several axes.

    Args:
      x: its dtype is computed in.
      kernel: of x's dtype.
      wide: gives the sums as they were added up, in float32 at least, and not rounded to x's dtype. Gradients are
        products in x's dtype, as they are without.
    """
    flat = x.reshape(-1, x.shape[-1])
    rounded = wide and jnp.promote_types(x.dtype, jnp.float32) != x.dtype
    y = _wide_product(flat, kernel) if rounded else flat @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., E] + bias [E], of one dtype; the gradient by the bias is a `column_sums`."""
    return x + bias


add_bias.defvjp(
    lambda x, bias: (x + bias, None),
    lambda _, g: (g, column_sums(g.reshape(-1, g.shape[-1])).astype(g.dtype)),
)


def column_sums(x: jax.Array) -> jax.Array:
    """x [N, E] -> float32 [E].

    On a CPU as a product with ones, which takes half the time. What x is made of is also computed once then, and not
    again for the sum and for each product that reads it too.
    """
    if not platform.on_cpu():
        return x.astype(jnp.float32).sum(0)
    ones = jnp.ones((1, x.shape[0]), x.dtype)
    return jnp.dot(ones, x, preferred_element_type=jnp.float32)[0]


@jax.custom_jvp
def _wide_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _wide_product_jvp(given, changes):
    """JAX's own would take the products of the gradient in float32."""
    x, kernel = given
    dx, dkernel = changes
    parts = [] if isinstance(dx, SymbolicZero) else [dx @ kernel]
    parts += [] if isinstance(dkernel, SymbolicZero) else [x @ dkernel]
    return _wide_product(x, kernel), sum(part.astype(jnp.float32) for part in parts)


_wide_product.defjvp(_wide_product_jvp, symbolic_zeros=True)
