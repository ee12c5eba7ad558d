"""Pooling against windows cut out in NumPy and against Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import pool


def picture(shape, seed=0):
    # Few values, so that windows hold ties.
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def windows(x, size):
    height, width = x.shape[1] // size, x.shape[2] // size
    return [
        (i, j, x[:, i * size : (i + 1) * size, j * size : (j + 1) * size])
        for i in range(height)
        for j in range(width)
    ]


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 8, 8, 3), 2), ((2, 7, 5, 3), 2), ((2, 10, 9, 2), 3)]
)
def test_max_and_mean_of_windows(shape, size):
    x = picture(shape)
    largest, mean = pool.max_pool(x, size), pool.avg_pool(x, size)
    assert largest.shape[1:3] == (
        shape[1] // size,
        shape[2] // size,
    )  # what fills no window is left out
    for i, j, window in windows(x, size):
        np.testing.assert_array_equal(largest[:, i, j], window.max((1, 2)))
        np.testing.assert_allclose(mean[:, i, j], window.mean((1, 2)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 8, 8, 3), 2), ((2, 7, 5, 3), 2), ((2, 10, 9, 2), 3)]
)
def test_the_gradient_goes_to_the_first_of_the_largest(shape, size):
    x = picture(shape)
    g = np.random.default_rng(1).standard_normal(pool.max_pool(x, size).shape).astype(np.float32)
    got = jax.jit(lambda x: jax.vjp(lambda x: pool.max_pool(x, size), x)[1](g)[0])(x)
    expected = np.zeros(shape, np.float32)
    for i, j, window in windows(x, size):
        for b, c in np.ndindex(shape[0], shape[3]):
            row, column = np.unravel_index(
                window[b, :, :, c].argmax(), (size, size)
            )  # argmax: the first
            expected[b, i * size + row, j * size + column, c] = g[b, i, j, c]
    np.testing.assert_array_equal(got, expected)
    plain = jax.vjp(lambda x: nn.max_pool(x, (size, size), (size, size)), x)[1](g)[0]
    np.testing.assert_array_equal(got, plain)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "pads"),
    [(3, 2, 1, [(1, 1), (1, 1)]), (2, None, "SAME", "SAME"), (3, 1, "VALID", "VALID")],
)
def test_other_windows_are_flax(size, stride, padding, pads):
    x = picture((2, 9, 7, 3))
    expected = nn.max_pool(x, (size, size), (stride or size,) * 2, pads)
    np.testing.assert_array_equal(pool.max_pool(x, size, stride=stride, padding=padding), expected)


def test_global_mean_sums_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)  # a bfloat16 sum of ones stops at 256
    assert pool.global_avg_pool(x).item() == 1.0
