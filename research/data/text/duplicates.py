"""Which texts are there twice: exactly, by a digest, or nearly, by MinHash.

N texts. Two are near duplicates if the sets of their pieces have a Jaccard similarity (shared pieces over all pieces)
of NEAR or more. Pieces are all runs of PIECE characters, of the text in lower case with every run of white space as one
space. One word changed in a sentence of twenty, another ending, another case, another indent: near duplicates.

The search is MinHash with locality-sensitive hashing (A. Broder, On the resemblance and containment of documents, 1997;
P. Indyk and R. Motwani, Approximate nearest neighbors, 1998), from the library datasketch. Bands of five values out of
125 find a pair of similarity NEAR with a chance of 99.995%. What they find is then measured exactly. Nothing is
sampled: the time grows with the number of distinct pieces. But in a crowd of texts alike (a log, one template filled in
again and again) not all pairs can be measured: a text that looks like PARTNERS before it, or was held against CROWD, is
not held against later ones. How many there are is told.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from research.data.duplicates import Findings, exact_groups, spread
from research.data.source import Progress

NEAR = 0.8  # Jaccard similarity
PIECE = 5  # characters
PARTNERS, CROWD = 100, 1000
_BANDS, _ROWS = 25, 5
# The estimate's standard deviation at NEAR is sqrt(0.8 * 0.2 / 125) = 0.036: nothing is lost five of them below.
_ESTIMATE = 0.6
_BLOCK = 16384  # pieces hashed at a time: 8 MB
_SPACE = re.compile(r"\s+")


def find(
    texts: Sequence[str],
    said: Callable[[str], str] = str,
    learnt: Callable[[str], str] | None = None,
) -> tuple[Findings, int]:
    """Looks through all texts.

    Args:
      said: text -> what of it is compared nearly.
      learnt: text -> what of it must not be blank; None is what is compared.

    Returns:
      Findings, whose distances are 1 - Jaccard; how many texts stood in a crowd.
    """
    digest = digests(texts)
    blank = np.array([not (learnt or said)(text).strip() for text in texts], bool)
    candidates = np.flatnonzero(~blank)
    # Of equal texts only the first is compared; what is found then holds for each of its copies.
    groups = [candidates[group] for group in exact_groups(digest[candidates])]
    later = np.concatenate([group[1:] for group in groups]) if groups else np.zeros(0, np.int64)
    pairs, distances, crowded = near_pairs(texts, np.setdiff1d(candidates, later), said)
    pairs, distances = spread(pairs, distances, {int(group[0]): group for group in groups})
    ranked = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Findings(digest, blank, pairs[ranked], distances[ranked]), crowded


def digests(texts: Iterable[str]) -> np.ndarray:
    """Returns a digest of each text, uint8 [N, 16]: equal digests, equal texts."""
    hashed = b"".join(hashlib.blake2b(t.encode(), digest_size=16).digest() for t in texts)
    return np.frombuffer(hashed, np.uint8).reshape(-1, 16)


def near_pairs(
    texts: Sequence[str], rows: np.ndarray, said: Callable[[str], str] = str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Finds near duplicates among some of the texts.

    Args:
      rows: int64 [R], which of them.

    Returns:
      pairs int64 [P, 2] of numbers of texts, the smaller first; distances float32 [P], 1 - Jaccard; how many
      texts stood in a crowd.
    """
    held = lru_cache(4096)(lambda i: pieces(said(texts[i])))
    found, distances = [], []
    crowded: list[int] = []
    for i, j in _candidates(rows.tolist(), held, crowded):
        a, b = held(i), held(j)
        shared = len(np.intersect1d(a, b, assume_unique=True))
        union = len(a) + len(b) - shared
        if shared >= NEAR * union:
            found.append((min(i, j), max(i, j)))
            distances.append(1 - shared / union)
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs, np.array(distances, np.float32), len(crowded)


def pieces(text: str) -> np.ndarray:
    """Returns a hash of each distinct piece, uint64 [K], ascending; a text shorter than a piece is one."""
    plain = _SPACE.sub(" ", text.lower()).strip()
    codes = np.frombuffer(plain.encode("utf-32-le"), np.uint32).astype(np.uint64)
    size = min(PIECE, len(codes))
    if not size:
        return np.zeros(0, np.uint64)
    total = np.full(len(codes) - size + 1, size, np.uint64)
    for k in range(size):
        total = _mixed(total + codes[k : len(codes) - size + 1 + k])
    return np.unique(total)


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that leaves no pattern: the end of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _candidates(
    rows: list[int], held: Callable[[int], np.ndarray], crowded: list[int]
) -> Iterable[tuple[int, int]]:
    """Yields pairs that share a band, are of like size and look alike by all their values; notes the crowded."""
    from datasketch import MinHash, MinHashLSH

    width = _BANDS * _ROWS
    plain = MinHash(width, hashfunc=int, scheme="affine32")
    index = MinHashLSH(num_perm=width, params=(_BANDS, _ROWS))
    values, sizes = np.zeros((len(rows), width), np.uint32), np.zeros(len(rows), np.int64)
    progress = Progress("comparing", len(rows), "texts")
    for k, row in enumerate(rows):
        mine = held(row)
        sketch = plain.copy()
        for start in range(0, len(mine), _BLOCK):
            low = mine[start : start + _BLOCK] & np.uint64(0xFFFFFFFF)
            sketch.update_batch(low.tolist())
        values[k], sizes[k] = sketch.hashvalues, len(mine)
        others = np.array(sorted(index.query(sketch)), np.int64)
        alike = (values[others] == values[k]).mean(1) >= _ESTIMATE
        least = np.minimum(sizes[others], sizes[k])
        alike &= least >= NEAR * np.maximum(sizes[others], sizes[k])
        if alike.sum() >= PARTNERS or len(others) >= CROWD:
            crowded.append(row)
        else:
            index.insert(k, sketch, check_duplication=False)
        for other in others[alike].tolist():
            yield row, rows[other]
        progress.step()
    progress.close()
