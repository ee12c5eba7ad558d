"""Splits: stratified by class, and hung on the examples themselves.

Each example draws a ticket, a hash of (seed, purpose, its pixels or text), and in each class the lowest tickets
are taken. So the splits depend on neither names nor the file system's order, other examples hardly move
when some are added, and exact copies of an example hold the same ticket and go the same way (except at
the very edge). Examples of one group go the same way always: the ticket is drawn from the group's name.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.data.words import PICTURES, Words

_LISTED = 10


def make_splits(
    parts: dict[str, np.ndarray],
    labels: np.ndarray,
    digests: np.ndarray,
    keys: np.ndarray,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    groups: np.ndarray | None = None,
    pinned: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Cuts test, then validation, from 'train', where the source has none of its own.

    Args:
      parts: the source's own parts, 'train' at least -> indices.
      labels: [N] of all examples; digests: uint8 [N, 16] of their pixels or text.
      keys: [N], which decide between equal tickets.
      validation_fraction: of what is left of train after test has been cut; 0 cuts none.
      groups: str [N]; examples of one group are not parted; '' is a group of its own.
      pinned: bool [N], what is not cut from train, nor counted when a fraction of train is taken; None for none.

    Returns:
      split -> int64 indices, sorted; without splits that are empty.
    """
    splits = {part: np.asarray(indices, np.int64) for part, indices in parts.items()}
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if name in parts or not fraction:
            continue
        whole = splits["train"]
        kept = np.zeros(len(whole), bool) if pinned is None else pinned[whole]
        rest = whole[~kept]
        names = np.zeros(len(rest), str) if groups is None else groups[rest]
        order = _tickets(digests[rest], [str(keys[i]) for i in rest], names, f"{name} {seed}")
        taken = stratified(labels[rest], order, fraction, _numbers(names, keys[rest]))
        splits[name], splits["train"] = rest[taken], np.r_[rest[~taken], whole[kept]]
    return {name: np.sort(indices) for name, indices in splits.items() if len(indices)}


def too_small(
    counts: np.ndarray,
    before: np.ndarray,
    names: Sequence[str],
    cuts: list[str],
    place: str,
    words: Words = PICTURES,
) -> list[str]:
    """Returns a line for each class that is lost, or cannot be split.

    Args:
      counts: [C] examples in train; before: [C] the same before cleaning; names: [C], '' for no classes.
      cuts: the splits that are to be cut from train.
    """
    mend = f"add {words.many} of it, or take the class out"
    if tuple(names) == ("",):
        few = counts[0] == 1 and cuts
        left = f"there is one {words.one}, which can't be shared with {' and '.join(cuts)}"
        return [f"{place}: {left}; add {words.many}"] if few else []
    lost = [
        f"{place}: class '{names[c]}' has no {words.one} left to train on; {mend}"
        for c in np.flatnonzero((counts == 0) & (before > 0)).tolist()
    ]
    single = [
        f"{place}: class '{names[c]}' has one {words.one}, which can't be shared with {' and '.join(cuts)}; {mend}"
        for c in np.flatnonzero(counts == 1).tolist()
    ]
    return lost + (single if cuts else [])


def group_errors(
    parts: dict[str, np.ndarray], cuts: list[str], pool: Any, words: Words = PICTURES
) -> list[str]:
    """Returns a line for each group that lies in several of the source's own parts, or is all that a class has.

    Args:
      cuts: the splits that are to be cut from train; pool: place, keys, groups [N], labels and class_names.
    """
    groups, errors = pool.groups, []
    first: dict[str, tuple[str, int]] = {}
    for part, indices in parts.items():
        for i in indices[groups[indices] != ""]:
            name = str(groups[i])
            other, j = first.setdefault(name, (part, i))
            if other != part:
                errors.append(
                    f"{pool.place}: group '{name}' lies in {other} ({pool.keys[j]}) and in {part} ({pool.keys[i]}); "
                    "put all of it into one split"
                )
                first[name] = (part, i)
    train = parts["train"] if cuts else parts["train"][:0]
    for c, label in enumerate(pool.class_names):
        held = groups[train[pool.labels[train] == c]]
        if len(held) > 1 and held[0] and (held == held[0]).all():
            whose = f"class '{label}' has one group" if label else "all are of one group"
            errors.append(
                f"{pool.place}: {whose}, '{held[0]}', which can't be shared with "
                f"{' and '.join(cuts)}; add {words.many} of other groups"
            )
    return errors if len(errors) <= _LISTED else [*errors[:_LISTED], f"{pool.place}: ... and more"]


def stratified(
    labels: np.ndarray, order: np.ndarray, fraction: float, groups: np.ndarray | None = None
) -> np.ndarray:
    """Takes a fraction of each class, first come first served.

    The whole is round(fraction * n), shared out by largest remainders; but each class of two or more gives at least one
    and keeps at least one. A group counts as the class of its first member. It is taken whole, if that brings the class
    nearer to its share.

    Args:
      labels: [n]; order: [n], the positions in the order of taking; of a group, its first member's place counts.
      groups: [n], the position of each one's group's first member; None where each is its own.

    Returns:
      bool [n], True for what is taken.
    """
    heads = np.arange(len(labels)) if groups is None else groups
    labels = labels[heads]
    sizes = np.bincount(heads, minlength=len(labels))  # of each group, at its first member
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = fraction * counts
    take = np.floor(share + 1e-9).astype(int)
    missing = max(round(fraction * len(labels)) - take.sum(), 0)
    take[np.argsort(take - share, kind="stable")[:missing]] += 1
    take = np.clip(take, 1, np.maximum(counts - 1, 0))
    taken = np.zeros(len(labels), bool)
    for number in range(len(classes)):
        members = order[(numbers[order] == number) & (heads[order] == order)]
        chosen = _whole_groups(sizes[members], take[number])
        taken[members[chosen]] = True
    return taken[heads]


def _whole_groups(sizes: np.ndarray, share: int) -> list[int]:
    """Returns which groups to take, given their sizes in the order of taking, for about `share` examples."""
    if len(sizes) < 2:
        return []
    chosen: list[int] = []
    count = 0
    for i, size in enumerate(sizes.tolist()):
        if 2 * count + size < 2 * share and len(chosen) < len(sizes) - 1:
            chosen.append(i)
            count += size
    return chosen or [int(sizes.argmin())]  # each is more than twice the share


def fingerprint(keys: np.ndarray, labels: np.ndarray, digests: np.ndarray) -> str:
    """Returns the sha256 of a split: of its keys in order, each with its label and the digest of its pixels."""
    total = hashlib.sha256()
    for i in np.argsort(keys, kind="stable"):
        total.update(f"{keys[i]}\0{labels[i]}\0".encode() + digests[i].tobytes())
    return total.hexdigest()


def _tickets(digests: np.ndarray, keys: list[str], groups: np.ndarray, salt: str) -> np.ndarray:
    """Returns the positions in the order of their tickets."""
    head = hashlib.blake2b(salt.encode(), digest_size=16)
    tickets = []
    for digest, group in zip(digests, groups.tolist(), strict=True):
        ticket = head.copy()
        ticket.update(f"group {group}".encode() if group else digest.tobytes())
        tickets.append(ticket.digest())
    return np.array(sorted(range(len(keys)), key=lambda i: (tickets[i], keys[i])), np.int64)


def _numbers(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns [n] the position of the first member, by key, of each one's group; its own where it has none."""
    numbers = np.arange(len(groups))
    first: dict[str, int] = {}
    for i in np.argsort(keys, kind="stable").tolist():
        if name := str(groups[i]):
            numbers[i] = first.setdefault(name, i)
    return numbers
