"""Random numbers against published constants and statistical tests."""

import numpy as np
import pytest
from scipy import stats

from research.data.random import generator, philox4x32, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # tests/kat_vectors of Random123 1.14
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter, key, expected):
    words = np.array([[int(w, 16)] for w in counter.split()], np.uint64)
    got = philox4x32(words, tuple(int(w, 16) for w in key.split()))
    assert [f"{int(w):08x}" for w in got[:, 0]] == expected.split()


def test_uniform_in_value_and_free_of_correlation():
    epochs, examples = (
        a.ravel() for a in np.meshgrid(np.arange(20), np.arange(5000), indexing="ij")
    )
    u = uniforms(7, "test", epochs, examples, n=3)  # [100000, 3]
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
        assert stats.chisquare(np.bincount((column * 256).astype(int), minlength=256)).pvalue > 1e-3
        low_bits = (column * 2**53).astype(np.uint64) & np.uint64(255)
        assert stats.chisquare(np.bincount(low_bits.astype(int), minlength=256)).pvalue > 1e-3
    grid = u.reshape(20, 5000, 3)
    other = uniforms(8, "test", epochs, examples, n=1)[:, 0]
    pairs = [
        (grid[:, 1:], grid[:, :-1]),  # the next example
        (grid[1:], grid[:-1]),  # the next epoch
        (u[:, 0], u[:, 1]),  # the two numbers of a block
        (u[:, 0], u[:, 2]),  # those of two blocks
        (u[:, 0], other),  # the next seed
        (u[:, 0], uniforms(7, "tesu", epochs, examples, n=1)[:, 0]),  # another stream
    ]
    for a, b in pairs:
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > 1e-3


def test_pairs_fill_the_square_evenly():
    u = uniforms(0, "pairs", np.arange(100_000), n=2)
    cells = np.bincount((u * 32).astype(int) @ [32, 1], minlength=1024)
    assert stats.chisquare(cells).pvalue > 1e-3


def test_a_row_depends_on_its_own_counters_only():
    epochs, examples = np.repeat([0, 1, 2**32 - 1], 4), np.tile([0, 1, 2, 2**32 - 1], 3)
    whole = uniforms(3, "a", epochs, examples, n=5)
    assert len(np.unique(whole)) == whole.size
    for i in range(len(whole)):
        np.testing.assert_array_equal(
            whole[i : i + 1], uniforms(3, "a", epochs[i : i + 1], examples[i : i + 1], n=5)
        )
    np.testing.assert_array_equal(whole[:, :2], uniforms(3, "a", epochs, examples, n=2))


@pytest.mark.parametrize("counter", [-1, 2**32])
def test_a_counter_out_of_range_is_refused(counter):
    with pytest.raises(ValueError, match="counter 0"):
        uniforms(0, "a", np.array([counter]), n=1)


def test_generators_differ_by_seed_stream_and_counter():
    firsts = [
        generator(*args).random() for args in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert len(set(firsts)) == 4
    assert generator(0, "a", 0).random() == firsts[0]
