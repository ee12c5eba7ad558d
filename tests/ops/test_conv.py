"""The convolution against its sum written out in NumPy, and its gradients against XLA's and against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.ops import conv, winograd

# x, kernel, stride, padding; all of them take the rewritten kernel gradient
FAST = [
    ((3, 7, 6, 1), (3, 3, 1, 32), 1, "VALID"),
    ((2, 6, 7, 3), (3, 3, 3, 32), 1, "SAME"),
    ((2, 8, 7, 2), (3, 3, 2, 32), 2, "SAME"),
    ((2, 8, 9, 2), (3, 3, 2, 32), 2, 1),
    ((2, 6, 6, 2), (2, 4, 2, 32), 1, "SAME"),
    ((2, 8, 8, 3), (4, 4, 3, 32), 4, "VALID"),
    ((2, 7, 6, 64), (3, 3, 64, 32), 2, 1),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, "SAME"),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, 0),
    ((2, 5, 6, 7), (1, 1, 7, 5), 1, 1),
    ((2, 5, 6, 7), (1, 1, 7, 5), 2, "VALID"),
]


# x, kernel, padding of the algorithm that works on tiles
TILED = [
    ((2, 6, 6, 3), (3, 3, 3, 4), "SAME"),
    ((2, 7, 6, 3), (3, 3, 3, 4), "SAME"),
    ((1, 5, 8, 4), (3, 3, 4, 2), "VALID"),
    ((3, 6, 9, 2), (3, 3, 2, 5), "VALID"),
    ((2, 4, 5, 3), (3, 3, 3, 3), 2),
    ((1, 3, 3, 2), (3, 3, 2, 2), 0),
]
# B, H = W, C of ResNet-18's blocks on pictures of 32x32, with fewer pictures in a batch; parts that it is cut into
BLOCKS = [(8, 16, 64, 8), (8, 16, 128, 1), (8, 16, 128, 4), (32, 8, 256, 1), (32, 4, 512, 1)]


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


@pytest.mark.parametrize("form", ["together", "one by one", "by rows"])
@pytest.mark.parametrize(("x", "kernel", "padding"), TILED)
def test_tiles_give_the_sum_and_its_gradients(monkeypatch, x, kernel, padding, form):
    if form != "together":
        monkeypatch.setattr(winograd, "PART_BYTES", 1)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        assert winograd._parts(x[0], 8, 1) == x[0]
    if form == "one by one":
        monkeypatch.setattr(winograd, "FEW_CHANNELS", 0)
    # In float64, where nothing but rounding is left between the two: a wrong entry is off by about 1.
    x, kernel = arrays(x, kernel, dtype=np.float64)
    y = written_out(x, kernel, 1, padding)
    (g,) = arrays(y.shape, seed=1, dtype=np.float64)
    with jax.enable_x64(True):
        zeros = conv.pads(x, kernel, 1, padding)
        got = winograd.value(jnp.asarray(x), jnp.asarray(kernel), zeros)
        dx = winograd.by_input(jnp.asarray(kernel), jnp.asarray(g), zeros)
        dkernel = winograd.by_kernel(jnp.asarray(x), jnp.asarray(g), zeros)
    np.testing.assert_allclose(got, y, atol=1e-12)
    for k in np.ndindex(*kernel.shape[:3]):
        probe = np.zeros((*kernel.shape[:3], 1))
        probe[k] = 1
        expected = np.einsum("bhwo,bhwd->d", written_out(x, probe, 1, padding), g)
        np.testing.assert_allclose(dkernel[k], expected, atol=1e-12)
    for c in range(x.shape[3]):  # <g, conv(x, k)> = <dx, x> for every x
        probe = np.zeros_like(x)
        probe[..., c] = np.random.default_rng(2).standard_normal(x.shape[:3])
        expected = np.vdot(written_out(probe, kernel, 1, padding), g)
        np.testing.assert_allclose(np.vdot(dx, probe), expected, atol=1e-11)


@pytest.mark.parametrize(("b", "side", "c", "parts"), BLOCKS)
def test_tiles_round_hardly_more_than_xla(monkeypatch, b, side, c, parts):
    place = (side // 2) ** 2 * 2 * c * 4
    if parts > 1:
        monkeypatch.setattr(winograd, "PART_BYTES", b // parts * 16 * place)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert winograd._parts(b, place, 1) == parts
    x, kernel, g = arrays((b, side, side, c), (3, 3, c, c), (b, side, side, c))
    assert conv._tiles_are_fast(x, kernel, 1, "SAME")

    def all_of(f):
        def run(x, kernel, g):
            y, back = jax.vjp(f, x, kernel)
            return y, *back(g)

        return jax.jit(run)

    with jax.enable_x64(True):
        wide = [np.asarray(a, np.float64) for a in (x, kernel, g)]
        exact = [np.asarray(a) for a in all_of(conv.conv2d_plain)(*wide)]
    ours, plain = (all_of(f)(x, kernel, g) for f in (conv.conv2d, conv.conv2d_plain))
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        errors = [np.sqrt(np.mean((np.asarray(a) - truth) ** 2)) for a in (mine, theirs)]
        assert errors[0] > 0
        # Seen: 0.7 to 2.1 times XLA's error, which depends on the order of its sums; and 5e-7 to 8e-7 of the result.
        assert errors[0] < 3 * errors[1]
        assert errors[0] < 1e-6 * np.std(truth)


def test_parts_of_tiles_are_as_small_as_pays():
    place = 16 * 16 * (64 + 64) * 4  # a picture of 32 x 32
    assert winograd._parts(64, place, 1) == 8
    assert winograd._parts(50, place, 1) == 5
    assert winograd._parts(61, place, 1) == 1  # a prime number
    assert winograd._parts(4, place, 1) == 1
    assert winograd._parts(3, 100 * place, 1) == 3
    assert winograd._parts(64, place, 4) == 2  # as much on each
    assert winograd._parts(96, place, 3) == 4  # not 12 parts of 8, which three devices can't share
    assert winograd._parts(50, place, 4) == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_tiles_in_parts_over_four_devices(monkeypatch, mapped):
    x, kernel = arrays((16, 9, 9, 64), (3, 3, 64, 64))
    monkeypatch.setattr(winograd, "PART_BYTES", 1)
    assert winograd._parts(16, 8, jax.device_count()) == 4

    def gradients(x, k):
        return jax.grad(lambda x, k: jnp.sum(conv.conv2d(x, k) ** 2), (0, 1))(x, k)

    def plain(x, k):
        return jax.grad(lambda x, k: jnp.sum(conv.conv2d_plain(x, k) ** 2), (0, 1))(x, k)

    if mapped:
        found = jax.pmap(gradients, in_axes=(0, None))(x.reshape(4, 4, 9, 9, 64), kernel)
        found = found[0].reshape(x.shape), found[1].sum(0)
    else:
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        given = jax.device_put(x, cut), jax.device_put(kernel, whole)
        run = jax.jit(gradients, out_shardings=(cut, whole)).lower(*given).compile()
        program = run.as_text()
        assert (
            "all-reduce" in program and "all-gather" not in program
        )  # no device has another's rows
        found = run(*given)
    for one, two in zip(found, plain(x, kernel), strict=True):
        # Sums of up to 1,296 products of sums of 576, in another order.
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=2e-5 * np.abs(two).max())


def test_the_memory_of_tiles_does_not_grow_with_the_batch(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    kernel = jnp.ones((3, 3, 64, 64))

    def needed(batch):
        x = jnp.ones((batch, 32, 32, 64))
        run = jax.jit(lambda x, k: jax.vjp(conv.conv2d, x, k)[1](x))
        return run.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes - x.nbytes

    assert needed(64) < 1.2 * needed(32)  # twice the tiles would be held


def test_tiles_are_for_wide_convolutions_in_full_precision():
    def fast(x, kernel, stride=1, padding="SAME", dtype=jnp.float32):
        given = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
        return conv._tiles_are_fast(*given, stride, padding)

    x, kernel = (64, 8, 8, 64), (3, 3, 64, 64)
    assert fast(x, kernel)
    assert not fast(x, kernel, stride=2)
    assert not fast(x, kernel, padding=3)  # the gradient by x would have to leave rows of g out
    assert not fast(x, kernel, dtype=jnp.bfloat16)
    assert not fast((64, 8, 8, 32), (3, 3, 32, 64))
    assert not fast((64, 8, 8, 64), (5, 5, 64, 64))
    assert not fast((1, 8, 8, 64), kernel)  # the kernel's transform would take longest
    assert not fast((64, 5, 5, 64), kernel, padding="VALID")  # 4x4 computed for 3x3


def test_the_forward_pass_keeps_no_tiles():
    # A tile's transform is four times x, and a backward pass that is computed early would hold it for every layer.
    x, kernel = arrays((16, 16, 16, 64), (3, 3, 64, 64))

    def loss(kernel, depth):
        y = x
        for _ in range(depth):
            y = conv.conv2d(y, kernel)
        return jnp.sum(y**2)

    def memory(depth):
        compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(kernel, depth).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert (memory(9) - memory(5)) / 4 < 2 * x.nbytes


def test_only_fast_shapes_are_rewritten():
    assert not conv._rows_are_fast(
        (64, 32, 32, 64), (3, 3, 64, 64), 1
    )  # the copies would be slower
    assert conv._rows_are_fast((64, 32, 32, 64), (3, 3, 64, 128), 2)
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


@pytest.mark.parametrize("shapes", [((4, 9, 9, 1), (3, 3, 1, 32)), ((8, 9, 9, 64), (3, 3, 64, 64))])
def test_lowered_for_gpu_and_tpu_it_is_the_plain_form(shapes):
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def text(platform):
        traced = jax.jit(jax.grad(lambda x, k: conv.conv2d(x, k).sum(), (0, 1))).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "dot_general" in text("cpu")
    for platform in ("cuda", "tpu"):
        assert "dot_general" not in text(platform)


@pytest.mark.parametrize(("batch", "most", "parts"), [(24, 8, 3), (24, 23, 2), (24, 24, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(monkeypatch, batch, most, parts, padding):
    x, kernel = arrays((batch, 9, 8, 5), (3, 3, 5, 32))
    monkeypatch.setattr(conv, "CACHE_BYTES", most * 4 * 9 * 8 * 3 * 5)
    assert conv._parts(x.shape, kernel.shape, 1) == parts
    (g,) = arrays(written_out(x, kernel, 1, padding).shape, seed=1)
    found = jax.vjp(lambda k: conv.conv2d(x, k, padding=padding), kernel)[1](g)[0]
    wide = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0))) if padding == "SAME" else x
    h, w = g.shape[1:3]
    for i in range(3):
        for j in range(3):
            expected = np.einsum("bhwc,bhwd->cd", np.float64(wide[:, i : i + h, j : j + w]), g)
            # Sums of up to 1,728 products of numbers of size 1: float32's rounding.
            np.testing.assert_allclose(found[i, j], expected, atol=2e-4)


def test_parts_are_of_some_examples_or_there_are_none():
    assert conv._parts((512, 13, 13, 32), (3, 3, 32, 64), 1) == 8
    assert conv._parts((509, 13, 13, 32), (3, 3, 32, 64), 1) == 0  # a prime number
    assert conv._parts((3, 13, 13, 32), (3, 3, 32, 64), 1) == 1
    assert conv._parts((16, 224, 224, 16), (3, 3, 16, 32), 1) == 0
    assert not conv._rows_are_fast((16, 224, 224, 16), (3, 3, 16, 32), 1)


def test_the_memory_of_a_kernels_gradient_does_not_grow_with_the_batch():
    kernel = jnp.ones((3, 3, 16, 32))

    def needed(batch):
        x, g = jnp.ones((batch, 16, 16, 16)), jnp.ones((batch, 14, 14, 32))
        by_kernel = jax.jit(lambda x, g: conv._in_parts(x, kernel, g, stride=1, padding="VALID"))
        return by_kernel.lower(x, g).compile().memory_analysis().temp_size_in_bytes

    assert needed(512) < 1.2 * needed(128)  # four times the copies would be held


@pytest.mark.parametrize("stride", [1, 2])
def test_few_outputs_stand_apart(stride):
    x, first, second = (
        jnp.asarray(a) for a in arrays((1, 8, 8, 64), (3, 3, 64, 64), (3, 3, 64, 64))
    )

    def chain(convolve, x, first, second):
        y = jax.nn.relu(convolve(x, first, stride=stride))
        return convolve(y, second, stride=stride).mean((1, 2))

    both = [
        jax.jit(jax.value_and_grad(lambda *a, c=c: chain(c, *a).sum(), (0, 1, 2)))(x, first, second)
        for c in (conv.conv2d, conv.conv2d_plain)
    ]
    for found, expected in zip(*map(jax.tree.leaves, both), strict=True):
        # Sums of 64 * 9 terms, of sums of as many, in another order; some cancel.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-1)
    value = jax.jit(lambda *a: chain(conv.conv2d, *a)).lower(x, first, second)
    parts = value.compile().as_text().split("\n}")
    assert max(part.count(" convolution(") for part in parts) == 1  # two in one part take longer
