"""Cross-entropy against NumPy in float64 and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.ops.losses import blocked_cross_entropy, foretold, softmax_cross_entropy

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


@pytest.mark.parametrize("wrong", [-1, -100, 5, 2**31 - 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_no_class_is_not_a_number_in_all_forms(wrong, smoothing):
    labels = jnp.asarray(LABELS).at[2].set(wrong)
    others = np.arange(6) != 2

    def whole(z):
        return softmax_cross_entropy(z, labels, smoothing), foretold(z, labels)

    def blocked(z):
        found = blocked_cross_entropy(
            lambda states, _: states, z[None], labels[None], block=4, label_smoothing=smoothing
        )
        return found[0][0], found[1][0]

    sound = softmax_cross_entropy(LOGITS, LABELS, smoothing)
    slope = jax.grad(lambda z: softmax_cross_entropy(z, LABELS, smoothing).sum())(LOGITS)
    for form in (whole, jax.jit(whole), jax.jit(blocked)):
        losses, hits = form(jnp.asarray(LOGITS))
        assert np.isnan(losses[2]) and not hits[2]
        # The same sums in another program: float32's rounding.
        np.testing.assert_allclose(losses[others], sound[others], rtol=1e-6)
        assert (np.asarray(hits) == (LOGITS.argmax(-1) == LABELS))[others].all()
        gradient = jax.grad(lambda z, form=form: form(z)[0].sum())(jnp.asarray(LOGITS))
        assert np.isnan(gradient[2]).all()
        np.testing.assert_allclose(gradient[others], slope[others], atol=1e-6)


def headed(hidden, matrix, bias, labels, smoothing, softcap=3.0):
    """Losses and hits of all logits at once."""
    logits = headed_logits(hidden, matrix, bias, softcap)
    return softmax_cross_entropy(logits, labels, smoothing), foretold(logits, labels)


def headed_logits(hidden, matrix, bias, softcap=3.0):
    logits = jnp.dot(hidden, matrix, preferred_element_type=jnp.float32) + bias
    return softcap * jnp.tanh(logits / softcap)


# A block that divides the tokens, one that does not, one of a token a row, and one of all.
@pytest.mark.parametrize("block", [8, 10, 1, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_blocks_of_logits_give_the_same_losses_and_gradients(block, dtype, tolerance):
    rng = np.random.default_rng(0)
    hidden, matrix, bias = (
        jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 7, 6), (6, 11), (11,))
    )
    labels = jnp.asarray(rng.integers(0, 11, (2, 7)))
    weights = jnp.asarray(rng.random((2, 7)) * (rng.random((2, 7)) < 0.7), jnp.float32)

    def whole(*given):
        losses, hits = headed(*given, labels, 0.1)
        return jnp.sum(losses * weights), (losses, hits)

    def blocked(hidden, matrix, bias):
        losses, hits = blocked_cross_entropy(
            lambda states, _: headed_logits(states, matrix, bias),
            hidden,
            labels,
            block=block,
            label_smoothing=0.1,
        )
        return jnp.sum(losses * weights), (losses, hits)

    given = hidden, matrix, bias
    (_, expected), theirs = jax.value_and_grad(whole, (0, 1, 2), has_aux=True)(*given)
    (_, found), ours = jax.jit(jax.value_and_grad(blocked, (0, 1, 2), has_aux=True))(*given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        # Sums of 14 tokens; in bfloat16 each block's part is rounded to 2**-9 before it is added.
        np.testing.assert_allclose(*(np.asarray(x, np.float64) for x in (a, b)), atol=tolerance)
    masked = np.asarray(ours[0], np.float64)[np.asarray(weights) == 0]
    assert len(masked) and not masked.any()


def test_blocks_of_logits_by_finite_differences():
    rng = np.random.default_rng(1)
    hidden, matrix, step = (rng.standard_normal(shape) for shape in ((1, 5, 4), (4, 9), (4, 9)))
    labels = rng.integers(0, 9, (1, 5))

    def plain(matrix):
        z = hidden @ matrix
        return (
            np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, labels[..., None], -1)[..., 0]
        ).sum()

    def ours(matrix):
        states = jnp.asarray(hidden, jnp.float32)
        return blocked_cross_entropy(lambda x, _: x @ matrix, states, labels, block=2)[0].sum()

    slope = (jax.grad(ours)(jnp.asarray(matrix, jnp.float32)) * step).sum()
    expected = (plain(matrix + 1e-5 * step) - plain(matrix - 1e-5 * step)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=1e-5)  # float32


def test_blocks_of_logits_are_never_there_at_once():
    n, d, v = 512, 8, 4000
    hidden, matrix = jnp.ones((4, n // 4, d)), jnp.ones((d, v))
    labels = jnp.zeros((4, n // 4), jnp.int32)

    def loss(hidden, matrix):
        return blocked_cross_entropy(lambda x, _: x @ matrix, hidden, labels, block=16)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, matrix).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * v / 2
