"""Texts of like length in a batch, and padded to no more than they need.

B examples in a batch, T tokens of a row.
"""

from collections.abc import Sequence

import numpy as np

from research.data.random import generator
from research.data.rows import order, permutation
from research.task import Batch

# Batches whose examples are shared out by length. The more, the less padding, for the lengths in a batch differ by
# about one part in so many; the fewer, the more a batch is one at random. Of texts whose lengths are geometric, 32 in
# a batch, padding to the longest is 74% of a batch at random, 28% of one among 8, 8% among 32 and 5% among 50.
TOGETHER = 32


def fitting(buckets: Sequence[int], max_length: int, lengths: np.ndarray) -> int:
    """Returns T: the smallest of the buckets and `max_length` that the longest of texts of these lengths fits."""
    longest = lengths.max(initial=0)
    return next((size for size in buckets if longest <= size < max_length), max_length)


def bucketed(seed: int, n: int, batch_size: int, lengths: np.ndarray) -> np.ndarray:
    """Returns which examples batch n is made of, int64 [B]: of like length, and each once an epoch.

    The stream of examples is that of `order`. Of the batches that lie in one epoch, each TOGETHER neighbours (or a
    few less, so that all groups are of a size) share their examples out by length, and come in an order drawn from
    (seed, the first one's number). A batch that reaches from one epoch into the next is that of `order`.

    Args:
      lengths: integers [size] of all examples.
    """
    size = len(lengths)
    epoch = n * batch_size // size
    first, stop = -(-epoch * size // batch_size), (epoch + 1) * size // batch_size
    if not first <= n < stop:
        return order(seed, n, batch_size, size)[0]
    groups = -(-(stop - first) // TOGETHER)
    bounds = first + np.arange(groups + 1) * (stop - first) // groups
    group = np.searchsorted(bounds, n, side="right") - 1
    begin, end = bounds[group : group + 2].tolist()
    places = slice(begin * batch_size - epoch * size, end * batch_size - epoch * size)
    indices = permutation(seed, epoch, size)[places]
    place = generator(seed, "buckets", begin).permutation(end - begin)[n - begin]
    by_length = np.argsort(lengths[indices], kind="stable")
    return indices[by_length[place * batch_size : (place + 1) * batch_size]]


def gather(
    ids: np.ndarray,
    offsets: np.ndarray,
    numbers: np.ndarray,
    length: int,
    *,
    end: int,
    pad: int,
) -> Batch:
    """Returns tokens and segments, int32 [B, length], of the texts of these numbers.

    Args:
      ids, offsets: as in `Encoded`.
      end: tokens at a text's end that stay where it is cut.
    """
    starts = offsets[numbers]
    full = offsets[numbers + 1] - starts
    kept = np.minimum(full, length)
    columns = np.arange(length)
    real = columns < kept[:, None]
    source = starts[:, None] + columns
    if (cut := full > length).any():
        source[cut, max(length - end, 0) :] += (full - kept)[cut, None]
    tokens = np.full(real.shape, pad, np.int32)
    tokens[real] = ids[source[real]]
    return {"tokens": tokens, "segments": real.astype(np.int32)}
