"""What the readers of weight files share: a file that is there, and one that is written whole or not at all."""

import os
from pathlib import Path

import numpy as np

from research.errors import UserError, nearest

# What people download by mistake, by its first bytes.
_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself: git lfs pull)",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"\x1f\x8b": "a gzip file (unpack it first)",
    b"\x89HDF": "an HDF5 file (read it as keras:FILE)",
    b"PK\x03\x04": "a zip file",
    b"\x80": "a pickle",
}


def existing(path: str | os.PathLike) -> Path:
    """Returns the path of a file that is there and not empty.

    Raises:
      UserError: it is missing (the message names the nearest neighbour), a folder, unreadable or empty.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a weight file was expected, but this is a folder")
    if not path.is_file():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, around)}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read (permissions)")
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty; it was probably not downloaded whole")
    return path


def looks_like(path: Path) -> str:
    """Returns what a file of the wrong kind is, for a message: 'a web page', or its size and first bytes."""
    with path.open("rb") as file:
        head = file.read(32)
    for start, kind in _MISTAKEN.items():
        if head.startswith(start):
            return kind
    return f"{path.stat().st_size} bytes that begin with {head[:8]!r}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def plain(name: str, array: np.ndarray) -> np.ndarray:
    """Returns the array contiguous in C order and little-endian, shape kept (0-d too); not copied if it is so.

    Raises:
      UserError: it holds Python objects, text or records rather than numbers.
    """
    array = np.asarray(array, order="C")
    if array.dtype.hasobject or array.dtype.kind in "SUMm" or array.dtype.names:
        raise UserError(f"array '{name}' must hold numbers, not {array.dtype}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Writes a whole file or nothing: a temporary neighbour is renamed onto `path`; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
