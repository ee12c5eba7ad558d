"""Batches made ahead of the step that needs them, in order.

with prefetch(load, 0, 1000, depth=4) as batches:
    for n, batch in batches:
        ...
batches.waited  # seconds for which the loop had nothing to do
"""

import contextlib
import gc
import multiprocessing
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from research.task import Batch


def prefetch(make: Callable[[int], Any], start: int, stop: int, depth: int) -> "Prefetch":
    """Returns an iterator over (n, make(n)) for n from start to stop - 1, computed by a background thread.

    Args:
      depth: how many are made, or being made, ahead of the consumer.
    """
    return Prefetch(((n, make(n)) for n in range(start, stop)), depth)


def stream(
    train_batch: Callable[[int, slice], Batch],
    rows: slice,
    start: int,
    stop: int,
    data: Any,
    put: Callable[[Batch], Any] = lambda batch: batch,
) -> "Prefetch":
    """Returns an iterator over (n, put(train_batch(n, rows))), by the loader that the config names.

    The batches are the same whatever the loader and its workers.

    Args:
      data: reads loader ('memory': a thread of this process; 'grain': data.workers processes) and prefetch.
      put: what is still to be done with a batch in this process, such as moving it to devices.
    """
    if data.loader != "grain" or start >= stop:
        return prefetch(lambda n: put(train_batch(n, rows)), start, stop, data.prefetch)
    batches = _grain(train_batch, rows, start, stop, data.workers, data.prefetch)
    return Prefetch(((n, put(batch)) for n, batch in batches), data.prefetch)


class Prefetch(Iterator[Any]):
    """Iterates over `items` in a background thread. An exception there is raised here, in its turn.

    waited_first: seconds until the first item was there; waited: seconds spent waiting for all later ones.
    """

    def __init__(self, items: Iterator[Any], depth: int):
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, not {depth}")
        self.waited_first = self.waited = 0.0
        self._taken = 0
        self._ready: queue.SimpleQueue = (
            queue.SimpleQueue()
        )  # (item, exception); bounded by _places
        self._places = threading.Semaphore(depth)
        stopped = threading.Event()
        # The thread must not hold `self`, or an iterator that is dropped would never be collected.
        given = (items, self._ready, self._places, stopped)
        thread = threading.Thread(target=_work, args=given, name="prefetch", daemon=True)
        self.close = weakref.finalize(self, _close, thread, self._places, stopped)  # also at exit
        thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        if not self.close.alive:
            raise StopIteration
        began = time.perf_counter()
        item, error = self._ready.get()
        seconds = time.perf_counter() - began
        if error is not None:
            self.close()
            raise error
        if self._taken:
            self.waited += seconds
        else:
            self.waited_first = seconds
        self._taken += 1
        self._places.release()
        return item

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _work(items, ready, places, stopped) -> None:
    with contextlib.closing(items):
        while True:
            places.acquire()
            if stopped.is_set():
                return
            try:
                ready.put((next(items), None))
            except BaseException as error:  # StopIteration too: it is what ends the consumer's loop
                ready.put((None, error))
                return


def _close(thread: threading.Thread, places: threading.Semaphore, stopped: threading.Event) -> None:
    stopped.set()
    places.release()
    if thread is not threading.current_thread():
        thread.join()


def _grain(train_batch, rows, start, stop, workers, depth) -> Iterator[tuple[int, Batch]]:
    """Yields (n, batch), made by Grain: an element is a whole batch, and workers take turns."""
    import grain
    from absl import flags

    elements = grain.MapDataset.range(start, stop).map(lambda n: train_batch(int(n), rows))
    # No threads of Grain's own: `Prefetch` has one already, and a worker is a process.
    made = elements.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain has flags of its own; launch.py parses none
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, depth // workers)
        how = grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead)
        made = made.mp_prefetch(how, worker_init_fn=_start_worker)
        # Pictures come through shared memory; what is small is sent faster than shared.
        options = grain.experimental.DatasetOptions(min_shm_size=4096)
        made = grain.experimental.WithOptionsIterDataset(made, options)
    iterator = iter(made)
    try:
        for n in range(start, stop):
            # A copy, so that shared memory is free again at once and nobody is left with an array into it.
            yield n, _copied(next(iterator))
    finally:
        iterator.close()
        if workers:
            del iterator
            gc.collect()  # the last batch lies in a cycle of Grain's; at exit it would be too late to free it


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):  # features of a frozen trunk lie in a dict of their own
        return {key: _copied(value) for key, value in tree.items()}
    return np.array(tree)


def _start_worker(index: int, count: int) -> None:
    """Ties a worker's life to the run's: a signal to all must not end it before the run has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
