"""Packing against best-fit decreasing item by item, the fewest rows that brute force finds, and loops over tokens."""

import itertools
import time

import numpy as np
import pytest

from research.data.text.packing import best_fit, lay_out, pack


def one_by_one(lengths, capacity):
    """How full each row is, when best-fit decreasing is written as its definition reads."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fits = [row for row in range(len(rows)) if rows[row] + length <= capacity]
        if fits:
            rows[max(fits, key=lambda row: rows[row])] += length
        else:
            rows.append(length)
    return sorted(rows)


def fewest(lengths, capacity):
    """The fewest rows possible: for every subset, the least (rows, fill of the last one)."""
    count = len(lengths)
    best = {0: (0, capacity)}
    for subset in range(1, 1 << count):
        options = []
        for item in range(count):
            if subset >> item & 1:
                rows, fill = best[subset & ~(1 << item)]
                fits = fill + lengths[item] <= capacity
                options.append((rows, fill + lengths[item]) if fits else (rows + 1, lengths[item]))
        best[subset] = min(options)
    return best[(1 << count) - 1][0]


def random_lengths(seed, count, capacity):
    rng = np.random.default_rng(seed)
    kinds = (
        rng.integers(1, capacity + 1, count),
        rng.integers(1, max(capacity // 3, 2), count),
        np.minimum(rng.geometric(min(3 / capacity, 1), count), capacity),
    )
    return kinds[seed % 3]


def fills(rows, lengths):
    return np.bincount(rows, weights=lengths).astype(int)


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 1000])
def test_the_rows_are_those_of_best_fit_decreasing(capacity):
    for seed in range(30):
        lengths = random_lengths(seed, 1 + 7 * seed, capacity)
        rows = best_fit(lengths, capacity)
        assert rows.shape == lengths.shape
        assert sorted(fills(rows, lengths)) == one_by_one(lengths.tolist(), capacity)


def test_little_more_than_the_fewest_rows_are_used():
    worse = 0
    for seed in range(150):
        capacity = (10, 17, 30)[seed % 3]
        lengths = random_lengths(seed // 3, 1 + seed % 9, capacity)
        least, used = fewest(lengths.tolist(), capacity), best_fit(lengths, capacity).max() + 1
        assert least <= used <= 11 / 9 * least + 1  # the bound of Johnson et al. 1974
        worse += used > least
    assert worse <= 5  # and that is rare


def test_fewest_is_right_where_it_is_known():
    assert fewest([6, 5, 4, 3, 2], 10) == 2 and fewest([6, 6, 6], 10) == 3
    # Best-fit decreasing is not perfect: 5 + 4, 4 + 3 + 2 and 2, where 5 + 3 + 2 and 4 + 4 + 2 would do.
    lengths = [5, 4, 4, 3, 2, 2]
    assert fewest(lengths, 10) == 2 and one_by_one(lengths, 10) == [2, 9, 9]


def test_items_without_rows_and_full_ones():
    assert best_fit(np.zeros(0, np.int64), 8).shape == (0,)
    np.testing.assert_array_equal(best_fit(np.full(5, 8), 8), np.arange(5))


@pytest.mark.parametrize("capacity", [1, 5, 16])
def test_every_token_lies_in_one_piece(capacity):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 40, rng.integers(1, 30))
        starts = np.cumsum(lengths + rng.integers(0, 4, len(lengths))) - lengths
        packed = pack(starts, lengths, capacity)
        found = [range(a, a + n) for a, n in zip(packed.starts, packed.lengths, strict=True)]
        documents = [range(a, a + n) for a, n in zip(starts, lengths, strict=True)]
        assert sorted(itertools.chain(*found)) == sorted(itertools.chain(*documents))
        # A document is cut every `capacity` tokens and nowhere else.
        cuts = [
            document[i : i + capacity]
            for document in documents
            for i in range(0, len(document), capacity)
        ]
        assert sorted(map(tuple, cuts)) == sorted(map(tuple, found))
        filled = [packed.lengths[a:b].sum() for a, b in itertools.pairwise(packed.offsets)]
        assert max(filled) <= capacity and min(filled) >= 1
        assert packed.offsets[0] == 0 and packed.offsets[-1] == len(packed.starts)


def test_rows_are_laid_out_as_loops_do_it():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 60)
    packed = pack(np.cumsum(lengths) - lengths, lengths, 32)
    total = len(packed.offsets) - 1
    for wanted in (np.arange(total), np.array([3, 0, 3]), np.array([total - 1]), np.zeros(0, int)):
        expected = []
        for k, row in enumerate(wanted):
            column = 0
            for number, piece in enumerate(range(packed.offsets[row], packed.offsets[row + 1])):
                for i in range(packed.lengths[piece]):
                    expected.append((packed.starts[piece] + i, 32 * k + column, number + 1, i))
                    column += 1
        found = list(zip(*lay_out(packed, wanted, 32), strict=True))
        assert found == expected


@pytest.mark.parametrize("seed", range(3))
def test_hardly_any_room_is_left(seed):
    lengths = np.maximum(1, np.random.default_rng(seed).lognormal(5, 1.2, 5000)).astype(int)
    packed = pack(np.cumsum(lengths) - lengths, lengths, 256)
    padding = 1 - lengths.sum() / (256 * (len(packed.offsets) - 1))
    assert (
        0 <= padding < 0.002
    )  # measured: 0.0002; documents one after the other in rows of their own leave 33%


def test_many_documents_take_seconds():
    lengths = np.random.default_rng(0).integers(1, 2048, 300_000)
    began = time.perf_counter()
    pack(np.cumsum(lengths) - lengths, lengths, 2048)
    assert time.perf_counter() - began < 20  # measured: 0.1 s; what is quadratic takes an hour
