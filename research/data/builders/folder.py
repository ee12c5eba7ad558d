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

from research.data.layout import Entry, Kind, Listing, check_names, given_path, list_folder
from research.data.pictures import SUFFIXES, PictureError, is_colour, picture
from research.data.source import (
    Examples,
    Opened,
    Problem,
    Source,
    in_order,
    stamp,
    wanted_shape,
)
from research.data.table import read_table
from research.errors import UserError

VERSION = "2"
_SIZE = 64
_KIND = Kind("pictures", "name a .csv file with the columns path and label")


def locate(data) -> Source:
    """Returns the source after looking at names and sizes of files only.

    Raises:
      UserErrors: the path is missing, or holds no pictures in class folders, or the table is wrong.
    """
    path = given_path(data, "Give it as --config.data.path=DIR (or a .csv or .jsonl file)")
    try:
        listing = list_folder(path, SUFFIXES, _KIND) if path.is_dir() else _list_table(path)
    except OSError as error:
        raise UserError(f"config.data.path={path}: cannot be listed ({error})") from error
    base = path if path.is_dir() else path.parent
    check_names(listing)
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

    def read_one(entry: Entry) -> Examples | Problem:
        try:
            pixels = picture(entry.path, *shape)[None]
            return Examples([entry.key], [entry.label], pixels, [entry.group])
        except PictureError as error:
            return Problem(error.kind, entry.key, str(error), entry.label)

    def read(part: str) -> Iterator[Examples | Problem]:
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


def _list_table(path: Path) -> Listing:
    table = read_table(path)
    listed: dict[str, list[Entry]] = {}
    for row in table.rows:
        entry = Entry(path.parent / row.path, Path(row.path).as_posix(), row.label, row.group)
        listed.setdefault(row.split, []).append(entry)
    ordered = {part: sorted(listed[part], key=lambda e: e.key) for part in in_order(listed)}
    return Listing(table.class_names, ordered)
