"""The depthwise convolution against its sum in NumPy, and its gradients against that sum and against differences."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.ops.depthwise import depthwise_conv2d, depthwise_conv2d_plain

# x, (K, N), stride, padding
CASES = [
    ((2, *side, 5), (k, k), stride, padding)
    for side, k, stride in product(((7, 6), (8, 9)), (3, 5), (1, 2))
    for padding in ("SAME", "VALID", k // 2)
] + [
    ((3, 2, 1, 4), (5, 5), 1, "SAME"),  # a kernel larger than the picture
    ((3, 2, 1, 4), (5, 5), 2, "SAME"),
    ((2, 6, 7, 3), (2, 4), 1, "SAME"),
    ((2, 9, 8, 3), (3, 2), 3, "VALID"),
    ((2, 9, 8, 3), (1, 1), 2, "VALID"),  # rows of x that no window meets
    ((1, 6, 6, 2), (3, 3), 1, 3),  # windows of zeros alone
]


def arrays(*shapes, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def given(shape, size, **how):
    return arrays(shape, (*size, 1, shape[-1]), **how)


def windows(x, size, stride, padding):
    """[B, H', W', K, N, C], TensorFlow's rule for 'SAME': the odd zero goes to the end."""
    pads = [(0, 0)] * 2 if padding == "VALID" else [(padding, padding)] * 2
    if padding == "SAME":
        sides = [(length, -(-length // stride)) for length in x.shape[1:3]]
        total = [
            max((out - 1) * stride + k - length, 0)
            for (length, out), k in zip(sides, size, strict=True)
        ]
        pads = [(zeros // 2, zeros - zeros // 2) for zeros in total]
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    found = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))
    return np.moveaxis(found[:, ::stride, ::stride], 3, -1)


def written_out(x, kernel, stride, padding):
    return np.einsum(
        "bhwknc,knc->bhwc", windows(x, kernel.shape[:2], stride, padding), kernel[:, :, 0]
    )


@pytest.mark.parametrize(("shape", "size", "stride", "padding"), CASES)
def test_value_and_gradients_are_those_of_the_sum(shape, size, stride, padding):
    x, kernel = given(shape, size)
    expected = written_out(x, kernel, stride, padding)
    (g,) = arrays(expected.shape, seed=1)

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(
            lambda *a: depthwise_conv2d(*a, stride=stride, padding=padding), x, kernel
        )
        return y, *back(g)

    y, dx, dkernel = run(x, kernel)
    # float32 sums of up to 25 terms; for the kernel's gradient of up to 160.
    close = dict(rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(y, expected, **close)
    meets = np.einsum("bhwknc,bhwc->knc", windows(x, size, stride, padding), g)
    np.testing.assert_allclose(dkernel[:, :, 0], meets, **close)
    # The sum is linear in x: <g, f(e)> = dx[e] for every picture e with a single 1, all of a channel's at once.
    places = list(np.ndindex(*shape[1:3]))
    ones = np.zeros((len(places), *shape[1:]), np.float32)
    for i, place in enumerate(places):
        ones[i][place] = 1
    expected = np.einsum("phwc,bhwc->bpc", written_out(ones, kernel, stride, padding), g)
    np.testing.assert_allclose(np.reshape(dx, expected.shape), expected, **close)


@pytest.mark.parametrize("padding", ["SAME", "VALID", 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_plain_form_is_the_same(stride, padding):
    x, kernel = given((2, 8, 7, 4), (5, 5))

    def both(f):
        y, back = jax.vjp(lambda *a: f(*a, stride=stride, padding=padding), x, kernel)
        return y, *back(jnp.cos(y))

    for ours, plain in zip(both(depthwise_conv2d), both(depthwise_conv2d_plain), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_against_differences(stride):
    # In float64; the error of a central difference is of the order h**2.
    with jax.enable_x64(True):
        found = given((2, 6, 5, 3), (5, 3), dtype=np.float64)
        directions = arrays(*(a.shape for a in found), seed=2, dtype=np.float64)

        @jax.jit
        def loss(x, kernel):
            return jnp.sum(jnp.sin(depthwise_conv2d(x, kernel, stride=stride)))

        slopes = jax.grad(loss, (0, 1))(*found)
        h = 1e-5
        for i in (0, 1):
            ahead, behind = ([*found] for _ in range(2))
            ahead[i], behind[i] = found[i] + h * directions[i], found[i] - h * directions[i]
            difference = (loss(*ahead) - loss(*behind)) / (2 * h)
            np.testing.assert_allclose(jnp.vdot(slopes[i], directions[i]), difference, rtol=1e-7)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_stays_and_sums_in_float32(stride):
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in given((8, 12, 11, 3), (5, 5)))

    def both(f, x, kernel):
        y, back = jax.vjp(lambda *a: f(*a, stride=stride), x, kernel)
        return y, *back(jnp.ones_like(y))

    low = both(depthwise_conv2d, x, kernel)
    wide = both(depthwise_conv2d_plain, x.astype(jnp.float32), kernel.astype(jnp.float32))
    for ours, exact in zip(low, wide, strict=True):
        assert ours.dtype == jnp.bfloat16
        # One rounding to 8 bits at the end.
        np.testing.assert_allclose(ours.astype(np.float32), exact, rtol=2**-8, atol=1e-3)


def test_a_batch_over_four_devices():
    x, kernel = given((8, 9, 8, 3), (5, 5))

    def gradients(x, k):
        return jax.grad(lambda x, k: jnp.sum(depthwise_conv2d(x, k, stride=2) ** 2), (0, 1))(x, k)

    alone = gradients(x, kernel)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    meshed = jax.jit(gradients, out_shardings=(cut, whole))(
        jax.device_put(x, cut), jax.device_put(kernel, whole)
    )
    mapped = jax.pmap(gradients, in_axes=(0, None))(x.reshape(4, 2, 9, 8, 3), kernel)
    for one, two, three in zip(
        alone, meshed, (mapped[0].reshape(x.shape), mapped[1].sum(0)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-4)


def test_lowered_for_gpu_and_tpu_it_is_the_plain_form():
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 9, 9, 6), (3, 3, 1, 6)))

    def convolutions(platform):
        def both(x, k):
            y, back = jax.vjp(depthwise_conv2d, x, k)
            return y, back(y)

        lowered = jax.jit(both).trace(x, kernel).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.convolution")

    assert convolutions("cpu") == 0
    assert convolutions("cuda") == convolutions("tpu") == 3


def test_a_kernel_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"for 4 channels is \[K, N, 1, 4\], not \[3, 3, 4, 1\]"):
        depthwise_conv2d(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 1)))
