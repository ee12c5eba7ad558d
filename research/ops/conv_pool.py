"""Convolution, relu and 2x2 max-pool in one, whose steps between are not written out on a CPU.

B examples, H, W height and width, K the kernel's side, C channels in, D channels out, H' x W' pooled windows.

A window of the pool is a tile of 2x2 values of the convolution, so that the pool is the largest of four arrays of the
pooled size. Two forms give those four without the picture between:

  blocks  for few channels: (K+1)x(K+1) pixels as one row, times a matrix [(K+1)^2 C, 4 D] that holds the kernel four
          times, each moved by a pixel. It multiplies with zeros too, ((K+1)/K)^2 of the work, and is still one product.
  tiles   for many channels: Winograd's algorithm F(2x2, 3x3), which works on these tiles (research/ops/winograd.py).

For the backward pass they keep which of the four was largest, and tiles also what they transformed, four times the
picture that came in. benchmarks/ops.py prints the comparison.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.ops import platform, winograd
from research.ops.conv import conv2d, pads
from research.ops.dense import add_bias, column_sums
from research.ops.pool import max_pool

FEW, MANY = 4, 32  # channels: at most so many for blocks, at least so many for tiles
TILES = 512  # for fewer, what is done to the kernel takes longer than what it saves
NOWHERE = 4.0  # which of the four was largest, where relu gives zero


def conv_relu_pool(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, padding: str | int = "SAME"
) -> jax.Array:
    """max_pool(relu(conv2d(x, kernel) + bias), 2), on a CPU in a form that is faster where there is one.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C, D], of the same dtype.
      bias: [D], of the same dtype.
      padding: of the convolution: 'SAME', 'VALID', or pixels on every side. A last odd row or column is left out.

    Returns:
      [B, H', W', D]. A window's gradient goes to the first of its largest entries in reading order, and nowhere where
      none is above zero. Where it is rewritten, forward-mode differentiation is not defined.
    """
    form = _form(x, kernel, padding)
    if form == "plain":
        return conv_relu_pool_plain(x, kernel, bias, padding=padding)
    return _pooled(x, kernel, bias, form, tuple(pads(x, kernel, 1, padding)))


def conv_relu_pool_plain(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, *, padding: str | int = "SAME"
) -> jax.Array:
    """The reference, and what GPU and TPU run: one after the other."""
    return max_pool(jax.nn.relu(add_bias(conv2d(x, kernel, padding=padding), bias)), 2)


def _form(x: jax.Array, kernel: jax.Array, padding: str | int) -> str:
    """'blocks', 'tiles' or 'plain'; measured on a CPU with jax 0.10.2 and 0.12.0.1."""
    if not platform.on_cpu() or platform.is_portable() or not isinstance(x.shape[0], int):
        return "plain"
    if x.dtype not in (jnp.float32, jnp.float64):
        return "plain"  # sums would be rounded on the way
    rows, columns, c, d = kernel.shape
    zeros = pads(x, kernel, 1, padding)
    sides = [size + sum(zero) - rows + 1 for size, zero in zip(x.shape[1:3], zeros, strict=True)]
    tiles = x.shape[0] * (sides[0] // 2) * (sides[1] // 2)
    if rows != columns or min(sides) < 2 or tiles < TILES:
        return "plain"
    if c <= FEW and d >= MANY:
        return "blocks"
    return "tiles" if rows == 3 and min(c, d) >= MANY else "plain"


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _pooled(x: jax.Array, kernel: jax.Array, bias: jax.Array, form: str, zeros: winograd.Pads):
    return _largest(_FORMS[form][0](x, kernel, zeros)[0], bias)


def _forward(x, kernel, bias, form, zeros):
    values, kept = _FORMS[form][0](x, kernel, zeros)
    return _largest(values, bias), (x, kernel, _place(values, bias), kept)


def _backward(form, zeros, saved, g):
    x, kernel, place, kept = saved
    gradients = [jnp.where(place == i, g, 0) for i in range(4)]
    dx, dkernel = _FORMS[form][1](x, kernel, gradients, kept, zeros)
    seen = jnp.where(place == NOWHERE, 0, g)
    return dx, dkernel, column_sums(seen.reshape(-1, seen.shape[-1])).astype(g.dtype)


_pooled.defvjp(_forward, _backward)


def _largest(values: Sequence[jax.Array], bias: jax.Array) -> jax.Array:
    """relu of the largest of four arrays [B, H', W', D]."""
    a, b, c, d = (value + bias for value in values)
    return jnp.maximum(jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)), 0)


def _place(values: Sequence[jax.Array], bias: jax.Array) -> jax.Array:
    """Which of them is the first of the largest, or NOWHERE, in their dtype: that compares fastest."""
    a, b, c, d = (value + bias for value in values)
    top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    place = jnp.full(top.shape, NOWHERE, top.dtype)
    for i, value in reversed(list(enumerate((a, b, c, d)))):
        place = jnp.where(value == top, jnp.asarray(i, top.dtype), place)
    return jnp.where(top > 0, place, jnp.asarray(NOWHERE, top.dtype))


def _tiles(x, kernel, zeros):
    tiles, inputs = winograd.tiles_of(x, kernel, zeros)
    return [*tiles[0], *tiles[1]], inputs


def _tiles_backward(x, kernel, gradients, inputs, zeros):
    return winograd.by_tiles(inputs, kernel, [gradients[:2], gradients[2:]], x.shape, zeros)


def _blocks(x, kernel, zeros):
    side, _, _, d = kernel.shape
    h, w = ((x.shape[1 + i] + sum(zeros[i]) - side + 1) // 2 for i in range(2))
    patches = _patches(x, side, zeros, h, w)
    y = (patches.reshape(-1, patches.shape[-1]) @ _four_times(kernel)).reshape(-1, h, w, 4 * d)
    return [y[..., i * d : (i + 1) * d] for i in range(4)], None


def _blocks_backward(x, kernel, gradients, _, zeros):
    side, _, c, d = kernel.shape
    h, w = gradients[0].shape[1:3]
    g = jnp.concatenate(gradients, -1).reshape(-1, 4 * d)
    patches = _patches(x, side, zeros, h, w)
    wide = patches.reshape(-1, patches.shape[-1]).T @ g  # [(K+1)^2 C, 4 D]
    moved = wide.reshape(side + 1, side + 1, c, 2, 2, d)
    dkernel = sum(moved[i : i + side, j : j + side, :, i, j] for i in range(2) for j in range(2))
    _, to_x = jax.vjp(lambda x: _patches(x, side, zeros, h, w), x)
    (dx,) = to_x((g @ _four_times(kernel).T).reshape(patches.shape))
    return dx, dkernel


_FORMS = {"blocks": (_blocks, _blocks_backward), "tiles": (_tiles, _tiles_backward)}


def _patches(x: jax.Array, side: int, zeros: winograd.Pads, h: int, w: int) -> jax.Array:
    """The (K+1)x(K+1) pixels that each window sees, [B, h, w, (K+1)^2 C], windows two pixels apart."""
    (top, _), (left, _) = zeros
    sides = zip((top, left), (h, w), x.shape[1:3], strict=True)
    edges = [(before, 2 * count + side - 1 - size - before, 0) for before, count, size in sides]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    shifted = [
        x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
        for i in range(side + 1)
        for j in range(side + 1)
    ]
    return jnp.concatenate(shifted, -1)


def _four_times(kernel: jax.Array) -> jax.Array:
    """The kernel at the four places of a window, [(K+1)^2 C, 4 D]."""
    side, _, c, d = kernel.shape
    moved = [
        jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
        for i in range(2)
        for j in range(2)
    ]
    return jnp.concatenate(moved, -1).reshape((side + 1) ** 2 * c, 4 * d)
