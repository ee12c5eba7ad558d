"""Rows that hold documents: segments int [B, T] are 1, 2, .. by document, 0 for padding, which may stand anywhere.

B rows, T tokens, D width. Segments None = one document a row, without padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Masks(NamedTuple):
    """What a recurrence does at each step with the state that it finds, in one direction; bool [B, T]."""

    keep: jax.Array  # False: padding, which leaves the state as it is
    fresh: jax.Array  # the first token of a document, which starts from zeros


def count_positions(segments: jax.Array) -> jax.Array:
    """Numbers the tokens of each document from 0, padding not counted -> int32 [B, T]; 0 for padding.

    Documents stand in the order of their numbers.
    """
    real = segments != 0
    place = jnp.cumsum(real, 1) - 1
    before = jnp.pad(jax.lax.cummax(segments, axis=1)[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(real & (segments != before), place, 0), axis=1)
    return jnp.where(real, place - start, 0).astype(jnp.int32)


def last_token(x: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The last token of each row that is not padding, x [B, T, D] -> [B, D]; any of a row that is all padding."""
    if segments is None:
        return x[:, -1]
    index = x.shape[1] - 1 - jnp.argmax(segments[:, ::-1] != 0, axis=1)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def pool(x: jax.Array, segments: jax.Array | None, kind: str) -> jax.Array:
    """One vector a row, x [B, T, D] -> [B, D]: the 'first', the 'mean' or the 'last' of its tokens, without padding.

    The mean is taken in float32, and is 0 where a row is all padding.
    """
    if kind == "last":
        return last_token(x, segments)
    if kind == "first":
        if segments is None:
            return x[:, 0]
        index = jnp.argmax(segments != 0, axis=1)
        return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    wide = x.astype(jnp.float32)
    if segments is None:
        return wide.mean(1)
    real = (segments != 0).astype(jnp.float32)[:, :, None]
    return (wide * real).sum(1) / jnp.maximum(real.sum(1), 1.0)


def masks_of(
    segments: jax.Array, before: jax.Array | None = None, *, reverse: bool = False
) -> tuple[Masks, jax.Array]:
    """Masks of a recurrence from the documents that tokens belong to, for one direction.

    Args:
      segments: int32 [B, T]; 1, 2, ... the document, 0 = padding, wherever it stands.
      before: int32 [B] the document that the state is of, 0 = of none; None = of none.
      reverse: of the direction from the last token to the first.

    Returns:
      The masks, and the document that the state is of afterwards, int32 [B].
    """
    if before is None:
        before = jnp.zeros_like(segments[:, 0])
    along = jnp.concatenate([before[:, None], segments[:, ::-1] if reverse else segments], 1)
    place = jnp.where(along > 0, jnp.arange(along.shape[1]), 0)
    latest = jnp.take_along_axis(along, jax.lax.cummax(place, 1), 1)  # [B, 1 + T] not of padding
    fresh = latest[:, 1:] != latest[:, :-1]
    return Masks(segments > 0, fresh[:, ::-1] if reverse else fresh), latest[:, -1]
