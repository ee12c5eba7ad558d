"""Random numbers that are a function of what they are for, not of what was drawn before.

A number is found by its seed, the name of its stream and its counters (epoch and example, say), so it is the same in
whatever order, batch, process or worker it is asked for.

Philox4x32-10 as in Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import functools
import hashlib

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array(
    [[0x9E3779B9], [0xBB67AE85]], np.uint64
)  # what the key grows by from round to round
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10


def uniforms(seed: int, stream: str, *counters: np.ndarray, n: int) -> np.ndarray:
    """Returns numbers uniform in [0, 1), with all 53 bits that a float64 holds.

    Args:
      seed: of the run.
      stream: what the numbers are for; streams of different names are independent.
      counters: one to three integer arrays [B], from 0 to 2**32 - 1.
      n: how many numbers for each row.

    Returns:
      float64 [B, n]. Row b depends on counters[...][b] only; the first n of a longer row are the same.

    Raises:
      ValueError: a counter is out of range, or there are more than three.
    """
    if not 1 <= len(counters) <= 3:
        raise ValueError(f"one to three counters, not {len(counters)}")
    rows, blocks = len(counters[0]), (n + 1) // 2  # a block of four words makes two numbers
    counter = np.zeros((4, rows, blocks), np.uint64)
    for i, values in enumerate(counters):
        values = np.asarray(values)
        if values.size and not 0 <= values.min() <= values.max() < 2**32:
            raise ValueError(f"counter {i} is not from 0 to 2**32 - 1")
        counter[i] = values[:, None]
    counter[3] = np.arange(blocks)
    words = philox4x32(counter.reshape(4, -1), _key(seed, stream)).reshape(2, 2, rows, blocks)
    high, low = words[:, 0] >> np.uint64(5), words[:, 1] >> np.uint64(6)  # 27 and 26 bits
    numbers = high * 2.0**26 + low
    return np.moveaxis(numbers, 0, -1).reshape(rows, 2 * blocks)[:, :n] * 2.0**-53


def generator(seed: int, stream: str, counter: int) -> np.random.Generator:
    """Returns a NumPy generator for draws that belong to a batch as a whole."""
    low, high = _key(seed, stream)
    return np.random.Generator(np.random.Philox(key=[high << 32 | low, counter]))


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Encrypts counters, uint64 [4, M] of 32-bit words, to random words of the same shape."""
    even, odd = counter[0::2], counter[1::2]
    keys = np.array(key, np.uint64)[:, None]
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even, odd = (product >> np.uint64(32))[::-1] ^ odd ^ keys, (product & _LOW)[::-1]
        keys = (keys + _WEYL) & _LOW
    return np.stack([even, odd], 1).reshape(counter.shape)


@functools.lru_cache(maxsize=256)
def _key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
