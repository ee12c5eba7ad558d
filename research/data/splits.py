"""Splits: stratified by class, and hung on the pictures themselves.

Each picture draws a ticket, a hash of (seed, purpose, its pixels), and in each class the lowest tickets
are taken. So the splits depend on neither names nor the file system's order, other pictures hardly move
when some are added, and exact copies of a picture hold the same ticket and go the same way (except at
the very edge).
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def make_splits(
    parts: dict[str, np.ndarray],
    labels: np.ndarray,
    digests: np.ndarray,
    keys: np.ndarray,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> dict[str, np.ndarray]:
    """Cuts test, then validation, from 'train', where the source has none of its own.

    Args:
      parts: the source's own parts, 'train' at least -> indices.
      labels: [N] of all pictures; digests: uint8 [N, 16] of their pixels.
      keys: [N], which decide between equal tickets.
      validation_fraction: of what is left of train after test has been cut; 0 cuts none.

    Returns:
      split -> int64 indices, sorted; without splits that are empty.
    """
    splits = {part: np.asarray(indices, np.int64) for part, indices in parts.items()}
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if name in parts or not fraction:
            continue
        rest = splits["train"]
        order = _tickets(digests[rest], [str(keys[i]) for i in rest], f"{name} {seed}")
        taken = stratified(labels[rest], order, fraction)
        splits[name], splits["train"] = rest[taken], rest[~taken]
    return {name: np.sort(indices) for name, indices in splits.items() if len(indices)}


def too_small(
    counts: np.ndarray, before: np.ndarray, names: Sequence[str], cuts: list[str], place: str
) -> list[str]:
    """Returns a line for each class that is lost, or cannot be split.

    Args:
      counts: [C] pictures in train; before: [C] the same before cleaning; names: [C].
      cuts: the splits that are to be cut from train.
    """
    mend = "add pictures of it, or take the class out"
    lost = [
        f"{place}: class '{names[c]}' has no picture left to train on; {mend}"
        for c in np.flatnonzero((counts == 0) & (before > 0)).tolist()
    ]
    single = [
        f"{place}: class '{names[c]}' has one picture, which can't be shared with {' and '.join(cuts)}; {mend}"
        for c in np.flatnonzero(counts == 1).tolist()
    ]
    return lost + (single if cuts else [])


def stratified(labels: np.ndarray, order: np.ndarray, fraction: float) -> np.ndarray:
    """Takes a fraction of each class, first come first served.

    The whole is round(fraction * n), shared out by largest remainders; but each class of two or more gives at least one
    and keeps at least one.

    Args:
      labels: [n]; order: [n], the positions in the order of taking.

    Returns:
      bool [n], True for what is taken.
    """
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = fraction * counts
    take = np.floor(share + 1e-9).astype(int)
    missing = max(round(fraction * len(labels)) - take.sum(), 0)
    take[np.argsort(take - share, kind="stable")[:missing]] += 1
    take = np.clip(take, 1, np.maximum(counts - 1, 0))
    taken = np.zeros(len(labels), bool)
    for number in range(len(classes)):
        members = order[numbers[order] == number]
        taken[members[: take[number]]] = True
    return taken


def fingerprint(keys: np.ndarray, labels: np.ndarray, digests: np.ndarray) -> str:
    """Returns the sha256 of a split: of its keys in order, each with its label and the digest of its pixels."""
    total = hashlib.sha256()
    for i in np.argsort(keys, kind="stable"):
        total.update(f"{keys[i]}\0{labels[i]}\0".encode() + digests[i].tobytes())
    return total.hexdigest()


def _tickets(digests: np.ndarray, keys: list[str], salt: str) -> np.ndarray:
    """Returns the positions in the order of their tickets."""
    head = hashlib.blake2b(salt.encode(), digest_size=16)
    tickets = []
    for digest in digests:
        ticket = head.copy()
        ticket.update(digest.tobytes())
        tickets.append(ticket.digest())
    return np.array(sorted(range(len(keys)), key=lambda i: (tickets[i], keys[i])), np.int64)
