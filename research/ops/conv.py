"""Convolution of pictures, with the weight gradient in the form that is fast on a CPU.

B examples, H, W height and width, K, N kernel height and width, C channels in, D channels out.

XLA's forward convolution and its gradient by the input are good everywhere but for 1x1 kernels, where on a CPU the
matrix product that they are takes down to a third of the time. Its gradient by the kernel is not, on a CPU: there it
contracts over B*H*W, up to millions of terms, for a result of a few thousand numbers. As matrix products (`_by_rows`)
it takes a fifth of the time for 1x1 kernels, half for pictures of one channel, and less than XLA's up to about 32
channels; above that the copies cost more than they save. benchmarks/ops.py prints the comparison.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.dense import dense

LAYOUT = ("NHWC", "HWIO", "NHWC")
CACHE_BYTES = 8 << 20  # copies that do not fit a core's share of the cache cost too much


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
    if not _rows_are_fast(x.shape, kernel.shape, stride):
        return conv2d_plain(x, kernel, stride=stride, padding=padding)
    return _conv2d(x, kernel, stride, padding)


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
    (b, h, w, _), (rows, cols, c, d) = x, kernel
    if rows == cols == 1:
        return True
    if not isinstance(b, int):  # left open, in a program that only predicts
        return False
    copies = 4 * b * h * (w // stride) * cols * c  # bytes
    return d >= 32 and (c <= 4 or (c <= 32 and copies <= CACHE_BYTES))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: jax.Array, kernel: jax.Array, stride: int, padding: str) -> jax.Array:
    plain = partial(conv2d_plain, stride=stride, padding=padding)
    if not _is_product(kernel, stride, padding):
        return plain(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, kernel: dense(x, kernel[0, 0]), default=plain
    )


def _is_product(kernel: jax.Array, stride: int, padding: str | int) -> bool:
    return kernel.shape[:2] == (1, 1) and stride == 1 and padding in ("SAME", "VALID", 0)


def _forward(x, kernel, stride, padding):
    return _conv2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    x, kernel = saved
    plain = partial(conv2d_plain, stride=stride, padding=padding)

    def by_input(kernel, g):
        return jax.vjp(lambda x: plain(x, kernel), x)[1](g)[0]

    if _is_product(kernel, stride, padding):
        product = lambda kernel, g: dense(g, kernel[0, 0].T)  # noqa: E731
        dx = lax.platform_dependent(kernel, g, cpu=product, default=by_input)
    else:
        dx = by_input(kernel, g)
    dkernel = lax.platform_dependent(
        x,
        kernel,
        g,
        cpu=partial(_by_rows, stride=stride, padding=padding),
        default=lambda x, kernel, g: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)[0],
    )
    return dx, dkernel


_conv2d.defvjp(_forward, _backward)


def _by_rows(x: jax.Array, kernel: jax.Array, g: jax.Array, *, stride: int, padding: str | int):
    """The kernel's gradient as K products [N*C, B*H'*W'] x [B*H'*W', D], one a kernel row.

    The N shifted copies of the picture stand side by side once; each kernel row slices its picture rows from them.
    Sums are in float32 or wider.
    """
    (k, n, c, d), (_, h, w, _) = kernel.shape, g.shape
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    x = jnp.pad(x.astype(wide), ((0, 0), *pads(x, kernel, stride, padding), (0, 0)))
    g = g.astype(wide).reshape(-1, d)
    across = [x[:, :, j : j + (w - 1) * stride + 1 : stride] for j in range(n)]
    columns = jnp.concatenate(across, -1)  # [B, H + padding, W', N*C]
    rows = [columns[:, i : i + (h - 1) * stride + 1 : stride].reshape(-1, n * c) for i in range(k)]
    products = [jnp.einsum("nc,nd->cd", row, g) for row in rows]
    return jnp.stack(products).reshape(kernel.shape).astype(kernel.dtype)
