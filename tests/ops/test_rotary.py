"""Rotary positions against complex numbers in NumPy, and the frequencies for long contexts against their rules."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.rotary import angles, frequencies, rotate


def test_pairs_are_turned_as_complex_numbers():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 0, 1, 300]])
    found = rotate(jnp.asarray(x), *angles(jnp.asarray(positions), 8, base=100.0))
    speed = 100.0 ** (-np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, :, None, None] * speed)
    # The angle 300 has a rounding error of 3e-5 in float32.
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=1e-4)
    assert rotate(jnp.asarray(x, jnp.bfloat16), *angles(positions, 8)).dtype == jnp.bfloat16


def test_products_depend_on_the_distance_alone():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 16)).astype(np.float32)

    def product(i, j):
        turned = [rotate(a, *angles(jnp.asarray([[p]]), 16)) for a, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert abs(product(3, 1) - product(103, 101)) < 1e-4
    assert abs(product(3, 1) - product(3, 2)) > 1e-2


def test_linear_scaling_is_of_positions():
    plain = frequencies(8, 10000.0)
    np.testing.assert_allclose(frequencies(8, 10000.0, ("linear", 4.0)), plain / 4, rtol=1e-6)


def test_llama3_scaling():
    factor, low, high, context = 8.0, 1.0, 4.0, 512
    found = frequencies(64, 500.0, ("llama3", factor, low, high, context))
    kinds = set()
    for frequency, plain in zip(found, 500.0 ** (-np.arange(0, 64, 2) / 64), strict=True):
        wave = 2 * math.pi / plain
        if wave < context / high:
            expected, kind = plain, "kept"
        elif wave > context / low:
            expected, kind = plain / factor, "divided"
        else:
            smooth = (context / wave - low) / (high - low)
            expected, kind = (1 - smooth) * plain / factor + smooth * plain, "between"
        kinds.add(kind)
        np.testing.assert_allclose(frequency, expected, rtol=1e-5)
    assert kinds == {"kept", "divided", "between"}


def test_what_cannot_be():
    with pytest.raises(ValueError, match="the width of a head, 7, must be even"):
        frequencies(7, 10000.0)
    with pytest.raises(ValueError, match="rotary_scaling=.*'yarn'.*is none of"):
        frequencies(8, 10000.0, ("yarn", 2.0))
