"""Which examples a batch is made of: what the batches of every kind of data have in common.

B rows in a batch.
"""

import functools
from typing import Any

import numpy as np

from research.task import Batch


def order(seed: int, n: int, batch_size: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples, of `size`, batch n is made of, and in which epoch each is: int64 [B], int64 [B]."""
    epochs, places = np.divmod(np.arange(n * batch_size, (n + 1) * batch_size), size)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = permutation(seed, epoch, size)[places[here]]
    return indices, epochs


@functools.lru_cache(maxsize=2)  # a batch lies in one epoch, or in two
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the order of `size` examples in an epoch, int64 [size], not to be written to."""
    numbers = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)
    numbers.flags.writeable = False
    return numbers


def rows_of(numbers: np.ndarray, n: int, batch_size: int, rows: slice) -> np.ndarray:
    """Returns those of `numbers` that lie in the rows of batch n; fewer at the end."""
    places = n * batch_size + np.arange(batch_size)[rows]
    return numbers[places[places < len(numbers)]]


def masked(values: dict[str, np.ndarray], ids: np.ndarray, size: int) -> Batch:
    """Returns a batch of `size` rows: `values`, id and mask, filled up with zeros, and with -1 for an id."""
    lacking = size - len(ids)

    def fill(array: np.ndarray, value: int = 0) -> np.ndarray:
        if not lacking:
            return array
        return np.concatenate([array, np.full((lacking, *array.shape[1:]), value, array.dtype)])

    return {
        **{name: fill(array) for name, array in values.items()},
        "id": fill(ids.astype(np.int32), -1),
        "mask": fill(np.ones(len(ids), np.float32)),
    }


def batch_error(
    batch_size: int, size: int, examples: str = "examples", mend: str = ""
) -> list[str]:
    """Returns a line if the training split, of `size` examples, is too small for one batch; `mend`: another way."""
    if batch_size <= size:
        return []
    return [
        f"config.train.batch_size is {batch_size:,} but the training split holds {size:,} {examples}: "
        f"set config.train.batch_size to {size} or less{mend}"
    ]


def loader_error(data: Any) -> list[str]:
    """Returns a line if `data.workers` are asked for from a loader that has none."""
    if not data.workers or data.loader == "grain":
        return []
    return [
        f"config.data.workers is {data.workers} but config.data.loader is '{data.loader}', which has none: "
        "set config.data.loader=grain or config.data.workers=0"
    ]
