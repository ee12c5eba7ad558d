"""Products with a matrix. B..., any leading axes; D, E widths in and out."""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from research.ops import platform
from research.ops.dtypes import sums_dtype

ROWS, COLUMNS = 1024, 256  # of x, from which on a transposed copy of it costs less than it saves


def dense(x: jax.Array, kernel: jax.Array, *, wide: bool = False) -> jax.Array:
    """x [..., D] times kernel [D, E].

    Leading axes are joined first: on a CPU the gradient by the kernel takes nearly twice the time where the product
    contracts over several axes.

    Args:
      x: its dtype is computed in.
      kernel: of x's dtype.
      wide: gives the sums as they were added up, in float32 at least, and not rounded to x's dtype. Gradients are
        products in x's dtype, as they are without.

    Returns:
      [..., E]. Large products on a CPU (`_turning_is_fast`) have no forward-mode derivative, nor has `add_bias`.
    """
    flat = x.reshape(-1, x.shape[-1])
    rounded = wide and jnp.promote_types(x.dtype, jnp.float32) != x.dtype
    if rounded:
        y = _wide_product(flat, kernel)
    elif _turning_is_fast(flat):
        y = _turned(flat, kernel)
    else:
        y = flat @ kernel
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
    """x [N, E] -> [E], float32 at least.

    On a CPU as a product with ones, which takes half the time. What x is made of is also computed once then, and not
    again for the sum and for each product that reads it too.
    """
    if not platform.on_cpu():
        return x.astype(sums_dtype(x.dtype)).sum(0)
    ones = jnp.ones((1, x.shape[0]), x.dtype)
    return jnp.dot(ones, x, preferred_element_type=sums_dtype(x.dtype))[0]


def _turning_is_fast(x: jax.Array) -> bool:
    """Whether `_turned` is the form for x [N, D]. With several devices a sum over them would stand in a branch."""
    if not platform.on_cpu() or platform.is_portable() or jax.device_count() > 1:
        return False
    known = isinstance(x.shape[0], int)  # left open, in a program that only predicts
    return known and x.dtype == jnp.float32 and x.shape[0] >= ROWS and x.shape[1] >= COLUMNS


@jax.custom_vjp
def _turned(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _turned_backward(saved, g):
    """The kernel's gradient is x^T g, and XLA's fast product for CPUs reads its left side row by row.

    It folds a transposition into the product, which then takes 1.2 to 1.7 times as long: the barrier hinders that. It
    also fuses a transposition with what x is made of, which is then computed against the order of memory and takes
    longer than all that was won: what is inside of a branch it leaves apart. Both branches are the same.
    """
    x, kernel = saved

    def product(x, g):
        return jax.lax.optimization_barrier(x.T) @ g

    either = kernel[0, 0] > 0  # known to no compiler, and the same for all examples of a `vmap`
    return g @ kernel.T, jax.lax.cond(either, product, product, x, g)


_turned.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _turned_backward)


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
