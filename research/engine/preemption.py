"""SIGTERM and SIGINT ask a run to stop: it finishes its step, saves, and exits with 75."""

import contextlib
import os
import signal
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on


class StopRequest:
    """Remembers a signal from `with` on, and says so; the second one ends the process, as it would without us."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        self._restore()
        with contextlib.suppress(OSError):  # not print: it may be printing just now
            os.write(2, f"\n{self.signal}: saves and stops; once more ends it at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old = {}
