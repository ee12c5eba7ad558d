"""The convolution against its sum written out in NumPy, and its gradients against XLA's and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.ops import conv

# x, kernel, stride, padding; all of them take the rewritten kernel gradient
FAST = [
    ((3, 7, 6, 1), (3, 3, 1, 32), 1, "VALID"),
    ((2, 6, 7, 3), (3, 3, 3, 32), 1, "SAME"),
    ((2, 8, 7, 2), (3, 3, 2, 32), 2, "SAME"),
    ((2, 8, 9, 2), (3, 3, 2, 32), 2, 1),
    ((2, 6, 6, 2), (2, 4, 2, 32), 1, "SAME"),
    ((2, 8, 8, 3), (4, 4, 3, 32), 4, "VALID"),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, "SAME"),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, 0),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, 1),
    ((2, 5, 6, 7), (1, 1, 7, 5), 2, "VALID"),
]


def arrays(*shapes, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def written_out(x, kernel, stride, padding):
    rows, columns = kernel.shape[:2]
    if padding == "SAME":
        sides = [-(-x.shape[axis] // stride) for axis in (1, 2)]
        totals = [
            max((side - 1) * stride + size - x.shape[axis], 0)
            for side, size, axis in zip(sides, (rows, columns), (1, 2), strict=True)
        ]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        pads = [(padding or 0, padding or 0) if isinstance(padding, int) else (0, 0)] * 2
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]), x.dtype)
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + rows, j * stride : j * stride + columns]
            y[:, i, j] = np.einsum("bklc,klcd->bd", window, kernel)
    return y


@pytest.mark.parametrize(("x", "kernel", "stride", "padding"), FAST)
def test_forward_is_the_sum(x, kernel, stride, padding):
    x, kernel = arrays(x, kernel)
    assert conv._rows_are_fast(x.shape, kernel.shape, stride)
    got = conv.conv2d(x, kernel, stride=stride, padding=padding)
    np.testing.assert_allclose(got, written_out(x, kernel, stride, padding), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("x", "kernel", "stride", "padding"), FAST)
def test_gradients_are_those_of_the_sum(x, kernel, stride, padding):
    # The sum is bilinear: <g, conv(x, k)> = <dk, k> for every k, so kernels with a single 1 give dk exactly.
    x, kernel = arrays(x, kernel)
    y = written_out(x, kernel, stride, padding)
    (g,) = arrays(y.shape, seed=1)
    run = jax.jit(
        lambda x, k: jax.vjp(lambda *a: conv.conv2d(*a, stride=stride, padding=padding), x, k)[1](g)
    )
    dx, dkernel = run(x, kernel)
    plain = jax.vjp(lambda *a: conv.conv2d_plain(*a, stride=stride, padding=padding), x, kernel)[1](
        g
    )
    np.testing.assert_allclose(dx, plain[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dkernel, plain[1], rtol=1e-4, atol=1e-4)
    for k in np.ndindex(*kernel.shape[:3]):
        probe = np.zeros((*kernel.shape[:3], 1), np.float32)
        probe[k] = 1
        expected = np.einsum("bhwo,bhwd->d", written_out(x, probe, stride, padding), g)
        np.testing.assert_allclose(dkernel[k], expected, rtol=1e-4, atol=1e-4)


def test_gradient_against_differences():
    # In float64: a central difference of a bilinear sum is exact but for rounding.
    with jax.enable_x64(True):
        x, kernel = arrays((2, 6, 5, 2), (3, 3, 2, 32), dtype=np.float64)
        (direction,) = arrays(kernel.shape, seed=2, dtype=np.float64)

        def loss(k):
            return jnp.sum(conv.conv2d(x, k) ** 3)

        slope = jnp.vdot(jax.grad(loss)(jnp.asarray(kernel)), direction)
        h = 1e-5
        difference = (loss(kernel + h * direction) - loss(kernel - h * direction)) / (2 * h)
        np.testing.assert_allclose(slope, difference, rtol=1e-7)


def test_only_fast_shapes_are_rewritten():
    assert not conv._rows_are_fast(
        (64, 32, 32, 64), (3, 3, 64, 64), 1
    )  # the copies would be slower
    assert not conv._rows_are_fast((128, 28, 28, 8), (3, 3, 8, 16), 1)
    assert conv._rows_are_fast((128, 13, 13, 32), (3, 3, 32, 64), 1)


def test_bfloat16_stays_and_sums_in_float32():
    x, kernel = arrays((8, 12, 12, 1), (3, 3, 1, 32))
    x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)

    def loss(f, k):
        return f(x, k, padding="SAME").astype(jnp.float32).sum()

    grad = jax.grad(lambda k: loss(conv.conv2d, k))(kernel)
    assert grad.dtype == jnp.bfloat16
    wide = jax.grad(lambda k: conv.conv2d_plain(x.astype(jnp.float32), k).sum())(
        kernel.astype(jnp.float32)
    )
    # One rounding to 8 bits at the end.
    np.testing.assert_allclose(grad.astype(np.float32), wide, rtol=2**-8, atol=1e-3)


def test_1x1_is_a_product_on_a_cpu_and_a_convolution_elsewhere():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 9, 9, 6), (1, 1, 6, 5)))

    def convolutions(platform):
        def both(x, k):
            y, back = jax.vjp(conv.conv2d, x, k)
            return y, back(y)

        lowered = jax.jit(both).trace(x, kernel).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    assert convolutions("cpu") == 0
    assert convolutions("cuda") == convolutions("tpu") == 3


def test_1x1_in_bfloat16_sums_in_float32():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in arrays((2, 5, 5, 300), (1, 1, 300, 4)))
    y, back = jax.vjp(conv.conv2d, x, kernel)
    wide, wide_back = jax.vjp(conv.conv2d_plain, x.astype(jnp.float32), kernel.astype(jnp.float32))
    pairs = zip((y, *back(y)), (wide, *wide_back(y.astype(jnp.float32))), strict=True)
    for ours, exact in pairs:
        assert ours.dtype == jnp.bfloat16
        # One rounding to 8 bits at the end.
        np.testing.assert_allclose(ours.astype(np.float32), exact, rtol=2**-8, atol=1e-2)


def test_a_batch_over_four_devices():
    x, kernel = arrays((8, 9, 9, 1), (3, 3, 1, 32))

    def gradients(x, k):
        return jax.grad(lambda x, k: jnp.sum(conv.conv2d(x, k) ** 2), (0, 1))(x, k)

    alone = gradients(x, kernel)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    meshed = jax.jit(gradients, out_shardings=(cut, whole))(
        jax.device_put(x, cut), jax.device_put(kernel, whole)
    )
    mapped = jax.pmap(gradients, in_axes=(0, None))(x.reshape(4, 2, 9, 9, 1), kernel)
    for one, two, three in zip(
        alone, meshed, (mapped[0].reshape(x.shape), mapped[1].sum(0)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-4)


def test_lowered_for_gpu_and_tpu_it_is_the_plain_form():
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 9, 9, 1), (3, 3, 1, 32))
    )

    def text(platform):
        traced = jax.jit(jax.grad(lambda x, k: conv.conv2d(x, k).sum(), 1)).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "dot_general" in text("cpu")
    for platform in ("cuda", "tpu"):
        assert "dot_general" not in text(platform)
