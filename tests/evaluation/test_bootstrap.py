"""Intervals against scipy's bootstrap, and against what they promise: their coverage."""

import numpy as np
import pytest
import scipy.stats

from research.evaluation import bootstrap


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_mean_agrees_with_scipy(confidence):
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap.interval(values, resamples=20_000, confidence=confidence)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Both ends are quantiles of 20,000 draws: their own standard error is about 1% of the width.
    np.testing.assert_allclose(ours, theirs, atol=0.04 * (theirs.high - theirs.low))


def test_statistic_of_weights_agrees_with_scipy():
    values = np.random.default_rng(2).normal(3.0, 2.0, size=400)

    def variance(counts):
        mean = counts @ values / len(values)
        return counts @ values**2 / len(values) - mean**2

    ours = bootstrap.interval(variance, size=400, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.var, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.04 * (theirs.high - theirs.low))


def test_95_percent_of_intervals_hold_the_true_mean():
    rng = np.random.default_rng(4)
    samples = rng.random((600, 200)) < 0.7
    ends = np.array([bootstrap.interval(s, resamples=400, seed=i) for i, s in enumerate(samples)])
    coverage = np.mean((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7))
    assert 0.92 <= coverage <= 0.975  # 600 trials: 0.95 +- 0.027 at three standard errors


def test_resamples_are_uniform_draws_with_replacement():
    draws = []
    bootstrap.interval(lambda counts: draws.append(counts) or counts[:, 0], size=50, resamples=4000)
    counts = np.concatenate(draws)
    assert counts.shape == (4000, 50)
    assert (counts.sum(1) == 50).all()
    # Each count is Binomial(50, 1/50): mean 1, variance 0.98.
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(), 0.98, atol=0.03)


def test_seeds(monkeypatch):
    values = np.random.default_rng(5).normal(size=100)
    first = bootstrap.interval(values, seed=1)
    assert first == bootstrap.interval(values, seed=1)
    assert first != bootstrap.interval(values, seed=2)
    monkeypatch.setattr(bootstrap, "_CHUNK", 1000)  # in many chunks: other draws, the same answer
    np.testing.assert_allclose(first, bootstrap.interval(values, seed=1), atol=0.03)


def test_group_sums_equal_a_loop():
    rng = np.random.default_rng(6)
    counts, groups = rng.integers(0, 4, (5, 40)).astype(float), rng.integers(0, 6, 40)
    values = rng.normal(size=40)
    expected = np.zeros((5, 7))  # group 6 is empty
    for r in range(5):
        for i in range(40):
            expected[r, groups[i]] += counts[r, i] * values[i]
    np.testing.assert_allclose(
        bootstrap.group_sums(counts, groups, 7, values), expected, atol=1e-12
    )


def test_no_examples():
    with pytest.raises(ValueError, match="without examples"):
        bootstrap.interval(np.zeros(0))
    with pytest.raises(ValueError, match="size="):
        bootstrap.interval(lambda counts: counts[:, 0])
