"""What is computed in."""

from typing import Any

import jax
import jax.numpy as jnp


def widened(x: jax.Array) -> jax.Array:
    """x in float32, or as it is where that is wider: what sums are in."""
    return x.astype(sums_dtype(x.dtype))


def sums_dtype(dtype: Any) -> Any:
    """What sums of that dtype are in."""
    return jnp.promote_types(dtype, jnp.float32)
