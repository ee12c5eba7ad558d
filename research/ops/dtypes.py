"""What is computed in."""

import jax
import jax.numpy as jnp


def widened(x: jax.Array) -> jax.Array:
    """x in float32, or as it is where that is wider: what sums are in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
