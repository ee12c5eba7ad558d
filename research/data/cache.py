"""Folders that are either not there or complete: built beside their place, then renamed into it.

A kill leaves only a `.tmp-` folder, which the next build removes. Two processes that want the same folder take turns at
a file lock, and where locks do not work the first to rename wins.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from research.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def root(cache_dir: str) -> Path:
    """Returns where prepared data is kept: `cache_dir`, else the folder data of `home`."""
    return Path(cache_dir).expanduser() if cache_dir else home() / "data"


def home() -> Path:
    """Returns where everything that can be made again is kept: $ROOTSTOCK_CACHE, else the user's cache directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rootstock"
    return Path(os.environ.get("ROOTSTOCK_CACHE") or base).expanduser()


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns `folder`, after `build(empty folder)` has filled it if it was not there.

    Raises:
      UserError: nothing can be written there.
    """
    if folder.is_dir():
        return folder
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    with _lock(folder) as alone:
        if folder.is_dir():  # another process built it while this one waited
            return folder
        if alone:
            for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
                shutil.rmtree(stale, ignore_errors=True)
        try:
            temporary.mkdir()
            build(temporary)
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno in _FULL:
                raise UserError(f"{folder.parent}: the disk is full; {_MEND}") from error
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def keep_within(folder: Path, most: int) -> None:
    """Deletes those of a folder's files that were read longest ago, until the others have `most` bytes at most.

    A file system notes a reading once a day, or never: then the time of writing counts. What another process deletes
    meanwhile is none of ours. What was used within the last hour stays: another may be about to read it.
    """
    recent = time.time() - 3600
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                about = entry.stat()
                if entry.is_file():
                    found.append((max(about.st_atime, about.st_mtime), entry.path, about.st_size))
    total = sum(size for _, _, size in found)
    for used, path, size in sorted(found):
        if total <= most or used > recent:
            return
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:  # not ours to delete
            continue
        total -= size


_MEND = "name another place by --config.data.cache_dir=DIR or the variable ROOTSTOCK_CACHE"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Holds the lock of `folder`; yields False where the file system has no locks."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(folder.with_name(f"{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"config.data.cache_dir: cannot write to {folder.parent} ({reason}); {_MEND}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
