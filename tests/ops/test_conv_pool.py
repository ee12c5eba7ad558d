"""Convolution, relu and max-pool in one, against loops in NumPy and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops import conv_pool
from research.ops.conv import pads
from research.ops.platform import portable

# form, x, kernel, padding: odd sides, whose last row or column no window holds, and padding wider than the kernel needs
CASES = [
    ("blocks", (2, 7, 6, 1), (3, 3, 1, 4), "VALID"),
    ("blocks", (2, 6, 9, 3), (3, 3, 3, 2), "SAME"),
    ("blocks", (2, 8, 7, 2), (5, 5, 2, 3), "SAME"),
    ("blocks", (2, 5, 4, 2), (2, 2, 2, 3), 2),
    ("tiles", (2, 7, 6, 3), (3, 3, 3, 4), "VALID"),
    ("tiles", (2, 6, 9, 2), (3, 3, 2, 5), "SAME"),
    ("tiles", (1, 4, 5, 3), (3, 3, 3, 2), 2),
]


def arrays(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def in_form(form, padding):
    def pooled(x, kernel, bias):
        return conv_pool._pooled(x, kernel, bias, form, tuple(pads(x, kernel, 1, padding)))

    return pooled


def written_out(x, kernel, bias, padding):
    """The sums, one entry after the other, and the place of each window's first largest entry."""
    edges = pads(jnp.asarray(x), jnp.asarray(kernel), 1, padding)
    x = np.pad(x, ((0, 0), *edges, (0, 0)))
    side, _, _, d = kernel.shape
    h, w = (x.shape[1] - side + 1) // 2, (x.shape[2] - side + 1) // 2
    y = np.zeros((len(x), h, w, d))
    for b, i, j, e in np.ndindex(y.shape):
        for p in (2 * i, 2 * i + 1):
            for q in (2 * j, 2 * j + 1):
                window = x[b, p : p + side, q : q + side]
                y[b, i, j, e] = max(y[b, i, j, e], (window * kernel[..., e]).sum() + bias[e])
    return y


@pytest.mark.parametrize(("form", "x", "kernel", "padding"), CASES)
def test_value_is_the_largest_sum(form, x, kernel, padding):
    with jax.enable_x64(True):
        x, kernel, bias = arrays(x, kernel, kernel[3:])
        bias -= 2  # so that some windows hold nothing above zero
        got = in_form(form, padding)(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias))
        want = written_out(x, kernel, bias, padding)
        assert (want == 0).any() and (want > 0).any()
        # float64: the order of a few dozen additions
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("form", "x", "kernel", "padding"), CASES)
def test_gradients_are_differences(form, x, kernel, padding):
    with jax.enable_x64(True):
        given = arrays(x, kernel, kernel[3:])
        shape = written_out(*given, padding).shape
        (g,) = arrays(shape, seed=1)
        pooled = in_form(form, padding)
        gradients = jax.vjp(pooled, *map(jnp.asarray, given))[1](jnp.asarray(g))
        step = 1e-6  # the function is linear between the places where another entry becomes largest
        for place, gradient in enumerate(gradients):
            (change,) = arrays(given[place].shape, seed=2 + place)
            moved = [
                written_out(
                    *(v + sign * step * change if i == place else v for i, v in enumerate(given)),
                    padding,
                )
                for sign in (1, -1)
            ]
            want = ((moved[0] - moved[1]) * g).sum() / (2 * step)
            # Rounding of 1e-16 over a step of 1e-6, summed over up to 200 entries.
            assert float((np.asarray(gradient) * change).sum()) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("form", ["blocks", "tiles"])
def test_a_tie_goes_to_the_first_and_zero_nowhere(form):
    # A kernel that only looks at the middle pixel: windows are those of x itself.
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = jnp.asarray([[1.0, 1.0, -1.0, 0.0], [1.0, 0.5, -2.0, -1.0]])[None, :, :, None]
    y, back = jax.vjp(in_form(form, "SAME"), x, kernel, jnp.zeros(1))
    np.testing.assert_array_equal(y[0, :, :, 0], [[1.0, 0.0]])
    dx, _, dbias = back(jnp.ones_like(y))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1.0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(dbias, [1.0])


@pytest.mark.parametrize(
    ("x", "kernel", "form"),
    [
        ((16, 28, 28, 1), (3, 3, 1, 32), "blocks"),
        ((32, 13, 13, 32), (3, 3, 32, 64), "tiles"),
    ],
)
def test_chosen_form_agrees_with_one_after_the_other(x, kernel, form):
    x, kernel, bias = (a.astype(np.float32) for a in arrays(x, kernel, kernel[3:]))
    kernel /= 10  # sums of about 1
    x, kernel, bias = map(jnp.asarray, (x, kernel, bias))
    assert conv_pool._form(x, kernel, "VALID") == form
    results = []
    for function in (conv_pool.conv_relu_pool, conv_pool.conv_relu_pool_plain):
        y, back = jax.vjp(lambda *given, f=function: f(*given, padding="VALID"), x, kernel, bias)
        results.append((y, *back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))))
    for got, want in zip(*results, strict=True):
        # float32, up to 5,400 terms in another order, and Winograd's sums; a wrong place would be off by 1
        np.testing.assert_allclose(got, want, atol=1e-4 * float(jnp.abs(want).max()))


def test_programs_for_other_machines_are_plain():
    x, kernel = jnp.zeros((16, 28, 28, 1)), jnp.zeros((3, 3, 1, 32))
    with portable():
        assert conv_pool._form(x, kernel, "VALID") == "plain"
    assert conv_pool._form(x.astype(jnp.bfloat16), kernel, "VALID") == "plain"
    assert conv_pool._form(x[:1], kernel, "VALID") == "plain"
