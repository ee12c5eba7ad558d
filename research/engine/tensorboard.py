"""Scalars as TensorBoard event files."""

import contextlib
import os
import sys
from collections.abc import Iterator

from research.errors import UserError


class TensorBoard:
    """Event files in a directory; what an earlier process wrote after `first_step` is purged.

    Raises:
        UserError: tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike, first_step: int):
        try:
            with _without("torch"):
                from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "config.log.tensorboard is on, but tensorboardX is not installed: "
                "pip install tensorboardX, or pass --config.log.tensorboard=False"
            ) from error
        # TensorBoard itself drops older events from the purge step on; nothing is rewritten.
        purge_step = first_step + 1 if first_step else 0
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, flush_secs=10)

    def log(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes 'split/name' for each value."""
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Imports meanwhile do as if a package were not installed: tensorboardX would wait 1.3 s for PyTorch to come in."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
