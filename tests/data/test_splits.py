import hashlib

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from research.data.splits import fingerprint, make_splits, stratified, too_small


def make_digests(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), np.uint8)


def cut(labels, digests=None, keys=None, seed=0, validation=0.1, test=0.2, parts=None):
    n = len(labels)
    digests = make_digests(n) if digests is None else digests
    keys = np.array([f"{i:05d}" for i in range(n)]) if keys is None else keys
    parts = parts or {"train": np.arange(n)}
    return make_splits(parts, labels, digests, keys, seed, validation, test)


def test_five_thousand_digits_give_exactly_400_and_100_a_class():
    labels = np.repeat(np.arange(10), 500)
    splits = cut(labels, validation=0)
    assert set(splits) == {"train", "test"}
    np.testing.assert_array_equal(np.bincount(labels[splits["train"]]), [400] * 10)
    np.testing.assert_array_equal(np.bincount(labels[splits["test"]]), [100] * 10)


@pytest.mark.parametrize(
    ("counts", "fraction"),
    [((178, 182, 177, 183, 181), 0.21), ((7, 50, 13, 29), 0.3), ((1000, 33, 10), 0.1)],
)
def test_class_counts_are_those_of_sklearn(counts, fraction):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    size = round(fraction * len(labels))
    expected = set()
    for state in range(5):  # sklearn draws between equal remainders; these cases have none
        splitter = StratifiedShuffleSplit(1, test_size=size, random_state=state)
        _, test = next(splitter.split(labels, labels))
        expected.add(tuple(np.bincount(labels[test])))
    taken = stratified(labels, np.random.default_rng(2).permutation(len(labels)), fraction)
    assert {tuple(np.bincount(labels[taken]))} == expected


def test_splits_are_disjoint_and_complete():
    splits = cut(np.random.default_rng(0).integers(0, 7, 999))
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(999))
    assert all((np.diff(indices) > 0).all() for indices in splits.values())


def test_order_and_names_do_not_matter_and_the_seed_does():
    rng = np.random.default_rng(0)
    labels, digests = rng.integers(0, 5, 400), make_digests(400)
    order = rng.permutation(400)
    names = np.array([f"renamed {i}" for i in range(400)])
    before = cut(labels, digests)
    after = cut(labels[order], digests[order], names)
    for split in ("train", "validation", "test"):
        assert set(order[after[split]]) == set(before[split])
    assert set(cut(labels, digests, seed=1)["test"]) != set(before["test"])


def test_more_pictures_move_few_of_the_old_ones():
    labels, digests = np.arange(1010) % 5, make_digests(1010)
    before, after = cut(labels[:1000], digests[:1000]), cut(labels, digests)
    assert len(set(before["test"]) - set(after["test"])) <= 10


def test_copies_of_a_picture_go_the_same_way():
    digests = make_digests(1000)
    digests[500:] = digests[:500]
    splits = cut(np.tile(np.arange(500) % 5, 2), digests)
    where = np.zeros(1000, int)
    for number, indices in enumerate(splits.values()):
        where[indices] = number
    assert (where[:500] != where[500:]).sum() <= 2 * 5  # at the edge of each cut in each class


def test_the_sources_own_test_split_is_respected():
    parts = {"train": np.arange(80), "test": np.arange(80, 100)}
    splits = cut(np.arange(100) % 4, parts=parts, validation=0.25)
    np.testing.assert_array_equal(splits["test"], parts["test"])
    assert len(splits["validation"]) == 20 and splits["train"].max() < 80


def test_each_class_gives_one_and_keeps_one():
    labels = np.array([0] * 50 + [1, 1] + [2, 2, 2])
    taken = stratified(labels, np.arange(55), 0.01)
    np.testing.assert_array_equal(np.bincount(labels[taken], minlength=3), [1, 1, 1])


def test_classes_that_are_too_small_are_named():
    counts, before = np.array([5, 1, 0, 0]), np.array([5, 1, 2, 0])
    names = ("cat", "dog", "emu", "fox")
    lost, single = too_small(counts, before, names, ["test"], "/pictures")
    assert "'emu' has no picture" in lost and "'dog' has one picture" in single
    assert all(line.startswith("/pictures") for line in (lost, single))
    assert too_small(counts, counts, names, [], "/pictures") == []


def test_a_fingerprint_is_the_sha256_of_keys_labels_and_digests():
    digests = make_digests(3)
    expected = hashlib.sha256()
    for key, label, i in (("a", 1, 2), ("b", 0, 0), ("c", 2, 1)):
        expected.update(f"{key}\0{label}\0".encode() + bytes(digests[i]))
    got = fingerprint(np.array(["b", "c", "a"]), np.array([0, 2, 1], np.int32), digests)
    assert got == expected.hexdigest()
