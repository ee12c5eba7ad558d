"""Figures of language models against their definitions, token by token."""

import numpy as np
import pytest

from research.evaluation import language


@pytest.fixture
def rows():
    """Twelve rows of up to nine tokens: probabilities of the right token, whether it was the likeliest, bytes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 10, 12)
    return [
        (rng.uniform(0.01, 1, n), rng.integers(0, 2, n), int(rng.integers(n, 5 * n)))
        for n in lengths
    ]


def arrays(rows):
    return (
        np.array([-np.log(p).sum() for p, _, _ in rows], np.float32),
        np.array([len(p) for p, _, _ in rows], np.float32),
        np.array([h.sum() for _, h, _ in rows], np.float32),
        np.array([b for _, _, b in rows], np.float32),
    )


def test_figures_are_those_of_the_tokens_joined(rows):
    found = language.quick(*arrays(rows))
    p = np.concatenate([p for p, _, _ in rows])
    # float32 sums of up to nine terms each: 1e-6
    assert found["loss"] == pytest.approx(-np.log(p).mean(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(np.prod(1 / p) ** (1 / len(p)), rel=1e-5)
    assert found["accuracy"] == np.concatenate([h for _, h, _ in rows]).mean()
    size = sum(b for _, _, b in rows)
    assert found["bits_per_byte"] == pytest.approx(-np.log2(p).sum() / size, rel=1e-6)


def test_how_text_is_cut_into_rows_changes_nothing(rows):
    whole = language.quick(*arrays(rows))
    p, h, b = (np.concatenate([np.atleast_1d(row[i]) for row in rows]) for i in range(3))
    joined = language.quick(*arrays([(p, h, int(b.sum()))]))
    assert joined == pytest.approx(whole, rel=1e-6)


def test_without_bytes_there_are_no_bits_per_byte(rows):
    nll, tokens, hits, _ = arrays(rows)
    found = language.full(nll, tokens, hits, None, resamples=10)
    assert "bits_per_byte" not in found and "loss_low" in found


def test_intervals_are_of_ratios_over_resampled_rows(rows):
    found = language.full(*arrays(rows), resamples=300, seed=3)
    # Drawn again, row by row, with the same generator as the bootstrap's.
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, len(rows), (300, len(rows)))
    nll, tokens, hits, size = (x.astype(np.float64) for x in arrays(rows))
    for name, top, bottom in (
        ("loss", nll, tokens),
        ("accuracy", hits, tokens),
        ("bits_per_byte", nll / np.log(2), size),
    ):
        values = [top[i].sum() / bottom[i].sum() for i in drawn]
        expected = np.quantile(values, (0.025, 0.975))
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(
            tuple(expected), rel=1e-9
        )


def test_a_diverged_model_has_figures_all_the_same():
    nll = np.array([1e6, 1e6], np.float32)
    found = language.quick(nll, np.ones(2), np.zeros(2), np.ones(2))
    assert np.isfinite(found["perplexity"]) and found["accuracy"] == 0
