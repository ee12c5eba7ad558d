"""What is left out of a draw, and what is drawn, against NumPy written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding import sample
from research.decoding.sample import Sampling

ROWS, V = 6, 301  # not a multiple of the groups that sums are taken in


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(ROWS, V)).astype(np.float32) * 4


def softmax(x):
    odds = np.exp(x.astype(np.float64) - x.max())
    return odds / odds.sum()


def kept(logits):
    return np.isfinite(np.asarray(logits))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("k", [1, 2, 7, 300, 301, 5000])
def test_top_k_keeps_the_k_largest(logits, k):
    got = np.asarray(sample.top_k(jnp.asarray(logits), k))
    for row, out in zip(logits, got, strict=True):
        largest = set(np.argsort(row)[::-1][:k])
        assert set(np.flatnonzero(np.isfinite(out))) == largest
        np.testing.assert_array_equal(out[np.isfinite(out)], row[np.isfinite(out)])


def test_top_k_keeps_what_equals_the_last():
    got = kept(sample.top_k(jnp.array([[3.0, 1.0, 2.0, 2.0, 0.0]]), 2))
    np.testing.assert_array_equal(got, [[True, False, True, True, False]])


@pytest.mark.parametrize("p", [1e-9, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    got = kept(sample.top_p(jnp.asarray(logits), p))
    for row, out in zip(logits, got, strict=True):
        order = np.argsort(row)[::-1]
        count = int(np.searchsorted(np.cumsum(softmax(row)[order]), p)) + 1
        assert set(np.flatnonzero(out)) == set(order[:count])


def test_top_p_of_equals_and_of_one_certain_token():
    even = jnp.zeros((1, V))
    assert kept(sample.top_p(even, 0.5)).all()  # there is no telling them apart
    sure = jnp.full((1, V), -1e9).at[0, 5].set(1e9)
    assert np.flatnonzero(kept(sample.top_p(sure, 0.5))).tolist() == [5]
    barred = jnp.full((1, V), -jnp.inf).at[0, :2].set(0.0)
    assert np.flatnonzero(kept(sample.top_p(barred, 0.99))).tolist() == [0, 1]


@pytest.mark.parametrize("p", [0.001, 0.1, 0.9, 1.0])
def test_min_p_keeps_what_has_a_share_of_the_best(logits, p):
    got = kept(sample.min_p(jnp.asarray(logits), p))
    for row, out in zip(logits, got, strict=True):
        share = softmax(row) / softmax(row).max()
        np.testing.assert_array_equal(out, share >= p)


def test_repetition_penalty_pushes_seen_tokens_down(logits):
    seen = np.random.default_rng(1).random(logits.shape) < 0.3
    got = np.asarray(sample.repetition_penalty(jnp.asarray(logits), jnp.asarray(seen), 1.5))
    np.testing.assert_array_equal(got[~seen], logits[~seen])
    factor = np.where(logits > 0, np.float32(1 / 1.5), np.float32(1.5))
    # Multiplied here and divided there: an ulp of float32.
    np.testing.assert_allclose(got[seen], (logits * factor)[seen], rtol=2e-7)
    assert (got[seen] < logits[seen]).all()


def test_filters_are_applied_in_order(logits):
    """Top p counts among the top k alone, after the temperature."""
    how = Sampling(temperature=0.5, top_k=20, top_p=0.8, min_p=0.1)
    got = kept(sample.restrict(jnp.asarray(logits) / how.temperature, how))
    for row, out in zip(logits, got, strict=True):
        order = np.argsort(row)[::-1][:20]
        shares = softmax(row[order] / 0.5)
        count = int(np.searchsorted(np.cumsum(shares), 0.8)) + 1
        want = order[:count][shares[:count] >= 0.1 * shares[0]]
        assert set(np.flatnonzero(out)) == set(want)


def test_greedy_takes_the_first_of_the_best(logits):
    logits[0, [3, 200]] = 99.0
    np.testing.assert_array_equal(sample.greedy(jnp.asarray(logits)), logits.argmax(-1))
    assert sample.greedy(jnp.full((1, V), jnp.nan))[0] < V


def test_temperature_0_and_top_k_1_are_greedy_after_the_penalty(logits):
    seen = np.zeros(logits.shape, bool)
    seen[np.arange(ROWS), logits.argmax(-1)] = True
    for how in (Sampling(temperature=0.0), Sampling(top_k=1)):
        got = sample.choose(jnp.asarray(logits), how, keys(ROWS), None)
        np.testing.assert_array_equal(got, logits.argmax(-1))
        how = how._replace(repetition_penalty=1e6)
        got = sample.choose(jnp.asarray(logits), how, keys(ROWS), jnp.asarray(seen))
        np.testing.assert_array_equal(got, np.where(seen, -np.inf, logits).argmax(-1))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_have_the_probabilities_of_a_softmax(temperature):
    count, size = 40_000, 150
    row = np.random.default_rng(2).normal(size=size).astype(np.float32) * 2
    row[::5] = -np.inf
    how = Sampling(temperature=temperature)
    logits = jnp.broadcast_to(jnp.asarray(row), (count, size))
    drawn = np.asarray(jax.jit(lambda x, k: sample.choose(x, how, k, None))(logits, keys(count)))
    want = softmax(row / temperature) * count
    got = np.bincount(drawn, minlength=size)
    assert (got[::5] == 0).all() and got.sum() == count
    # Counts are binomial: 6 deviations (and 3 counts, where few are expected) are passed once in millions of tokens.
    assert (np.abs(got - want) <= 6 * np.sqrt(want) + 3).all()
    # Pearson's statistic over tokens that are expected ten times: its mean is their number, its deviation sqrt(2 n).
    often = want > 10
    statistic = ((got - want)[often] ** 2 / want[often]).sum()
    assert abs(statistic - often.sum()) < 6 * np.sqrt(2 * often.sum())


def test_a_weight_of_0_is_not_found_where_rounded_sums_rise():
    rng = np.random.default_rng(0)
    weights = rng.random((400, 1172)) * np.exp(rng.normal(size=(400, 1172)) * 3)
    weights = (weights * (rng.random(weights.shape) < 0.5)).astype(np.float32)
    sums = np.asarray(jax.jit(lambda x: jnp.cumsum(x, -1))(weights))
    rises = (weights[:, 1:] == 0) & (sums[:, 1:] > sums[:, :-1])
    rows = np.flatnonzero(rises.any(-1))
    assert len(rows) > 100  # XLA adds in a tree
    point = sums[rows, rises[rows].argmax(-1)]  # just below the rise
    found, _ = jax.jit(sample._locate)(weights[rows], point)
    assert (weights[rows, found] > 0).all()


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 4096])
def test_a_draw_never_takes_a_token_that_is_left_out(size):
    """However the point falls, ends included, and with neighbours whose weights are lost in rounding."""
    rng = np.random.default_rng(size)
    logits = np.full((500, size), -np.inf, np.float32)
    for row in logits:
        row[rng.choice(size, size=max(1, size // 9), replace=False)] = rng.normal() * 30
    drawn = np.asarray(jax.jit(sample.draw)(logits, keys(500)))
    assert np.isfinite(logits[np.arange(500), drawn]).all()
    weights = jnp.asarray(np.where(np.isfinite(logits), 1 / 3, 0.0), jnp.float32)
    for point in (jnp.zeros(500), weights.sum(-1), jnp.full(500, 1e9)):
        found, _ = sample._locate(weights, point)
        assert (np.asarray(weights)[np.arange(500), found] > 0).all()


def test_a_row_draws_the_same_in_any_company(logits):
    choose = jax.jit(lambda x, k: sample.choose(x, Sampling(top_p=0.95), k, None))
    together = choose(logits, keys(ROWS))
    alone = [choose(logits[i : i + 1], keys(ROWS)[i : i + 1])[0] for i in range(ROWS)]
    np.testing.assert_array_equal(together, alone)
