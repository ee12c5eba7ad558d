"""Which pictures are there twice: exactly, by a digest of their pixels, or nearly, by a perceptual hash.

N pictures of H x W x C. Two pictures are near duplicates if their pixels correlate: taken to mean 0 and
standard deviation 1, so that brightness and contrast fall away, they differ by at most NEAR in the root
mean square, which is a correlation of 1 - NEAR**2 / 2 = 0.995. Re-encoded, rescaled and relit copies
pass; two different trousers don't.

The search is pHash (C. Zauner, Implementation and benchmarking of perceptual image hash functions, 2010)
without its last step: the 8 x 8 lowest coefficients of the cosine transform, but kept as numbers instead
of one bit each. The transform is orthonormal, so the distance of two hashes never exceeds that of the
pictures: no pair is missed, and what the hash lets through is then measured on the pixels.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

from research.data.source import Progress

NEAR = 0.1  # root mean square difference of standardised pixels
_FREQUENCIES = 8
_BLOCK = 1024


class Findings(NamedTuple):
    """What the pixels, or the characters, alone say; what is done about it is for clean.py to judge."""

    digests: np.ndarray  # uint8 [N, 16] equal for equal pictures only
    blank: np.ndarray  # bool [N]
    pairs: np.ndarray  # int64 [P, 2] near duplicates that are not exact ones, ascending
    distances: np.ndarray  # float32 [P] in the root mean square of standardised pixels; 1 - Jaccard


def find(images: np.ndarray) -> Findings:
    """Looks through all pictures, uint8 [N, H, W, C]."""
    digest, blank = digests(images), is_blank(images)
    candidates = np.flatnonzero(~blank)
    # Of equal pictures only the first is compared; what is found then holds for each of its copies.
    groups = [candidates[group] for group in exact_groups(digest[candidates])]
    later = np.concatenate([group[1:] for group in groups]) if groups else np.zeros(0, np.int64)
    pairs, distances = near_pairs(images, np.setdiff1d(candidates, later))
    pairs, distances = spread(pairs, distances, {int(group[0]): group for group in groups})
    ranked = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Findings(digest, blank, pairs[ranked], distances[ranked])


def digests(images: np.ndarray) -> np.ndarray:
    """Returns a digest of each picture's pixels, uint8 [N, 16]: equal digests, equal pictures."""
    hashed = (
        hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in np.asarray(images)
    )
    return np.frombuffer(b"".join(hashed), np.uint8).reshape(len(images), 16)


def is_blank(images: np.ndarray) -> np.ndarray:
    """Returns bool [N]: every channel has one value only."""
    size, channels = math.prod(images.shape[1:3]), images.shape[-1]
    found = [np.zeros(0, bool)]
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK].reshape(-1, size, channels)
        found.append((block == block[:, :1]).all((1, 2)))
    return np.concatenate(found)


def exact_groups(digest: np.ndarray) -> list[np.ndarray]:
    """Returns the positions of each picture that is there more than once, [K] each, K >= 2, ascending."""
    return equal_rows(np.ascontiguousarray(digest).view("<u8"))


def equal_rows(rows: np.ndarray) -> list[np.ndarray]:
    """Returns the positions of each row of [N, C] numbers that is there more than once, as `exact_groups`."""
    order = np.lexsort(rows.T[::-1])  # stable: what is equal stays ascending
    ordered = rows[order]
    same = (ordered[1:] == ordered[:-1]).all(1)
    # A group begins where a run of `same` does, and has one member more.
    edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
    return [order[a : b + 1] for a, b in edges.reshape(-1, 2).tolist()]


