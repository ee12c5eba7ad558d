"""Convolution with 3x3 kernels by Winograd's algorithm F(2x2, 3x3): 16 products where a tile of outputs takes 36.

B examples, H, W height and width, C channels in, D channels out, H', W' height and width out, h = ceil(H' / 2) and
w = ceil(W' / 2) tiles.

    y = A^T ((G k G^T) * (B^T x B)) A        (Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks")

for each tile of 2x2 outputs, which takes 4x4 inputs. Over all tiles and channels the product * is 16 matrix products
[B*h*w, C] x [C, D], in two batches of 8. The transforms are additions of slices, which XLA fuses with the stack of a
batch. All tiles are four times x, and their products four times y: where that is more than the cache holds, some
pictures follow others in a loop. The sums are the convolution's in another order. At the shapes of ResNet-18 the
error is 0.7 to 2.1 times that of a direct sum in the same precision (tests/ops/test_conv.py holds it to 3 times).
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.order import after

Pads = Sequence[tuple[int, int]]  # zeros (above, below), (left, right)
# Tiles at a time, transformed and multiplied: more do not fit the cache, and of less XLA gives a product one thread.
PART_BYTES = 16 << 20
FEW_CHANNELS = 64  # products of many terms that are no larger take XLA too long
# Places whose products are one batch. XLA on a CPU fuses what it stacks of so many with the stack, and of more not.
TOGETHER = 8
Entries = list[list[jax.Array]]  # of all tiles, one array for each place in a tile


def value(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """x [B, H, W, C] padded with zeros, with kernel [3, 3, C, D] -> [B, H', W', D]."""
    return _products(x, _transformed(kernel), pads)


def by_input(kernel: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """The gradient by x, from that of the value, g [B, H', W', D]: a convolution with the kernel turned around.

    A kernel turned around has the same entries in another order. So that XLA transforms and stacks it once for both
    passes, the tiles take that order instead.
    """
    return _products(g, _transformed(kernel), [(2 - a, 2 - b) for a, b in pads], turned=True)


def by_kernel(x: jax.Array, g: jax.Array, pads: Pads) -> jax.Array:
    """The gradient by the kernel, [3, 3, C, D]: the algorithm transposed, as it is linear in the kernel.

    In parts and of few channels along the rows alone, as products that are three times as wide.
    """
    h, w = (-(-side // 2) for side in _sides(x, pads))
    c, d = x.shape[-1], g.shape[-1]
    # As many as in the other two passes: x and g would be written once more for other parts.
    parts = _parts(len(x), h * w * (c + d) * x.dtype.itemsize, jax.device_count())
    if parts > 1 and max(c, d) <= FEW_CHANNELS:
        total = _summed(partial(_row_products, pads=pads), x, g, parts)
        return jnp.stack(_to_kernel(total)).reshape(3, d, 3, c).transpose(0, 2, 3, 1)

    def products(x: jax.Array, g: jax.Array) -> list[jax.Array]:
        inputs = _on_both(_from_input, _cut(x, pads, h, w))
        changes = _on_both(_from_output, _halves(g, x.shape[1:3], pads))
        pairs = zip(_stacked(inputs), _stacked(changes), strict=True)
        return [jnp.einsum("pnc,pnd->pcd", a, b) for a, b in pairs]

    total = _summed(products, x, g, parts) if parts > 1 else products(after(g, x), g)
    return jnp.stack([jnp.stack(row) for row in _on_both(_to_kernel, _apart(total))])


def tiles_of(x: jax.Array, kernel: jax.Array, pads: Pads) -> tuple[Entries, Entries]:
    """The value in tiles, [2][2] of [B, H' // 2, W' // 2, D], a last odd row or column left out.

    Returns:
      The tiles, and x as it was multiplied, [4][4] of [B, H' // 2, W' // 2, C], for `by_tiles`.
    """
    h, w = (side // 2 for side in _sides(x, pads))
    inputs = _on_both(_from_input, _cut(x, pads, h, w))
    return _on_both(_to_output, _multiplied(inputs, _transformed(kernel))), inputs


def by_tiles(
    inputs: Entries, kernel: jax.Array, tiles: Entries, shape: tuple[int, ...], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `tiles_of` by x, of that shape, and by the kernel: both are the algorithm transposed.

    Args:
      inputs, kernel, pads: of `tiles_of`.
      tiles: the gradient of the value's tiles, [2][2] of [B, h, w, D].
      shape: of x, [B, H, W, C].
    """
    changes = _on_both(_from_output, tiles)
    turned = [[entry.T for entry in row] for row in _transformed(kernel)]
    dx = _overlapped(_on_both(_to_input, _multiplied(changes, turned)), shape, pads)
    return dx, _kernel_of(inputs, changes)


def _overlapped(entries: Entries, shape: tuple[int, ...], pads: Pads) -> jax.Array:
    """Adds tiles of 4x4 where they lie, two pixels apart: [4][4] of [B, h, w, C] -> x's shape, [B, H, W, C]."""

    def pixels(down: int, across: int) -> jax.Array:  # of one of the four places in 2x2 pixels
        parts = [
            lax.pad(
                entries[down + 2 * i][across + 2 * j],
                jnp.zeros((), entries[0][0].dtype),
                ((0, 0, 0), (i, 1 - i, 0), (j, 1 - j, 0), (0, 0, 0)),
            )
            for i in range(2)
            for j in range(2)
        ]
        return (parts[0] + parts[1]) + (parts[2] + parts[3])

    padded = _interleaved([[pixels(i, j) for j in range(2)] for i in range(2)])
    (top, _), (left, _) = pads
    sides = zip((top, left), shape[1:3], padded.shape[1:3], strict=True)
    edges = [(-before, before + size - there, 0) for before, size, there in sides]
    return lax.pad(padded, jnp.zeros((), padded.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _products(x: jax.Array, entries: Entries, pads: Pads, *, turned: bool = False) -> jax.Array:
    h, w = _sides(x, pads)
    down, across = -(-h // 2), -(-w // 2)
    c, d = entries[0][0].shape[:: -1 if turned else 1]
    form = "pnc,pdc->pnd" if turned else "pnc,pcd->pnd"
    order = _turned if turned else list
    kernels = _stacked(entries)

    def some(x: jax.Array) -> jax.Array:
        inputs = _stacked(order(_on_both(_from_input, _cut(x, pads, down, across))))
        products = [jnp.einsum(form, a, b) for a, b in zip(inputs, kernels, strict=True)]
        tiles = _on_both(_to_output, order(_apart(products)))
        tiles = [[tile.reshape(-1, down, across, d) for tile in row] for row in tiles]
        return _interleaved(tiles)[:, :h, :w]

    parts = _parts(len(x), down * across * (c + d) * x.dtype.itemsize, jax.device_count())
    if parts == 1:
        return some(x)
    x = _cut_up(x, parts)

    def put(i: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(y, some(_part(x, i)), i, 1)

    # Not before x: of equal zeros XLA makes one for all layers, at the start, and copies that for each.
    zeros = after(x, jnp.zeros((*x.shape[:2], h, w, d), x.dtype))
    return lax.fori_loop(0, parts, put, zeros).reshape(-1, h, w, d)


def _row_products(x: jax.Array, g: jax.Array, pads: Pads) -> list[jax.Array]:
    """Of each of the 4 rows in a tile the products with x at the kernel's 3 columns, [D, 3 * C]."""
    h, w = _sides(x, pads)
    x, g = _padded(x, pads, -(-h // 2) * 2, w), jnp.pad(g, ((0, 0), (0, h % 2), (0, 0), (0, 0)))
    inputs = _from_input([x[:, i : i + h : 2] for i in range(4)])
    changes = _from_output([g[:, i::2] for i in range(2)])
    columns = [jnp.concatenate([row[:, :, j : j + w] for j in range(3)], -1) for row in inputs]
    pairs = zip(changes, columns, strict=True)
    return [jnp.einsum("nd,nc->dc", *(a.reshape(-1, a.shape[-1]) for a in pair)) for pair in pairs]


def _summed(products: Callable, x: jax.Array, g: jax.Array, parts: int) -> list[jax.Array]:
    """The sum of the products of x and g over equal parts of a batch, one after another."""
    x, g = _cut_up(x, parts), _cut_up(g, parts)

    def add(i: jax.Array, total: list[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(total, products(_part(x, i), _part(g, i)), strict=True)]

    like = jax.eval_shape(products, x[:, 0], g[:, 0])
    return lax.fori_loop(0, parts, add, [jnp.zeros(a.shape, a.dtype) for a in like])


def _parts(b: int, place: int, devices: int) -> int:
    """Into how many equal parts a batch is cut: at least PART_BYTES on each device, and whole rows for all of them.

    Args:
      place: bytes of an example for one of the 16 places.
    """
    fewest = devices * -(-PART_BYTES // (16 * place))
    return next((n for n in range(b, 1, -1) if b % (n * devices) == 0 and b // n >= fewest), 1)


def _cut_up(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [B / parts, parts, ...]: devices that hold rows of their own keep them."""
    return x.reshape(-1, parts, *x.shape[1:])


def _part(x: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, i, 1, keepdims=False)


def _turned(entries: Entries) -> Entries:
    """[4][4] of a kernel or its tiles, for the kernel turned around; its own inverse."""
    return [[entries[i][j] for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]


def _stacked(entries: Entries) -> list[jax.Array]:
    """[4][4] of [..., C] -> 16 / TOGETHER of [TOGETHER, N, C]."""
    flat = [entry.reshape(-1, entry.shape[-1]) for row in entries for entry in row]
    return [jnp.stack(flat[i : i + TOGETHER]) for i in range(0, 16, TOGETHER)]


def _apart(stacks: list[jax.Array]) -> Entries:
    """The inverse, but for the shape of an entry, [N, C]."""
    flat = [stack[i] for stack in stacks for i in range(TOGETHER)]
    return [flat[i : i + 4] for i in range(0, 16, 4)]


def _multiplied(inputs: Entries, entries: Entries) -> Entries:
    """[4][4] of [B, h, w, C] with [4][4] of [C, D]."""
    return [
        [
            (tile.reshape(-1, tile.shape[-1]) @ entry).reshape(*tile.shape[:3], -1)
            for tile, entry in zip(*rows, strict=True)
        ]
        for rows in zip(inputs, entries, strict=True)
    ]


def _kernel_of(inputs: Entries, changes: Entries) -> jax.Array:
    """The kernel's gradient from x and the value's gradient, both transformed."""
    products = [
        [
            tile.reshape(-1, tile.shape[-1]).T @ change.reshape(-1, change.shape[-1])
            for tile, change in zip(*rows, strict=True)
        ]
        for rows in zip(inputs, changes, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _on_both(_to_kernel, products)])


def _interleaved(tiles: Entries) -> jax.Array:
    """[2][2] of [B, h, w, D] -> [B, 2h, 2w, D]."""
    y = jnp.stack([jnp.stack(row, 3) for row in tiles], 2)  # [B, h, 2, w, 2, D]
    return y.reshape(len(y), y.shape[1] * 2, y.shape[3] * 2, -1)


def _transformed(kernel: jax.Array) -> Entries:
    """G k G^T: [4][4] of [C, D]."""
    return _on_both(_of_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])


def _sides(x: jax.Array, pads: Pads) -> tuple[int, int]:
    """H', W'."""
    return x.shape[1] + sum(pads[0]) - 2, x.shape[2] + sum(pads[1]) - 2


def _cut(x: jax.Array, pads: Pads, h: int, w: int) -> Entries:
    """Of each of h x w tiles each of its 4x4 entries: [4][4] of [B, h, w, C]."""
    x = _padded(x, pads, 2 * h, 2 * w)
    return [[x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for j in range(4)] for i in range(4)]


def _padded(x: jax.Array, pads: Pads, h: int, w: int) -> jax.Array:
    """With the zeros, and as much as h x w outputs take: [B, h + 2, w + 2, C]."""
    (top, _), (left, _) = pads
    down, across = h + 2 - x.shape[1] - top, w + 2 - x.shape[2] - left
    edges = ((0, 0, 0), (top, down, 0), (left, across, 0), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), edges)  # negative: cut off


def _halves(g: jax.Array, sides: Sequence[int], pads: Pads) -> Entries:
    """Of every tile of g each of its 2x2 entries: [2][2] of [B, h, w, D]; `sides` are H, W.

    From g with the zeros that `by_input` needs around it, which are more than it takes here. For XLA writes that array
    once, but what makes g, such as the gradient of a norm, it would compute again for each of the 16 transforms.
    """
    zeros, ends = [(0, 0)], []
    for side, (before, _), size in zip(sides, pads, g.shape[1:3], strict=True):
        top, even = 2 - before, size + size % 2
        zeros.append((top, max(side + side % 2 + 2 - top, even) - size))
        ends.append((top, top + even))
    (top, bottom), (left, right) = ends
    g = jnp.pad(g, (*zeros, (0, 0)))
    return [[g[:, top + i : bottom : 2, left + j : right : 2] for j in range(2)] for i in range(2)]


def _on_both(transform: Callable, entries: Entries) -> Entries:
    """The transform along the columns and then along the rows of [rows][columns]."""
    down = [transform(column) for column in zip(*entries, strict=True)]
    return [transform(row) for row in zip(*down, strict=True)]


def _from_input(d: Sequence[jax.Array]) -> list[jax.Array]:  # B^T
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _to_input(v: Sequence[jax.Array]) -> list[jax.Array]:  # B
    return [v[0], v[1] - v[2] + v[3], v[1] + v[2] - v[0], -v[3]]


def _of_kernel(k: Sequence[jax.Array]) -> list[jax.Array]:  # G
    ends = k[0] + k[2]
    return [k[0], (ends + k[1]) / 2, (ends - k[1]) / 2, k[2]]


def _to_kernel(u: Sequence[jax.Array]) -> list[jax.Array]:  # G^T
    half = (u[1] + u[2]) / 2
    return [u[0] + half, (u[1] - u[2]) / 2, half + u[3]]


def _to_output(m: Sequence[jax.Array]) -> list[jax.Array]:  # A^T
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _from_output(y: Sequence[jax.Array]) -> list[jax.Array]:  # A
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]
