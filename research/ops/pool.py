"""Pooling of pictures. Windows that do not overlap are cut out by a reshape, which a CPU runs much faster.

B examples, H, W height and width, C channels, k the window's side, H' = H // k rows out.

The gradient of XLA's reduce_window is select-and-scatter, on a CPU 15 times slower than what stands here
(benchmarks/ops.py). Both give a window's gradient to the first of its largest entries, in reading order.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def max_pool(
    x: jax.Array, size: int = 2, *, stride: int | None = None, padding: str | int = "VALID"
) -> jax.Array:
    """The largest entry of each window.

    Args:
      x: [B, H, W, C].
      size: the window's side, in pixels.
      stride: steps between windows; `size` if None.
      padding: 'VALID' (rows and columns that fill no window are left out), 'SAME', or pixels on every
        side; padding is never the largest.

    Returns:
      [B, H', W', C]. Where windows do not overlap, forward-mode differentiation is not defined.
    """
    if padding == "VALID" and stride in (None, size) and min(x.shape[1:3]) >= size:
        return _tiled_max(x, size)
    return max_pool_plain(x, size, stride=stride, padding=padding)


def max_pool_plain(
    x: jax.Array, size: int = 2, *, stride: int | None = None, padding: str | int = "VALID"
) -> jax.Array:
    """The reference, what GPU and TPU run, and the form for windows that overlap."""
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return nn.max_pool(x, (size, size), (stride or size,) * 2, pads)


def avg_pool(
    x: jax.Array, size: int = 2, *, stride: int | None = None, padding: str = "VALID"
) -> jax.Array:
    """The mean of each window, x [B, H, W, C] -> [B, H', W', C]; padding counts as zeros."""
    if padding == "VALID" and stride in (None, size):
        return _tiles(x, size).mean((2, 4), dtype=jnp.float32).astype(x.dtype)
    return nn.avg_pool(x, (size, size), (stride or size,) * 2, padding)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean over the picture, x [B, H, W, C] -> [B, C], summed in float32."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def _tiles(x: jax.Array, size: int) -> jax.Array:
    b, h, w, c = x.shape
    h, w = h // size, w // size
    return x[:, : h * size, : w * size].reshape(b, h, size, w, size, c)


def _entries(x: jax.Array, size: int) -> list[jax.Array]:
    """The k*k entries of every window in reading order, each [B, H', W', C]."""
    tiles = _tiles(x, size)
    return [tiles[:, :, i, :, j] for i in range(size) for j in range(size)]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max(x: jax.Array, size: int) -> jax.Array:
    return lax.platform_dependent(
        x,
        cpu=lambda x: jax.tree.reduce(jnp.maximum, _entries(x, size)),
        default=lambda x: max_pool_plain(x, size),
    )


def _forward(x, size):
    y = _tiled_max(x, size)
    return y, (x, y)


def _backward(size, saved, g):
    x, y = saved
    dx = lax.platform_dependent(
        x,
        y,
        g,
        cpu=partial(_first_of_largest, size=size),
        default=lambda x, y, g: jax.vjp(lambda x: max_pool_plain(x, size), x)[1](g)[0],
    )
    return (dx,)


_tiled_max.defvjp(_forward, _backward)


def _first_of_largest(x: jax.Array, y: jax.Array, g: jax.Array, *, size: int) -> jax.Array:
    """g [B, H', W', C] put where y was found in x [B, H, W, C], zeros elsewhere."""
    b, h, w, c = y.shape
    taken, parts = jnp.zeros(y.shape, bool), []
    for entry in _entries(x, size):
        here = (entry == y) & ~taken
        taken |= here
        parts.append(jnp.where(here, g, 0))
    rows = [
        jnp.stack(parts[i * size : (i + 1) * size], 3) for i in range(size)
    ]  # [B, H', W', k, C]
    dx = jnp.stack(rows, 2).reshape(b, h * size, w * size, c)
    return jnp.pad(dx, ((0, 0), (0, x.shape[1] - h * size), (0, x.shape[2] - w * size), (0, 0)))
