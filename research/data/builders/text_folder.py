"""A user's own text files: a folder for each class, or, where no classes are wanted, any tree of files.

`data.path` is one of

    PATH/CLASS/*.txt                  split by data.test_fraction and data.validation_fraction
    PATH/train/CLASS/*.txt, PATH/test/CLASS/*.txt and perhaps PATH/validation/CLASS/*.txt, PATH/test_NAME/CLASS/*.txt
    PATH/**/*.txt or PATH/train/**/*.txt, PATH/test/**/*.txt ... for a task without classes

Each file is a text, in UTF-8.
"""

from collections.abc import Iterator
from pathlib import Path

from research.data.layout import (
    Entry,
    Kind,
    Listing,
    check_names,
    files_in,
    given_path,
    list_folder,
    part_folders,
)
from research.data.source import stamp
from research.data.text.files import TextError, read
from research.data.text.source import TextExample, TextOpened, TextProblem, TextSource
from research.errors import UserError

VERSION = "1"
_KIND = Kind("texts", "read a .csv, .tsv, .jsonl or .parquet file with config.data.name=table")


def locate_text(data, *, suffixes: tuple[str, ...] = (".txt", ".md")) -> TextSource:
    """Returns the source after looking at names and sizes of files only.

    Args:
      suffixes: what names of files must end in, in lower case.

    Raises:
      UserError: the path is missing, or holds no such files.
    """
    path = given_path(data, "Give it as --config.data.path=DIR")
    if not path.is_dir():
        raise UserError(
            f"config.data.path={path}: not a directory; config.data.name=table reads a "
            ".csv, .tsv, .jsonl or .parquet file"
        )
    files = files_in(path, suffixes)
    if not files:
        raise UserError(
            f"config.data.path={path}: no texts in it; their names end in {', '.join(suffixes)}, "
            "as config.data.suffixes says"
        )
    return TextSource(
        "text_folder",
        VERSION,
        str(path),
        stamp(files, path),
        lambda labelled: _open(path, suffixes, labelled),
    )


def _open(path: Path, suffixes: tuple[str, ...], labelled: bool) -> TextOpened:
    listing = list_folder(path, suffixes, _KIND) if labelled else _plain(path, suffixes)
    check_names(listing)
    names = listing.class_names

    def read_all() -> Iterator[TextExample | TextProblem]:
        for part, entries in listing.parts.items():
            for entry in entries:
                label = names[entry.label] if labelled else None
                try:
                    yield TextExample(entry.key, read(entry.path), label, part)
                except TextError as error:
                    yield TextProblem(entry.key, str(error), label, split=part)

    return TextOpened(names, sum(map(len, listing.parts.values())), read_all)


def _plain(path: Path, suffixes: tuple[str, ...]) -> Listing:
    """All files, whatever the folders in between are called."""
    folders = part_folders(path) or {"train": path}
    return Listing(
        (),
        {
            part: [Entry(p, p.relative_to(path).as_posix(), 0) for p in files_in(f, suffixes)]
            for part, f in folders.items()
        },
    )
