"""When XLA may compute something."""

import jax
from jax import lax


def after(first: jax.Array, x: jax.Array) -> jax.Array:
    """x [B, ...], but not to be had before `first` [B, ...], float arrays that are not empty.

    Row by row, so that devices that hold rows of their own need not talk to each other.

    Of equal expressions XLA makes one, and on a CPU it computes what it can as soon as it can. So what a backward pass
    makes of saved inputs, even if it is many times their size, would be made in the forward pass and kept until then.
    `lax.optimization_barrier` does not help: on a CPU it is gone before XLA decides that.
    """
    return lax.platform_dependent(first, x, cpu=_tied, default=lambda first, x: x)


def apart(x: jax.Array) -> jax.Array:
    """x float [B, ...], not empty, which XLA on a CPU writes before it makes something else of it."""
    return after(x, x)


def _tied(first: jax.Array, x: jax.Array) -> jax.Array:
    row = first[(slice(None), *(0,) * (first.ndim - 1))]  # [B]
    bits = lax.bitcast_convert_type(row, f"int{8 * first.dtype.itemsize}")
    zeros = ((bits & 1) >> 1).astype(x.dtype)  # whatever the bits are
    return x + zeros.reshape(-1, *(1,) * (x.ndim - 1))
