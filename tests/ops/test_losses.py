"""Cross-entropy against NumPy in float64 and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.ops.losses import foretold, softmax_cross_entropy

LOGITS = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32) * 4
LABELS = np.array([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_against_numpy_and_optax(smoothing):
    z = LOGITS.astype(np.float64)
    target = np.eye(5)[LABELS] * (1 - smoothing) + smoothing / 5
    expected = -(target * (z - np.log(np.exp(z).sum(-1, keepdims=True)))).sum(-1)
    np.testing.assert_allclose(
        softmax_cross_entropy(LOGITS, LABELS, smoothing), expected, rtol=1e-5
    )
    gradient = jax.grad(lambda z: softmax_cross_entropy(z, LABELS, smoothing).sum())(LOGITS)
    probabilities = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, probabilities - target, atol=1e-6)
    theirs = optax.softmax_cross_entropy(LOGITS, target)
    np.testing.assert_allclose(softmax_cross_entropy(LOGITS, LABELS, smoothing), theirs, rtol=1e-5)


def test_stable_and_in_float32():
    huge = jnp.array([[3e4, -3e4], [-3e4, 3e4]], jnp.bfloat16)
    losses = softmax_cross_entropy(huge, jnp.array([0, 0]), 0.0)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [0.0, 6e4], rtol=1e-2)
    gradient = jax.grad(lambda z: softmax_cross_entropy(z, jnp.array([0, 0])).sum())(
        huge.astype(jnp.float32)
    )
    np.testing.assert_array_equal(gradient, [[0, 0], [-1, 1]])


def test_any_leading_shape():
    stacked = softmax_cross_entropy(LOGITS.reshape(2, 3, 5), LABELS.reshape(2, 3))
    np.testing.assert_array_equal(stacked.reshape(-1), softmax_cross_entropy(LOGITS, LABELS))


def test_foretold_is_the_first_of_the_largest():
    # Few values, so that many are equal.
    logits = np.random.default_rng(1).integers(0, 3, (50, 4, 6)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 6, (50, 4))
    expected = logits.argmax(-1) == labels
    assert (
        0
        < expected.sum()
        < (logits.max(-1) == np.take_along_axis(logits, labels[..., None], -1)[..., 0]).sum()
    )
    np.testing.assert_array_equal(foretold(jnp.asarray(logits), jnp.asarray(labels)), expected)
