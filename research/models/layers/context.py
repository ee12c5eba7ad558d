"""What the blocks of a transformer read beside their input: who sees whom, and the turns of rotary positions.

B examples, T tokens, S slots of a cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.models.layers import options
from research.ops.attention import view_of, visible
from research.ops.attention_tiles import View
from research.ops.rotary import angles


class Context(NamedTuple):
    """What a block reads beside its input, the same for all blocks of one kind."""

    mask: jax.Array | None  # bool [B or 1, T, S]: who sees whom
    turns: tuple[jax.Array, jax.Array] | None  # cos and sin of rotary positions
    view: View | None = None  # the same as a mask, by rules: for attention by tiles


def contexts(
    model: Any, places: jax.Array, real: Any, positions: jax.Array, cache: Any
) -> tuple[Context, Context]:
    """What blocks read that see all, and those with a window.

    Args:
      model: `research.models.transformer.Model`.
      places: int [T], of the tokens in the row.
      real: int [B, T], 0 for padding; None = no padding.
      positions: int [B or 1, T].
      cache: None, or of `research.models.layers.cache`.
    """
    slots, theirs, seen = places, positions, None if real is None else (real, real)
    if cache is not None:
        slots, theirs = jnp.arange(cache["valid"].shape[1]), cache["positions"]
        seen = (real, cache["valid"].astype(jnp.int32))
    o = options.of(model)

    def context(window: int) -> Context:
        if model.attention_block and cache is None:
            view = view_of(places, positions, real, window)
            mask = None
        else:
            view, counted = None, (positions, theirs) if window else None
            mask = visible(
                places,
                slots,
                causal=model.causal,
                segments=seen,
                window=window,
                positions=counted,
            )
        if model.position != "rotary":
            return Context(mask, None, view)
        base, scaling = model.rotary_base, model.rotary_scaling
        if window and model.rotary_local_base:
            base, scaling = model.rotary_local_base, ()
        turns = angles(positions, o.head_width, base=base, scaling=scaling)
        return Context(mask, turns, view)

    everything = context(0)
    if not model.window:
        return everything, everything
    windowed = context(model.window)
    # One loop chooses between two arrays.
    if model.scan and everything.mask is None and windowed.mask is not None:
        everything = everything._replace(mask=jnp.ones_like(windowed.mask))
    return everything, windowed
