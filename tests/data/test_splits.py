import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from research.data.splits import fingerprint, group_errors, make_splits, stratified, too_small


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


def grouped(n=600, groups=120, classes=4, seed=0):
    """Labels, digests, keys and groups of n pictures, a third of which are in no group."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, groups, n)
    labels = numbers % classes  # all of a group are of one class
    names = np.array([f"g{number}" if number % 3 else "" for number in numbers])
    return labels, make_digests(n), np.array([f"{i:05d}" for i in range(n)]), names


def cut_groups(labels, digests, keys, groups, seed=0, validation=0.1, test=0.2):
    parts = {"train": np.arange(len(labels))}
    return make_splits(parts, labels, digests, keys, seed, validation, test, groups)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_lies_in_two_splits_and_the_shares_are_about_right(seed):
    labels, digests, keys, groups = grouped()
    splits = cut_groups(labels, digests, keys, groups, seed)
    held = [set(groups[indices]) - {""} for indices in splits.values()]
    assert len(set.union(*held)) == sum(map(len, held))
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(600))
    for c in range(4):
        mine = labels == c
        largest = max(np.unique(groups[mine & (groups != "")], return_counts=True)[1])
        # A group is taken if that is nearer: half of it too much at most, and one for the rounding of shares.
        assert abs((labels[splits["test"]] == c).sum() - 0.2 * mine.sum()) <= largest / 2 + 1


def test_order_and_names_of_grouped_pictures_do_not_matter_and_the_seed_does():
    labels, digests, keys, groups = grouped()
    before = cut_groups(labels, digests, keys, groups)
    order = np.random.default_rng(1).permutation(len(labels))
    after = cut_groups(labels[order], digests[order], keys[order], groups[order])
    for split, indices in before.items():
        assert set(order[after[split]]) == set(indices)
    other = cut_groups(labels, digests, keys, groups, seed=1)
    assert set(other["test"]) != set(before["test"])
    # Other pixels, the same groups: the ticket is the group's, not the picture's.
    named = groups != ""
    again = cut_groups(labels[named], make_digests(named.sum(), 7), keys[named], groups[named])
    first = cut_groups(labels[named], digests[named], keys[named], groups[named])
    np.testing.assert_array_equal(again["test"], first["test"])


def test_pictures_without_groups_are_cut_as_if_there_were_none():
    labels, digests, keys, _ = grouped()
    some = cut_groups(labels, digests, keys, np.full(600, ""))
    none = cut_groups(labels, digests, keys, None)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(some[split], none[split])


def test_a_group_is_of_the_class_of_its_first_member_by_key():
    # Class 1 has nothing but the members of class 0's groups: each class's own groups are shared out apart.
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    keys = np.array(list("abcdefgh"))
    groups = np.array(["p", "p", "q", "q", "r", "r", "s", "s"])
    splits = cut_groups(labels, make_digests(8), keys, groups, validation=0, test=0.25)
    assert len(splits["test"]) == 2 and len(set(groups[splits["test"]])) == 1
    assert sorted(labels[splits["test"]]) == [0, 1]


def test_large_groups_leave_something_on_both_sides():
    labels, keys = np.zeros(20, int), np.array([f"{i:02d}" for i in range(20)])
    groups = np.array(["big"] * 12 + ["small"] * 8)
    for seed in range(5):
        splits = cut_groups(
            labels, make_digests(20), keys, groups, seed=seed, validation=0, test=0.1
        )
        assert set(groups[splits["test"]]) == {"small"}  # nearer to 2 of 20


def pool_of(labels, groups):
    keys = np.array([f"{i}.png" for i in range(len(labels))])
    return SimpleNamespace(
        place="/p", keys=keys, labels=labels, groups=groups, class_names=("cat", "dog")
    )


def test_groups_that_cannot_be_kept_together_are_named():
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array(["a", "b", "", "c", "c"])
    parts = {"train": np.array([0, 2, 3, 4]), "test": np.array([1])}
    (line,) = group_errors(parts, ["validation"], pool_of(labels, groups))
    assert "class 'dog' has one group, 'c'" in line and "validation" in line
    assert group_errors(parts, [], pool_of(labels, groups)) == []
    groups[1] = "a"
    (line,) = group_errors(parts, [], pool_of(labels, groups))
    assert "group 'a' lies in train (0.png) and in test (1.png)" in line
