"""Metrics of language models: how well each token is foretold, over N rows of text.

A row may hold part of a document or several; all figures are ratios of sums over rows, so it does not matter how text
was cut into rows.
"""

import math

import numpy as np

from research.evaluation import bootstrap

# Beyond it a perplexity says nothing, and exp soon overflows.
_MOST = 80.0


def quick(
    nll: np.ndarray, tokens: np.ndarray, hits: np.ndarray, size: np.ndarray | None
) -> dict[str, float]:
    """The figures of every evaluation.

    Args:
      nll: [N] summed negative log likelihood, in nats, of the tokens of each row that count.
      tokens: [N] how many those are.
      hits: [N] how many of them were the most likely.
      size: [N] the bytes of UTF-8 that they stand for; None where they stand for no whole text.

    Returns:
      'loss' nats a token, 'perplexity' exp(loss), 'accuracy' of the most likely token, and 'bits_per_byte'
      nll / (ln 2 * bytes), which does not depend on the tokenizer.
    """
    columns = _columns(nll, tokens, hits, size)
    return {name: float(x) for name, x in _figures(*(c.sum() for c in columns)).items()}


def full(
    nll: np.ndarray,
    tokens: np.ndarray,
    hits: np.ndarray,
    size: np.ndarray | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """As `quick`, and '<figure>_low', '<figure>_high': 95% percentile bootstrap intervals over rows.

    Args:
      resamples: of the rows; 0 leaves the intervals out.
      seed: of the resamples.
    """
    metrics = quick(nll, tokens, hits, size)
    if not resamples:
        return metrics

    columns = _columns(nll, tokens, hits, size)

    def statistic(name: str) -> bootstrap.Statistic:
        return lambda counts: _figures(*(counts @ column for column in columns))[name]

    ends = bootstrap.intervals(
        {name: statistic(name) for name in metrics}, len(nll), resamples=resamples, seed=seed
    )
    for name, (low, high) in ends.items():
        metrics[f"{name}_low"], metrics[f"{name}_high"] = low, high
    return metrics


def _columns(*columns: np.ndarray | None) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in columns if x is not None]


def _figures(nll, tokens, hits, size=None) -> dict[str, np.ndarray]:
    """Of sums, [] or [R]."""
    loss = nll / np.maximum(tokens, 1)
    figures = {
        "loss": loss,
        "perplexity": np.exp(np.minimum(loss, _MOST)),
        "accuracy": hits / np.maximum(tokens, 1),
    }
    if size is not None:
        figures["bits_per_byte"] = nll / (math.log(2) * np.maximum(size, 1))
    return figures
