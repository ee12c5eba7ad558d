"""Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with the position.

B examples, H heads, T tokens, E width of a head, an even number.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def angles(
    positions: jax.Array, width: int, *, base: float = 10000.0, scaling: tuple = ()
) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of position x base**(-2 i / E) for i < E / 2, float32 [B, T, 1, E / 2].

    Args:
      positions: int [B, T].
      width: E.
      base: the wave length of the slowest pair is nearly 2 pi base.
      scaling: see `frequencies`.

    Raises:
      ValueError: an odd width, or a scaling of no known kind.
    """
    turns = positions[:, :, None, None].astype(jnp.float32) * frequencies(width, base, scaling)
    return jnp.cos(turns), jnp.sin(turns)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + E / 2]) of x [B, T, H, E], in float32; pairs as in Llama of Hugging Face."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, -1).astype(x.dtype)


def frequencies(width: int, base: float, scaling: tuple = ()) -> np.ndarray:
    """Returns base**(-2 i / E), float32 [E / 2], changed for contexts longer than that of the training.

    Args:
      width: E.
      base: see `angles`.
      scaling: () = as they are; ('linear', factor) = all divided by it (Chen et al. 2023); ('llama3', factor, low,
        high, context) = waves longer than context / low divided by it, those shorter than context / high as they
        are, and a mixture between (Llama 3.1).

    Raises:
      ValueError: an odd width, or a scaling of no known kind.
    """
    if width % 2:
        raise ValueError(f"rotary positions turn pairs: the width of a head, {width}, must be even")
    plain = 1.0 / np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    if not scaling:
        return plain.astype(np.float32)
    kind, *numbers = scaling
    if kind == "linear" and len(numbers) == 1:
        return (plain / numbers[0]).astype(np.float32)
    if kind == "llama3" and len(numbers) == 4:
        factor, low, high, context = numbers
        # 1 for waves shorter than context / high, 0 for those longer than context / low.
        kept = np.clip((context * plain / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
        return ((1 - kept) * plain / factor + kept * plain).astype(np.float32)
    raise ValueError(
        f"rotary_scaling={scaling!r} is none of (), ('linear', factor), ('llama3', factor, low, high, context)"
    )
