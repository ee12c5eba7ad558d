"""Rows that hold documents: segments int [B, T] are 1, 2, .. by document, 0 for padding, which may stand anywhere.

B rows, T tokens, D width. Segments None = one document a row, without padding.
"""

import jax
import jax.numpy as jnp


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
