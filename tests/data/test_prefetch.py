"""Batches made ahead: their order, how many, errors, ends, waiting; and Grain's workers."""

import gc
import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from research.config import defaults
from research.data.batches import make_batches
from research.data.prefetch import prefetch, stream


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not threads()
    yield
    assert not threads()


def test_in_order_and_in_another_thread():
    with prefetch(lambda n: (n * n, threading.get_ident()), 3, 50, depth=4) as batches:
        found = list(batches)
    assert [(n, value) for n, (value, _) in found] == [(n, n * n) for n in range(3, 50)]
    assert {thread for _, (_, thread) in found}.isdisjoint({threading.get_ident()})
    assert list(batches) == []


def test_an_empty_range_ends_at_once():
    with prefetch(lambda n: n, 5, 5, depth=1) as batches:
        assert list(batches) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_are_made_than_depth(depth):
    made = []
    with prefetch(lambda n: made.append(n), 0, 100, depth=depth) as batches:
        for taken in range(1, 6):
            next(batches)
            deadline = time.monotonic() + 5
            while len(made) < taken + depth and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # time enough for one too many
            assert len(made) == taken + depth


def test_an_error_comes_in_its_turn_with_its_traceback():
    def make(n):
        if n == 3:
            raise RuntimeError("no third batch")
        return n

    with prefetch(make, 0, 9, depth=8) as batches:
        assert [next(batches) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
        with pytest.raises(RuntimeError, match="no third batch") as caught:
            next(batches)
        assert "make" in [entry.name for entry in caught.traceback]
        assert list(batches) == []


def test_leaving_early_stops_the_thread():
    made = itertools.count()
    with prefetch(lambda n: next(made), 0, 10**9, depth=2) as batches:
        next(batches)
    assert not threads()
    assert list(batches) == []
    batches.close()  # twice is fine
    with pytest.raises(KeyError), prefetch(lambda n: n, 0, 10**9, depth=2):
        raise KeyError
    assert not threads()


def test_an_iterator_that_is_dropped_stops_its_thread():
    batches = prefetch(lambda n: n, 0, 10**9, depth=2)
    next(batches)
    assert threads()
    del batches
    gc.collect()
    assert not threads()


def test_waiting_is_measured_apart_from_the_first():
    """Bounds from below where the thread is slow; from above, a wide one, where it is not."""

    def slow(n):
        time.sleep(0.2 if n == 0 else 0.05)

    began = time.perf_counter()
    with prefetch(slow, 0, 5, depth=2) as batches:
        for _ in batches:
            pass
    elapsed = time.perf_counter() - began
    assert batches.waited_first >= 0.2 * 0.9
    assert batches.waited >= 4 * 0.05 * 0.9
    assert batches.waited_first + batches.waited <= elapsed
    with prefetch(lambda n: n, 0, 5, depth=2) as batches:
        for _ in batches:
            time.sleep(0.05)
    assert batches.waited < 0.1  # of 0.25 s


@pytest.fixture
def store():
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        images=rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8),
        labels=rng.integers(0, 5, 50).astype(np.int32),
        splits={"train": np.arange(50)},
        mean=np.array([0.5], np.float32),
        std=np.array([0.25], np.float32),
    )


def batches_of(store, loader, workers, records, start=2, stop=9):
    data = defaults().data
    data.update(dict(loader=loader, workers=workers))
    data.augment.update(dict(shift=1, rotate=10.0, mixup=0.3))
    train_batch, _ = make_batches(
        store, data, seed=1, batch_size=12, eval_batch_size=12, records=records
    )
    with stream(
        train_batch, slice(4, 8), start, stop, data, put=lambda batch: batch | {"put": True}
    ) as batches:
        return list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_grain_streams_the_same_bits(store, workers):
    records = [{"image": image} for image in store.images]
    expected = batches_of(store, "memory", 0, None)
    got = batches_of(store, "grain", workers, records)
    assert [n for n, _ in got] == [n for n, _ in expected] == list(range(2, 9))
    for (_, a), (_, b) in zip(expected, got, strict=True):
        assert a.keys() == b.keys() and a.pop("put") and b.pop("put")
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def test_an_error_of_a_grain_source_reaches_the_loop(store):
    with pytest.raises(IndexError):
        batches_of(store, "grain", 0, [{"image": image} for image in store.images[:20]])
