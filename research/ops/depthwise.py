"""Depthwise convolution: every channel with a kernel of its own, in the form that is fast on a CPU.

B examples, H, W height and width, K, N kernel height and width, C channels, H', W' height and width out, s stride.

XLA has it as a grouped convolution with C groups, which its CPU backend runs at a few percent of the machine's speed,
and its gradients slower still. Here it is a sum of K*N shifted pictures, each times one number a channel: XLA fuses the
sum into one loop over the output, vectorised over channels. At the sizes of EfficientNet-Lite that takes a twentieth to
a sixtieth of the time, the gradient by pictures a tenth or less, that by the kernel a third or less. benchmarks/ops.py
prints the comparison.
"""

import operator
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

from research.ops.conv import LAYOUT, pads
from research.ops.dtypes import widened

SUMS_AT_ONCE = 9  # of one loop; many more no longer fit the registers


def depthwise_conv2d(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """Convolves each channel with its own kernel (Howard et al. 2017, MobileNets).

    y[b, h, w, c] = sum_{k, n} x[b, h * stride + k, w * stride + n, c] * kernel[k, n, 0, c], x padded with zeros.

    Args:
      x: [B, H, W, C].
      kernel: [K, N, 1, C], of the same dtype.
      stride: steps between outputs, in pixels, along both axes.
      padding: 'SAME' (ceil(H / stride) rows come out; of an odd number of zeros the last row and column get one more,
        as TensorFlow has it), 'VALID' (no padding), or pixels on every side.

    Returns:
      [B, H', W', C]. Forward-mode differentiation is not defined.

    Raises:
      ValueError: the kernel is not [K, N, 1, C] for the C of x.
    """
    if kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"a depthwise kernel for {x.shape[-1]} channels is [K, N, 1, {x.shape[-1]}], not {list(kernel.shape)}"
        )
    return _depthwise(x, kernel, stride, padding)


def depthwise_conv2d_plain(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: str | int = "SAME"
) -> jax.Array:
    """The reference, and what GPU and TPU run: XLA's grouped convolution with XLA's gradients."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads(x, kernel, stride, padding),
        dimension_numbers=LAYOUT,
        feature_group_count=x.shape[-1],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: str | int) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted, stride=stride, padding=padding),
        default=partial(depthwise_conv2d_plain, stride=stride, padding=padding),
    )


def _forward(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    how = dict(stride=stride, padding=padding)

    def plain(x, kernel, g):
        return jax.vjp(partial(depthwise_conv2d_plain, **how), x, kernel)[1](g)

    def shifted(x, kernel, g):
        return _by_input(x, kernel, g, **how), _by_kernel(x, kernel, g, **how)

    return lax.platform_dependent(*saved, g, cpu=shifted, default=plain)


_depthwise.defvjp(_forward, _backward)


def _shifts(x: jax.Array, kernel: jax.Array, stride: int, padding: str | int) -> list[jax.Array]:
    """The K*N pictures [B, H', W', C] that meet the kernel's entries, in reading order."""
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *pads(x, kernel, stride, padding), (0, 0)))
    return [
        x[:, i : x.shape[1] - rows + i + 1 : stride, j : x.shape[2] - columns + j + 1 : stride]
        for i, j in product(range(rows), range(columns))
    ]


def _shifted(x: jax.Array, kernel: jax.Array, *, stride: int, padding: str | int) -> jax.Array:
    dtype = x.dtype
    x, kernel = widened(x), widened(kernel)
    shifts = _shifts(x, kernel, stride, padding)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return sum(shift * weight for shift, weight in zip(shifts, weights, strict=True)).astype(dtype)


def _by_input(x, kernel, g, *, stride: int, padding: str | int) -> jax.Array:
    """The gradient by x: s*s shifted sums, one for the rows and columns of x at each remainder modulo s.

    With i = s * q + p of the padded picture, dx[i] = sum_m g[q - m] * kernel[s * m + p]: no product with the zeros that
    stand between the rows of g where it is written as one convolution.
    """
    (rows, columns), (_, height, width, channels) = kernel.shape[:2], x.shape
    (top, _), (left, _) = pads(x, kernel, stride, padding)
    above, beside = (rows - 1) // stride, (columns - 1) // stride
    down, across = -(-(top + height) // stride), -(-(left + width) // stride)  # q = 0..down-1
    kernel, wide = widened(kernel), widened(g)
    below, after = max(down - g.shape[1], 0), max(across - g.shape[2], 0)
    wide = jnp.pad(wide, ((0, 0), (above, below), (beside, after), (0, 0)))

    def phase(p: int, o: int) -> jax.Array:  # [B, down, across, C]
        terms = [
            wide[:, above - m : above - m + down, beside - n : beside - n + across]
            * kernel[stride * m + p, stride * n + o, 0]
            for m in range(-(-(rows - p) // stride))
            for n in range(-(-(columns - o) // stride))
        ]
        return sum(terms, jnp.zeros((x.shape[0], down, across, channels), wide.dtype)).astype(
            x.dtype
        )

    dx = jnp.stack([jnp.stack([phase(p, o) for o in range(stride)], 3) for p in range(stride)], 2)
    dx = dx.reshape(x.shape[0], down * stride, across * stride, channels)
    return dx[:, top : top + height, left : left + width]


def _by_kernel(x, kernel, g, *, stride: int, padding: str | int) -> jax.Array:
    """The gradient by the kernel: K*N sums over B, H', W', several in one pass over the pictures."""
    x, g = widened(x), widened(g)
    products = [shift * g for shift in _shifts(x, kernel, stride, padding)]
    step = len(products) if len(products) <= SUMS_AT_ONCE else kernel.shape[1]
    sums: list[jax.Array] = []
    for i in range(0, len(products), step):
        sums += [part.sum((0, 1)) for part in _sums(products[i : i + step])]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


def _sums(arrays: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Each of the arrays [B, H', W', C] summed over W', in one loop that reads what they share once."""
    zeros = (jnp.zeros((), arrays[0].dtype),) * len(arrays)
    add = lambda a, b: tuple(map(operator.add, a, b))  # noqa: E731
    return lax.reduce(tuple(arrays), zeros, add, (2,))
