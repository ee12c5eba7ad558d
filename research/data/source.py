"""What a builder hands over: where a source of pictures is, what marks its state, and how it is read.

A builder is a module of research/data/builders with a function `locate(data, *, option=default) -> Source`, or one
for texts, `locate_text` (text/source.py), or both.
It is cheap (it looks at file names, sizes and times), so that a prepared data set is found again in
milliseconds; `Source.open` may be slow. A source may bring parts: 'train' and perhaps 'validation' and 'test',
and any number of further tests, 'test_NAME', which are measured at the end like 'test'.
"""

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PARTS = (
    "train",
    "validation",
    "test",
)  # the splits that a source may bring along, beside 'test_NAME'
PARTS_WORDS = f"{', '.join(PARTS)} or test_NAME"  # for messages
_BLOCK = 4096  # pictures of an array handed over at once
_FURTHER_TEST = re.compile(r"test_[A-Za-z0-9_]+")


class Examples(NamedTuple):
    """A block of K pictures of one size that could be read; K may be 1."""

    keys: Sequence[str]  # names, unique in the source: a relative path, or 'train/00017'
    labels: Sequence[int] | np.ndarray
    pictures: np.ndarray  # uint8 [K, H, W, C]
    groups: Sequence[str]  # pictures of one group never lie in different splits; '' is none


class Problem(NamedTuple):
    """A picture that could not be read."""

    kind: str  # unreadable, shape or nan
    key: str
    detail: str  # one line that names the file
    label: int


class Opened(NamedTuple):
    """A source that is about to be read."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # H, W, C of the pictures that are to be stored
    sizes: dict[
        str, int
    ]  # how many examples each part has; a source without splits of its own has only 'train'
    read: Callable[
        [str], Iterator[Examples | Problem]
    ]  # part -> its examples, always in the same order


class Source(NamedTuple):
    """A source that has been found."""

    name: str
    version: str  # of the builder: another version reads the same files otherwise
    place: str  # where it is, for messages and the report
    fingerprint: str  # changes whenever the source's files do
    open: Callable[[], Opened]


def is_part(name: str) -> bool:
    """Whether a split may be called so."""
    return name in PARTS or is_test(name)


def is_test(name: str) -> bool:
    """Whether a split is one that is measured at the end only: 'test' or 'test_NAME'."""
    return name == "test" or bool(_FURTHER_TEST.fullmatch(name))


def in_order(names: Iterable[str]) -> list[str]:
    """Returns names of splits in the order of PARTS, then 'test_NAME' by the alphabet."""
    return sorted(
        names, key=lambda name: (PARTS.index(name) if name in PARTS else len(PARTS), name)
    )


def from_arrays(
    class_names: tuple[str, ...],
    shape: tuple[int, int, int],
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
) -> Opened:
    """Returns a source that is already in memory: part -> (pictures uint8 [N, H, W, C], labels [N])."""

    def read(part: str) -> Iterator[Examples]:
        pictures, labels = parts[part]
        for start in range(0, max(len(pictures), len(labels)), _BLOCK):
            block = labels[start : start + _BLOCK]
            keys = [f"{part}/{i:05d}" for i in range(start, start + len(block))]
            yield Examples(keys, block, pictures[start : start + _BLOCK], [""] * len(block))

    return Opened(
        class_names, shape, {part: len(labels) for part, (_, labels) in parts.items()}, read
    )


def stamp(files: Iterable[Path], base: Path) -> str:
    """Returns a sha256 over names, sizes and modification times, in an order that no file system decides."""
    digest = hashlib.sha256()
    for file in sorted(files):
        found = file.stat()
        digest.update(
            f"{file.relative_to(base).as_posix()}\0{found.st_size}\0{found.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def wanted_shape(data, own: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns H, W, C as `data.image_size` and `data.channels` ask, which leave a source's own at 0."""
    size = data.image_size
    return size or own[0], size or own[1], data.channels or own[2]


class Progress:
    """A line on stderr for work that takes longer than a second or two."""

    def __init__(self, what: str, total: int, unit: str = "pictures"):
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._live = sys.stderr.isatty()
        self._shown, self._next = False, time.monotonic() + 1.5

    def step(self, count: int = 1) -> None:
        self._done += count
        if time.monotonic() >= self._next:
            self._show()
            self._next = time.monotonic() + (0.5 if self._live else 10)

    def _show(self) -> None:
        of = f" of {self._total:,}" if self._total else ""  # 0 is not known
        line = f"{self._what}: {self._done:,}{of} {self._unit}"
        print(line, end="\r" if self._live else "\n", file=sys.stderr, flush=True)
        self._shown = True

    def close(self) -> None:
        if self._shown:
            self._show()
        if self._shown and self._live:
            print(file=sys.stderr)
