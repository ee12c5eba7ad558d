"""When XLA may compute something."""

import jax
from jax import lax


def after(first: jax.Array, x: jax.Array) -> jax.Array:
    """x, but not to be had before `first`, a float array that is not empty.

    Of equal expressions XLA makes one, and on a CPU it computes what it can as soon as it can. So what a backward pass
    makes of saved inputs, even if it is many times their size, would be made in the forward pass and kept until then.
    `lax.optimization_barrier` does not help: on a CPU it is gone before XLA decides that.
    """
    return lax.platform_dependent(first, x, cpu=_tied, default=lambda first, x: x)


def _tied(first: jax.Array, x: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(first[(0,) * first.ndim], f"int{8 * first.dtype.itemsize}")
    return x + ((bits & 1) >> 1).astype(x.dtype)  # 0 whatever the bits are
