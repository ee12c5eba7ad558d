"""Batch norm against its definition in NumPy and against Flax's, whose gradient XLA derives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.layers import BatchNorm
from research.ops.batch_norm import batch_norm


def arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (7, 2), (1, 3, 3, 5)])
def test_values_and_gradients_in_float64(shape):
    with jax.enable_x64(True):
        x, scale, bias, g = (
            jnp.asarray(a, jnp.float64) for a in arrays(shape, shape[-1:], shape[-1:], shape)
        )
        x = 3 * x + 2

        def ours(x, scale, bias):
            return batch_norm(x, scale, bias, 1e-5, None)[0]

        def written_out(x, scale, bias):
            axes = tuple(range(x.ndim - 1))
            centred = x - x.mean(axes)
            return centred / jnp.sqrt((centred**2).mean(axes) + 1e-5) * scale + bias

        y, back = jax.vjp(ours, x, scale, bias)
        expected, expected_back = jax.vjp(written_out, x, scale, bias)
        # The variance is the mean of squares less the square of the mean: a few digits of float64's 16 are gone.
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
        for one, two in zip(back(g), expected_back(g), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_module_is_flax_s(dtype):
    x, g = arrays((6, 5, 4, 3), (6, 5, 4, 3))
    x = jnp.asarray(3 * x + 2, dtype)
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=dtype)
    ours = BatchNorm(train=True, momentum=0.9, dtype=dtype)
    variables = ours.init(jax.random.key(0), x)
    variables["params"]["scale"] = jnp.array([1.0, 2.0, 0.5])

    def run(module):
        def loss(params, x):
            y, new = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.vdot(g, y.astype(jnp.float32)), (y, new)

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)

    one, two = run(ours), run(flaxs)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    # bfloat16: both round once at the end, of sums that differ in the last bits; float32: the order of sums.
    tolerance = 2**-6 if dtype == jnp.bfloat16 else 1e-5
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        )


def test_devices_share_their_statistics():
    x, g, scale, bias = arrays((8, 3, 2), (8, 3, 2), (2,), (2,))

    def gradients(axis_name, x, g, scale, bias):
        (y, mean, variance), back = jax.vjp(
            lambda *given: batch_norm(*given, 1e-5, axis_name), x, scale, bias
        )
        zeros = jnp.zeros_like(mean)
        return y, mean, variance, *back((g, zeros, zeros))

    y, mean, variance, dx, dscale, dbias = gradients(None, x, g, scale, bias)
    cut = [a.reshape(4, 2, 3, 2) for a in (x, g)]
    parts = jax.pmap(lambda *given: gradients("data", *given), "data", in_axes=(0, 0, None, None))(
        *cut, scale, bias
    )
    for whole, part in ((y, parts[0]), (dx, parts[3])):
        np.testing.assert_allclose(whole, part.reshape(whole.shape), rtol=1e-4, atol=1e-5)
    for whole, part in ((mean, parts[1]), (variance, parts[2])):
        np.testing.assert_allclose(whole, part[3], rtol=1e-5)
    for whole, part in ((dscale, parts[4]), (dbias, parts[5])):  # each device's share
        np.testing.assert_allclose(whole, part.sum(0), rtol=1e-4, atol=1e-5)
