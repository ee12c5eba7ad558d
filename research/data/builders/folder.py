"""A user's own pictures: a folder for each class, or a table of paths and labels.

`data.path` is one of

    PATH/CLASS/*.png                  split by data.test_fraction and data.validation_fraction
    PATH/train/CLASS/*.png, PATH/test/CLASS/*.png and perhaps PATH/validation/CLASS/*.png, PATH/test_NAME/CLASS/*.png
    TABLE.csv with the columns path, label and perhaps split and group; TABLE.jsonl with the same fields

What is test_NAME is another test. Pictures of one group never lie in different splits. Paths in a table are
relative to it. A file classes.txt beside it, a name a line, declares the classes; labels are then those names or
their numbers from 0. Without it the labels found are the classes. Pictures are resized to `data.image_size` (64),
in colour if any of them is (`data.channels` decides otherwise).
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from research.data.pictures import SUFFIXES, PictureError, is_colour, picture
from research.data.source import (
    Example,
    Opened,
    Problem,
    Source,
    in_order,
    is_test,
    stamp,
    wanted_shape,
)
from research.data.table import read_table
from research.errors import UserError, UserErrors, nearest

VERSION = "2"
_SIZE = 64
_SPELLINGS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
}


class Entry(NamedTuple):
    """One picture of the user's."""

    path: Path
    key: str  # the path relative to data.path
    label: int
    group: str = ""


class Listing(NamedTuple):
    """All pictures of the user's, by part."""

    class_names: tuple[str, ...]
    parts: dict[str, list[Entry]]


def locate(data) -> Source:
    """Returns the source after looking at names and sizes of files only.

    Raises:
      UserErrors: the path is missing, or holds no pictures in class folders, or the table is wrong.
    """
    if not data.path:
        raise UserError(
            "data.name=folder: which one? Give it as --config.data.path=DIR (or a .csv or .jsonl file)"
        )
    path = Path(data.path).expanduser().absolute()
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"data.path={path}: there is no such file or directory{nearest(path.name, beside)}"
        )
    try:
        listing = _list_folder(path) if path.is_dir() else _list_table(path)
    except OSError as error:
        raise UserError(f"data.path={path}: cannot be listed ({error})") from error
    base = path if path.is_dir() else path.parent
    _check_names(listing)
    entries = [entry for part in listing.parts.values() for entry in part]
    files = {entry.path for entry in entries if entry.path.is_file()}
    tables = [] if path.is_dir() else [path, *base.glob("classes.txt")]
    # What is listed and is no file (a link to nowhere) counts too: it is a mistake that may be mended.
    marks = [stamp([*files, *tables], Path(path.anchor))]
    marks += sorted(f"{entry.key}\0{entry.path in files}" for entry in entries)
    mark = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    return Source("folder", VERSION, str(path), mark, lambda: _open(listing, data))


def _open(listing: Listing, data) -> Opened:
    everything = [entry for entries in listing.parts.values() for entry in entries]
    colour = data.channels or (3 if any(is_colour(entry.path) for entry in everything) else 1)
    shape = wanted_shape(data, (_SIZE, _SIZE, colour))

    def read_one(entry: Entry) -> Example | Problem:
        try:
            return Example(entry.key, entry.label, picture(entry.path, *shape), entry.group)
        except PictureError as error:
            return Problem(error.kind, entry.key, str(error), entry.label)

    def read(part: str) -> Iterator[Example | Problem]:
        entries = listing.parts[part]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(
                0, len(entries), 256
            ):  # in pieces, so that few pictures wait in memory
                yield from pool.map(read_one, entries[start : start + 256])

    return Opened(
        listing.class_names,
        shape,
        {part: len(entries) for part, entries in listing.parts.items()},
        read,
    )


def _list_folder(path: Path) -> Listing:
    folders = _subfolders(path)
    parts = {_SPELLINGS[f.name]: f for f in folders if f.name in _SPELLINGS}
    if not parts:
        parts = {"train": path}
    elif "train" in parts:
        parts |= {f.name: f for f in folders if is_test(f.name)}
    else:
        raise UserError(
            f"data.path={path}: has a folder '{next(iter(parts.values())).name}', but none named 'train'"
        )
    classes = tuple(f.name for f in _subfolders(parts["train"]))
    errors = [] if classes else [_no_classes(parts["train"])]
    listed: dict[str, list[Entry]] = {}
    for part in in_order(parts):
        listed[part] = []
        for folder in _subfolders(parts[part]):
            pictures = [] if folder.name not in classes else _pictures(folder)
            if folder.name not in classes:
                errors.append(
                    f"{folder}: there is no class '{folder.name}' in train{nearest(folder.name, classes)}"
                )
            elif not pictures:
                errors.append(
                    f"{folder}: no pictures in it{_others(folder)}; they end in {', '.join(SUFFIXES)}"
                )
            label = classes.index(folder.name) if folder.name in classes else -1
            listed[part] += [Entry(p, p.relative_to(path).as_posix(), label) for p in pictures]
        if classes and not listed[part] and not errors:
            errors.append(f"{parts[part]}: no class folders in it; fill it or remove it")
    if len(classes) == 1:
        errors.append(
            f"data.path={path}: only one class folder, '{classes[0]}'; two or more are needed"
        )
    if errors:
        raise UserErrors(errors)
    return Listing(classes, listed)


def _list_table(path: Path) -> Listing:
    table = read_table(path)
    listed: dict[str, list[Entry]] = {}
    for row in table.rows:
        entry = Entry(path.parent / row.path, Path(row.path).as_posix(), row.label, row.group)
        listed.setdefault(row.split, []).append(entry)
    ordered = {part: sorted(listed[part], key=lambda e: e.key) for part in in_order(listed)}
    return Listing(table.class_names, ordered)


def _check_names(listing: Listing) -> None:
    """Records hold keys as UTF-8; a name that is not could be written nowhere."""
    keys = [entry.key for entries in listing.parts.values() for entry in entries]
    wrong = [key for key in keys if any("\udc80" <= c <= "\udcff" for c in key)]
    if wrong:
        raise UserErrors(
            f"{os.fsencode(key)!r}: the name is not UTF-8; rename it" for key in wrong[:10]
        )


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    found = []
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(base, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")
        ]
    return sorted(found)


def _no_classes(path: Path) -> str:
    if not any(path.iterdir()):
        return f"data.path={path}: the folder is empty; it needs a folder for each class, with pictures in it"
    mend = "put the pictures into a folder for each class, or name a .csv file with the columns path and label"
    return f"data.path={path}: no class folders in it; {mend}"


def _others(folder: Path) -> str:
    endings = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})
    return f" (only {', '.join(endings[:5])})" if endings else ""
