"""Metrics of classification: one class among C for each of N examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from research.evaluation import bootstrap

_BINS = 15


def quick(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray, top_k: int = 5
) -> dict[str, float]:
    """The metrics that cost next to nothing, for every evaluation.

    Among equal logits the lower class number comes first, as in `argmax`. A NaN ranks above
    every number and is never the right answer, so a diverged model scores 0.

    Args:
        logits: float [N, C].
        labels: int [N], the true classes.
        losses: float [N].
        top_k: k of the top-k accuracy, which is left out where k >= C (it would be 1).

    Returns:
        'loss', 'accuracy' and 'top5_accuracy' (named after k).
    """
    return {name: float(np.mean(v)) for name, v in _values(logits, labels, losses, top_k).items()}


def full(
    logits: np.ndarray,
    labels: np.ndarray,
    losses: np.ndarray,
    top_k: int = 5,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Everything that is said of a final model: `quick` and more, with confidence intervals.

    Macro averages run over the classes that occur among labels or predictions, as in
    scikit-learn; a precision, recall or F1 with nothing to divide by is 0.

    Args:
        logits, labels, losses, top_k: see `quick`.
        resamples: bootstrap resamples of the examples; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        The metrics of `quick`; 'precision_A', 'recall_A', 'f1_A' for A in macro, micro, weighted;
        'calibration_error'; and '<metric>_low', '<metric>_high', the 95% percentile bootstrap
        interval of the metrics of `quick`, 'f1_macro' and 'calibration_error'. The interval
        of a calibration error near 0 lies too high: resampling adds noise, which only adds error.
    """
    values = _values(logits, labels, losses, top_k)
    predictions = np.argmax(logits, axis=-1)
    metrics = {name: float(np.mean(v)) for name, v in values.items()}
    hits, called, support = _counts(logits, labels)
    occurs = called + support > 0
    for average in ("macro", "micro", "weighted"):
        if average == "micro":
            scores = _scores(hits.sum(), called.sum(), support.sum())
        else:
            weights = support[occurs] if average == "weighted" else None
            each = _scores(hits, called, support)
            scores = [np.average(score[occurs], weights=weights) for score in each]
        for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
            metrics[f"{name}_{average}"] = float(score)
    metrics["calibration_error"] = calibration_error(logits, labels)
    if resamples:
        statistics = {name: bootstrap.mean(v) for name, v in values.items()}
        statistics["f1_macro"] = _macro_f1(labels, predictions, logits.shape[-1])
        statistics["calibration_error"] = _calibration(logits, labels)
        ends = bootstrap.intervals(statistics, len(labels), resamples=resamples, seed=seed)
        for name, (low, high) in ends.items():
            metrics[f"{name}_low"], metrics[f"{name}_high"] = low, high
    return metrics


def per_class(
    logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, int, float, float, float]]:
    """One row a class: (name, support, precision, recall, F1); 0 where nothing divides."""
    hits, called, support = _counts(logits, labels)
    return [
        (str(name), int(n), float(p), float(r), float(f))
        for name, n, p, r, f in zip(
            class_names, support, *_scores(hits, called, support), strict=True
        )
    ]


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often class i (row) was called class j (column): int64 [C, C]."""
    c = logits.shape[-1]
    cells = np.asarray(labels, np.int64) * c + np.argmax(logits, axis=-1)
    return np.bincount(cells, minlength=c * c).reshape(c, c)


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: how far the confidence of a prediction is from being right.

        sum over bins b of n_b / N * |accuracy_b - mean confidence_b|

    over 15 bins of equal width, the confidence being the largest softmax probability.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    return float(_calibration(logits, labels)(np.ones((1, len(labels))))[0])


def _counts(logits, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class how often it was rightly named, how often named, and how often it occurs: int64 [C] each."""
    named, size = np.argmax(logits, axis=-1), np.shape(logits)[-1]
    hits, called, support = (
        np.bincount(of, minlength=size) for of in (labels[named == labels], named, labels)
    )
    return hits, called, support


def _scores(hits, called, support) -> list[Any]:
    """Precision, recall and F1, float64 [...] each, 0 where nothing divides."""
    whole = (called, support, called + support)
    return [n * hits / np.maximum(w, 1) for n, w in zip((1, 1, 2), whole, strict=True)]


def _values(logits, labels, losses, top_k) -> dict[str, np.ndarray]:
    """The metrics of single examples, whose means are the metrics of `quick`: each [N]."""
    ranks = _ranks(logits, labels)
    values = {"loss": np.asarray(losses, np.float64), "accuracy": (ranks < 1).astype(float)}
    if top_k < logits.shape[-1]:
        values[f"top{top_k}_accuracy"] = (ranks < top_k).astype(float)
    return values


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of the true class among the sorted logits, 0 the first: int [N]."""
    own = np.take_along_axis(logits, labels[:, None], axis=-1)  # [N, 1]
    above = np.sum(~(logits <= own), axis=-1)  # a NaN on either side counts as above
    earlier = np.arange(logits.shape[-1]) < labels[:, None]
    return above + np.sum((logits == own) & earlier, axis=-1)


def _macro_f1(labels: np.ndarray, predictions: np.ndarray, c: int) -> bootstrap.Statistic:
    right = (labels == predictions).astype(float)

    def statistic(counts: np.ndarray) -> np.ndarray:
        hits = bootstrap.group_sums(counts, labels, c, right)  # [R, C]
        total = bootstrap.group_sums(counts, labels, c)
        total += bootstrap.group_sums(counts, predictions, c)
        f1 = 2 * hits / np.maximum(total, 1)  # = 2 precision recall / (precision + recall)
        return f1.sum(-1) / np.count_nonzero(total, axis=-1)

    return statistic


def _calibration(logits: np.ndarray, labels: np.ndarray) -> bootstrap.Statistic:
    shifted = logits - logits.max(-1, keepdims=True)
    confidence = 1 / np.exp(shifted, dtype=np.float64).sum(-1)  # the largest probability, [N]
    excess = (_ranks(logits, labels) < 1) - confidence
    # Bin b holds (b / 15, (b + 1) / 15]; a NaN, which the clip cannot move, goes to bin 0.
    bins = np.clip(np.ceil(np.nan_to_num(confidence) * _BINS) - 1, 0, _BINS - 1).astype(int)
    return lambda counts: (
        np.abs(bootstrap.group_sums(counts, bins, _BINS, excess)).sum(-1) / len(bins)
    )
