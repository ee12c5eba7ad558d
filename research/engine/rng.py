"""Keys that depend on (seed, stream name, step) and on nothing else, so that none is carried or saved."""

import zlib

import jax


def stream_key(seed: int, stream: str) -> jax.Array:
    """Returns the key of a stream. Adding a stream leaves the others as they are."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def step_keys(seed: int, step: jax.Array, streams: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns a key for each stream at a step. Tasks fold in the example's number, so layouts do not matter."""
    return {name: jax.random.fold_in(stream_key(seed, name), step) for name in streams}
