"""The cache of a decoder: keys and values of the tokens so far.

B examples, K heads of keys and values, E width of a head, L blocks, S slots, T new tokens.

    keys, values     L arrays [B, K, S, E] each, apart so that a donated cache is written in place
    valid            bool [B, S], where there is a token; padding takes slots too
    positions        int32 [B, S]
    index            int32 [], the slot of the next token
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.models.layers.options import Options

Cache = dict[str, Any]


class Slots(NamedTuple):
    """One block's part of a cache."""

    keys: jax.Array  # [B, K, S, E], after norm and rotation
    values: jax.Array  # [B, K, S, E]
    place: jax.Array  # int32 []: where the next tokens go


def empty(o: Options, dtype: Any, batch_size: int, slots: int) -> Cache:
    """Returns a cache without tokens."""

    def zeros() -> tuple[jax.Array, ...]:
        shape = (batch_size, o.kv_heads, slots, o.head_width)
        return tuple(jnp.zeros(shape, dtype) for _ in range(o.depth))

    return {
        "keys": zeros(),
        "values": zeros(),
        "valid": jnp.zeros((batch_size, slots), bool),
        "positions": jnp.zeros((batch_size, slots), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def extend(
    cache: Cache, shape: tuple[int, ...], segments: jax.Array | None, positions: jax.Array | None
) -> tuple[Cache, jax.Array, jax.Array]:
    """Returns the cache that knows of T new tokens, which of them are real and their positions.

    Args:
      cache: before them.
      shape: (B, T).
      segments: int [B, T], 0 for padding; None = no padding.
      positions: int [B, T]; None = counted on from the tokens before, without padding.

    Returns:
      The cache, `index` and the slots as they were; int32 [B, T], 1 where real; int32 [B, T].

    Raises:
      ValueError: more tokens than slots.
    """
    if shape[1] > cache["valid"].shape[1]:
        raise ValueError(f"{shape[1]} tokens do not fit a cache of {cache['valid'].shape[1]} slots")
    real = jnp.ones(shape, bool) if segments is None else segments != 0
    if positions is None:
        before = cache["valid"].sum(1, dtype=jnp.int32)[:, None]
        positions = jnp.where(real, before + jnp.cumsum(real, 1, dtype=jnp.int32) - 1, 0)
    positions = jnp.broadcast_to(positions, shape).astype(jnp.int32)
    at = (0, cache["index"])
    known = {
        "valid": jax.lax.dynamic_update_slice(cache["valid"], real, at),
        "positions": jax.lax.dynamic_update_slice(cache["positions"], positions, at),
    }
    return {**cache, **known}, real.astype(jnp.int32), positions


def filled(cache: Cache, parts: list[Slots], count: int) -> Cache:
    """The cache with each block's slots as it wrote them, for `count` tokens."""
    return {
        **cache,
        "keys": tuple(part.keys for part in parts),
        "values": tuple(part.values for part in parts),
        "index": cache["index"] + count,
    }
