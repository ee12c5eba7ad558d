"""The run directory: who may write there, and whether it belongs to this config."""

import fcntl
import os
from pathlib import Path
from typing import IO

from ml_collections import FrozenConfigDict

from research import config as configs
from research.engine import files
from research.errors import UserError, UserErrors


def open_workdir(workdir: str | os.PathLike, config: FrozenConfigDict) -> IO[str]:
    """Makes the directory, locks it for this process and writes config.json, or compares it.

    Returns:
      The open lock file; the lock ends when it is closed, or with the process, however it ends.

    Raises:
      UserError: no permission; another run works there; it holds a run of another config.
    """
    path = Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "a+")  # noqa: SIM115 - held open for the whole run
    except OSError as error:
        raise UserError(
            f"--workdir={path}: cannot be written ({error.strerror}); choose another or mend its permissions"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        raise UserError(
            f"--workdir={path}: {owner} is running there; wait for it or choose another workdir"
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()}")
    lock.flush()
    stored = path / "config.json"
    if not stored.exists():
        files.write_text(stored, configs.to_json(config))
        return lock
    if different := configs.differences(read_config(path), config):
        raise UserErrors(
            [
                f"--workdir={path}: holds a run of another config; choose another workdir, or undo what differs:",
                *different,
            ]
        )
    return lock


def read_config(workdir: str | os.PathLike) -> FrozenConfigDict:
    """Reads the config of a run.

    Raises:
      UserError: there is no run.
    """
    path = Path(workdir) / "config.json"
    try:
        return configs.from_json(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"--workdir={workdir}: holds no run (there is no config.json); give --config to start one"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be read ({reason}); restore it, or start again in another workdir"
        ) from error