def near_pairs(
    images: np.ndarray, rows: np.ndarray, near: float = NEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Finds near duplicates among some of the pictures, none of which is blank.

    Args:
      images: uint8 [N, H, W, C]; rows: int64 [R], which of them.

    Returns:
      pairs int64 [P, 2] of numbers of pictures, the smaller first; distances float32 [P].
    """
    if not len(rows):
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    hashes = _hashes(images, rows)
    axis = hashes.var(0).argmax()
    order = np.argsort(hashes[:, axis], kind="stable")
    hashes, order = hashes[order], rows[order]
    squares, line = (hashes**2).sum(1, keepdims=True), hashes[:, axis]
    # |a - b|^2 = a.a - 2 a.b + b.b as one product, so that each block of distances is written once.
    ones = np.ones_like(squares)
    here = np.concatenate([hashes * -2, squares, ones], 1)
    there = np.concatenate([hashes, ones, squares], 1)
    # Rounding must not lose a pair whose distance lies on the edge.
    reach = near + 1e-3
    found, distances = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    progress = Progress("comparing", len(hashes))
    for start in range(0, len(hashes), _BLOCK):
        stop = min(start + _BLOCK, len(hashes))
        # Along the axis of most variance everything further than `reach` is already too far.
        end = np.searchsorted(line, line[stop - 1] + reach, side="right")
        for left in range(start, end, 2 * _BLOCK):
            right = min(left + 2 * _BLOCK, end)
            close_by = (here[start:stop] @ there[left:right].T) < reach**2
            a, b = np.divmod(np.flatnonzero(close_by), right - left)  # far faster than np.nonzero
            a, b = a + start, b + left
            close = order[np.stack([a[a < b], b[a < b]], 1)]
            measured = _distances(images, close)
            found.append(close[measured <= near])
            distances.append(measured[measured <= near])
        progress.step(stop - start)
    progress.close()
    return np.sort(np.concatenate(found), 1), np.concatenate(distances)


def standardise(images: np.ndarray) -> np.ndarray:
    """Returns float32 of the same shape; each picture with mean 0 and standard deviation 1 over all its values."""
    pixels = images.astype(np.float32)
    pixels -= pixels.mean((1, 2, 3), keepdims=True)
    return pixels / np.maximum(pixels.std((1, 2, 3), keepdims=True), 1e-6)


def _hashes(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The lowest cosine coefficients of the mean over channels, float32 [R, K], scaled to root mean square."""
    _, height, width, _ = images.shape
    down, across = _cosines(height), _cosines(width)
    hashes = np.empty((len(rows), len(down) * len(across)), np.float32)
    for i in range(0, len(rows), _BLOCK):
        grey = standardise(images[rows[i : i + _BLOCK]]).mean(-1)
        # mean * sqrt(C) is one more orthonormal projection; the division turns length into root mean square.
        hashes[i : i + _BLOCK] = (down @ grey @ across.T).reshape(len(grey), -1) / np.sqrt(
            height * width
        )
    return hashes


def _cosines(size: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II, float32 [min(8, size), size]."""
    frequency = np.arange(min(_FREQUENCIES, size))[:, None]
    rows = np.cos(np.pi * frequency * (np.arange(size) + 0.5) / size) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _distances(images: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Root mean square difference of standardised pixels for each pair, float32 [P]."""
    size = int(np.prod(images.shape[1:]))
    left, row = np.unique(pairs[:, 0], return_inverse=True)
    right, column = np.unique(pairs[:, 1], return_inverse=True)
    if len(pairs) > 10 * (
        len(left) + len(right)
    ):  # the frames of a film: all products at once are cheaper
        a, b = (standardise(images[side]).reshape(-1, size) for side in (left, right))
        return np.sqrt(np.maximum(2 - (2 / size) * (a @ b.T)[row, column], 0))
    block = max(1, 2**22 // size)
    distances = np.empty(len(pairs), np.float32)
    for i in range(0, len(pairs), block):
        a, b = (standardise(images[pairs[i : i + block, side]]) for side in (0, 1))
        distances[i : i + block] = np.sqrt(((a - b) ** 2).mean((1, 2, 3)))
    return distances


def spread(
    pairs: np.ndarray, distances: np.ndarray, copies: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Adds, to each pair whose members have copies, the pairs of those copies."""
    several = np.isin(pairs, list(copies)).any(1)
    spread, repeated = [pairs[~several]], [distances[~several]]
    for (a, b), distance in zip(pairs[several].tolist(), distances[several], strict=True):
        every = np.stack(np.meshgrid(copies.get(a, a), copies.get(b, b)), -1).reshape(-1, 2)
        spread.append(np.sort(every, 1))
        repeated.append(np.full(len(every), distance))
    return np.concatenate(spread), np.concatenate(repeated)
