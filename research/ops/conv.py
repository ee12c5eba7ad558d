"""Convolution of pictures, in the forms that are fast on a CPU.

B examples, H, W height and width, K, N kernel height and width, C channels in, D channels out.

XLA's forward convolution and its gradient by the input are good on a CPU but for two cases. With 1x1 kernels the matrix
product that they are takes down to a third of the time. With 3x3 kernels, no steps and many channels Winograd's
algorithm (research/ops/winograd.py) takes about half.

Its gradient by the kernel is bad there: it contracts over B*H*W, up to millions of terms, for a result of a few
thousand numbers. Winograd's algorithm takes half to two thirds of its time. As matrix products (`_by_rows`) it takes a
fifth of the time for 1x1 kernels, half for pictures of one channel, and less than XLA's up to about 32 channels, up to
64 for small pictures, and where the kernel makes steps; else the copies cost more than they save. XLA's time grows
faster than the batch: 6.6 ms with 128 pictures of 13 x 13 x 32 and 124 with 1,024, where the products take 5.1 and 24,
some pictures at a time, so that their copies stay in the cache. benchmarks/ops.py prints the comparison.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.ops import winograd
from research.ops.dense import dense
from research.ops.dtypes import sums_dtype
from research.ops.order import after, apart
from research.ops.platform import is_portable

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Bytes of copies at a time: what does not fit a core's share of the cache costs too much.
CACHE_BYTES = 4 << 20
FEWEST = 8  # examples at a time
TILES = 128  # for fewer, the transform of the kernel takes longer than what it saves
FEW = 512  # outputs


def conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """Convolves (as the field says; mathematically, correlates) pictures with a kernel.

    y[b, h, w, d] = sum_{k, n, c} x[b, h * stride + k, w * stride + n, c] * kernel[k, n, c, d], x padded with zeros.

    Args:
      x: [B, H, W, C].
      kernel: [K, N, C, D], of the same dtype.
      stride: steps between outputs, in pixels, along both axes.
      padding: 'SAME' (ceil(H / stride) rows come out), 'VALID' (no padding), or pixels on every side.

    Returns:
      [B, H', W', D]. Where the kernel's gradient is rewritten, forward-mode differentiation is not defined.
    """
    if is_portable():
        return conv2d_plain(x, kernel, stride=stride, padding=padding)
    tiles = _tiles_are_fast(x, kernel, stride, padding)
    rewritten = tiles or _rows_are_fast(x.shape, kernel.shape, stride)
    convolve = _conv2d if rewritten else _plain
    if not tiles and _stands_apart(x.shape, kernel.shape, stride):
        return apart(convolve(apart(x), kernel, stride, padding))
    return convolve(x, kernel, stride, padding)


def conv2d_plain(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """The reference, and what GPU and TPU run: XLA's convolution with XLA's gradients."""
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads(x, kernel, stride, padding), dimension_numbers=LAYOUT
    )


def pads(x: jax.Array, kernel: jax.Array, stride: int, padding: str | int) -> list[tuple[int, int]]:
    """Zeros (above, below), (left, right)."""
    if isinstance(padding, int):
        return [(padding, padding)] * 2
    return lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)


def _rows_are_fast(x: tuple, kernel: tuple, stride: int) -> bool:
    """Where `_by_rows` beats XLA's kernel gradient on a CPU; measured on jax 0.10.2 and 0.12.0.1."""
    b, (rows, cols, c, d) = x[0], kernel
    if rows == cols == 1:
        return True
    if not isinstance(b, int):  # left open, in a program that only predicts
        return False
    if stride > 1 and c >= 64:  # XLA's, with steps in the kernel, copies both operands
        return d >= 32
    parts = _parts(x, kernel, stride)
    few = parts == 1 or x[1] * x[2] <= 64  # pixels; more were measured in one part only
    return d >= 32 and (c <= 4 or (c <= 32 and parts > 0) or (c <= 64 and parts > 0 and few))


