"""Slots of a cache: keys and values of tokens that came before, written in place where the cache is donated.

B examples, K heads of keys and values, S slots, T new tokens, E width of a head.
"""

import jax


def write(
    slots: tuple[jax.Array, ...], new: tuple[jax.Array, ...], index: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns each of `slots` [B, K, S, E] with its `new` [B, K, T, E] in slots index..index + T - 1.

    index + T must not exceed S: as `dynamic_update_slice`, it then writes over earlier tokens without a word.
    """

    def update(slots: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            jax.lax.dynamic_update_slice(old, added.astype(old.dtype), (0, 0, index, 0))
            for old, added in zip(slots, new, strict=True)
        )

    def apart(slots: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # For a single example XLA's CPU compiler would fuse the update into its readers, do it once for each of them
        # and copy the whole cache four times: 240 microseconds instead of 86 for 8 heads, 512 slots of 64. The
        # branch is always taken; what is in it, is not fused with what is outside.
        return jax.lax.cond(index >= 0, update, lambda slots: slots, slots)

    return jax.lax.platform_dependent(slots, cpu=apart, default=update)
