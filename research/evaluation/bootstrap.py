"""Bootstrap confidence intervals: how much a figure would move with another sample of examples.

N examples, R resamples, G groups.
"""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Counts of the examples in each resample, float64 [R, N], to the statistic's values [R]."""

_CHUNK = 2**22  # counts held at once: 32 MB whatever N and R are


def interval(
    values: np.ndarray | Statistic,
    *,
    size: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, or of any statistic of weighted examples.

    Args:
        values: float [N], whose mean is meant; or a function from counts [R, N] to [R].
        size: N, needed with a function only.
        resamples: R, the number of samples of N examples drawn with replacement.
        seed: equal seeds draw equal samples.
        confidence: the share of samples that the interval holds.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: there are no examples, or `size` is missing.

    Example:
        low, high = interval(losses, resamples=2000)

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not callable(values):
        array = np.asarray(values, np.float64)
        values, size = mean(array), len(array)
    if size is None:
        raise ValueError("interval of a function needs size=, the number of examples")
    return intervals(
        {"value": values}, size, resamples=resamples, seed=seed, confidence=confidence
    )["value"]


def intervals(
    statistics: dict[str, Statistic],
    size: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """The intervals of several statistics over the same resamples; see `interval`."""
    if size < 1:
        raise ValueError("no interval without examples")
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // size)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, resamples, chunk):
        counts = _counts(rng, min(chunk, resamples - start), size)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(counts))
    tail = (1 - confidence) / 2
    ends = {}
    for name, parts in drawn.items():
        low, high = np.quantile(np.concatenate(parts), (tail, 1 - tail))
        ends[name] = float(low), float(high)
    return ends


def mean(values: np.ndarray) -> Statistic:
    """The statistic `mean of values [N]`."""
    return lambda counts: counts @ values / len(values)


def group_sums(counts: np.ndarray, groups: np.ndarray, size: int, values=1.0) -> np.ndarray:
    """Weighted sums by group: [R, N] counts of examples in `groups` int [N] -> [R, size].

    Costs R * N operations whatever the number of groups, so a thousand classes are no trouble.
    """
    groups = np.asarray(groups, np.intp)
    sums = [np.bincount(groups, weights=row * values, minlength=size) for row in counts]
    return np.stack(sums, axis=1).T  # groups apart in memory: sums over them add in their order


def _counts(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """How often each of `size` examples is in each of `rows` resamples: float64 [rows, size]."""
    # Counting random indices is a multinomial draw, and several times faster than that of NumPy.
    indices = rng.integers(0, size, (rows, size))
    indices += np.arange(rows)[:, None] * size
    return np.bincount(indices.ravel(), minlength=rows * size).reshape(rows, size).astype(float)