def _parts(x: tuple, kernel: tuple, stride: int) -> int:
    """Into how many equal parts a batch is cut, so that the copies of each fit the cache; 0 where they never do."""
    (b, h, w, c), cols = x, kernel[1]
    copies = 4 * h * (w // stride) * cols * c  # bytes of an example
    fitting = (
        n for n in range(1, b // FEWEST + 1) if b % n == 0 and b // n * copies <= CACHE_BYTES
    )
    return next(fitting, int(b * copies <= CACHE_BYTES))


def _tiles_are_fast(x: jax.Array, kernel: jax.Array, stride: int, padding: str | int) -> bool:
    """Where Winograd's algorithm beats XLA's convolution on a CPU; measured on jax 0.10.2 and 0.12.0.1."""
    rows, cols, c, d = kernel.shape
    if (rows, cols, stride) != (3, 3, 1) or min(c, d) < 64 or not isinstance(x.shape[0], int):
        return False
    if x.dtype not in (jnp.float32, jnp.float64):
        return False  # a sum of two inputs would be rounded before it is multiplied
    zeros = pads(x, kernel, stride, padding)
    sides = [size + sum(zero) - 2 for size, zero in zip(x.shape[1:3], zeros, strict=True)]
    if min(sides) < 1 or not all(0 <= zero <= 2 for pair in zeros for zero in pair):
        return False
    tiles = -(-sides[0] // 2) * -(-sides[1] // 2)
    filled = sides[0] * sides[1] / (4 * tiles)
    return filled > 0.75 and x.shape[0] * tiles >= TILES


def _stands_apart(x: tuple, kernel: tuple, stride: int) -> bool:
    """Where a chain of convolutions costs more on a CPU than its links.

    Of a few outputs, as of one picture, XLA (jax 0.10) makes one fusion of all that stands between two reductions:
    seven convolutions of ResNet-18 that then take 12 ms instead of 3.
    """
    if not isinstance(x[0], int):
        return False
    outputs = x[0] * (x[1] // stride) * (x[2] // stride)
    inside = x[1] >= kernel[0] > 1 and x[2] >= kernel[1]
    return inside and kernel[2] >= 64 and 0 < outputs <= FEW


def _plain(x: jax.Array, kernel: jax.Array, stride: int, padding: str | int) -> jax.Array:
    return conv2d_plain(x, kernel, stride=stride, padding=padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    plain = partial(conv2d_plain, stride=stride, padding=padding)
    if _is_product(kernel, stride, padding):
        fast = lambda x, kernel: dense(x, kernel[0, 0])  # noqa: E731
    elif _tiles_are_fast(x, kernel, stride, padding):
        fast = partial(winograd.value, pads=pads(x, kernel, stride, padding))
    else:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain)


def _is_product(kernel: jax.Array, stride: int, padding: str | int) -> bool:
    return kernel.shape[:2] == (1, 1) and stride == 1 and padding in ("SAME", "VALID", 0)


def _forward(x, kernel, stride, padding):
    return _conv2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    x, kernel = saved
    plain = partial(conv2d_plain, stride=stride, padding=padding)

    def by_input(kernel, g):
        return jax.vjp(lambda x: plain(x, kernel), x)[1](g)[0]

    def by_kernel(x, kernel, g):
        return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)[0]

    fast_by_input: Callable = by_input
    fast_by_kernel: Callable = partial(_in_parts, stride=stride, padding=padding)
    if _is_product(kernel, stride, padding):
        fast_by_input = lambda kernel, g: dense(g, kernel[0, 0].T)  # noqa: E731
    elif _tiles_are_fast(x, kernel, stride, padding):
        zeros = pads(x, kernel, stride, padding)
        fast_by_input = partial(winograd.by_input, pads=zeros)
        fast_by_kernel = lambda x, kernel, g: winograd.by_kernel(x, g, zeros)  # noqa: E731
    if fast_by_input is by_input:
        dx = by_input(kernel, g)
    else:
        dx = lax.platform_dependent(kernel, g, cpu=fast_by_input, default=by_input)
    dkernel = lax.platform_dependent(x, kernel, g, cpu=fast_by_kernel, default=by_kernel)
    return dx, dkernel


_conv2d.defvjp(_forward, _backward)


def _in_parts(x: jax.Array, kernel: jax.Array, g: jax.Array, *, stride: int, padding: str | int):
    """`_by_rows` of some examples after others, where their copies are too many at once."""
    by_rows = partial(_by_rows, stride=stride, padding=padding)
    parts = _parts(x.shape, kernel.shape, stride)
    if parts == 1:  # copies that are few enough to be made, and kept, in the forward pass
        return by_rows(x, kernel, g).astype(kernel.dtype)
    if parts == 0 or x.shape[-1] >= 64 or kernel.shape[:2] == (1, 1):
        return by_rows(after(g, x), kernel, g).astype(kernel.dtype)
    # Each part holds every so many-th example: devices that hold rows of their own keep them.
    x, g = (a.reshape(-1, parts, *a.shape[1:]) for a in (x, g))

    def add(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        some, slopes = (lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (x, g))
        return total + by_rows(some, kernel, slopes), None

    zeros = jnp.zeros(kernel.shape, sums_dtype(kernel.dtype))
    return lax.scan(add, zeros, jnp.arange(parts))[0].astype(kernel.dtype)


def _by_rows(x: jax.Array, kernel: jax.Array, g: jax.Array, *, stride: int, padding: str | int):
    """The kernel's gradient as K products [N*C, B*H'*W'] x [B*H'*W', D], one a kernel row.

    The N shifted copies of the picture stand side by side once; each kernel row slices its picture rows from them.
    The result is float32 at least.
    """
    (k, n, c, d), (_, h, w, _) = kernel.shape, g.shape
    wide = sums_dtype(kernel.dtype)
    x = jnp.pad(x.astype(wide), ((0, 0), *pads(x, kernel, stride, padding), (0, 0)))
    g = g.astype(wide).reshape(-1, d)
    across = [x[:, :, j : j + (w - 1) * stride + 1 : stride] for j in range(n)]
    columns = jnp.concatenate(across, -1)  # [B, H + padding, W', N*C]
    rows = [columns[:, i : i + (h - 1) * stride + 1 : stride].reshape(-1, n * c) for i in range(k)]
    products = [jnp.einsum("nc,nd->cd", row, g) for row in rows]
    return jnp.stack(products).reshape(kernel.shape)
