"""What the loop adds up between two log lines: figures, and where the time went."""

import contextlib
import time
from collections.abc import Iterator


class Window:
    """Means of the steps since the last log line, in float64, by weight. Saved with a checkpoint, so that
    a run that was stopped between two lines writes the same line."""

    def __init__(self, saved: dict[str, float] | None = None):
        self._sums: dict[str, float] = dict(saved or {})

    def add(self, values: dict[str, float]) -> None:
        weight = values["weight"]
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + (
                value if name == "weight" else value * weight
            )

    def take(self) -> dict[str, float]:
        """Returns the means, and starts anew."""
        sums, self._sums = self._sums, {}
        weight = sums.pop("weight", 0.0) or 1.0
        return {name: value / weight for name, value in sums.items()}

    def to_json(self) -> dict[str, float]:
        return dict(self._sums)


class Clock:
    """Seconds by what they went to, added up over the processes of a run that was stopped and gone on with."""

    def __init__(self, saved: dict[str, float] | None = None, began: float | None = None):
        self._saved = dict(saved or {})
        self._began = time.perf_counter() if began is None else began
        self._loop: float | None = None  # when the first compiled step began
        self._ended: float | None = None
        self._apart = 0.0  # seconds of the loop that were not training
        self._seconds: dict[str, float] = {}
        self._last = (0, 0.0)  # examples and training seconds at the last log line

    def start(self) -> None:
        """The loop begins to train."""
        self._loop = time.perf_counter()

    def stop(self) -> None:
        """The loop has ended: what follows is no training."""
        self._ended = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, name: str, *, apart: bool = False) -> Iterator[None]:
        """Adds a block's time to `name`; `apart` takes it out of the time of training."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.add(name, seconds, apart=seconds if apart else 0.0)

    def add(self, name: str, seconds: float, *, apart: float = 0.0) -> None:
        """Adds seconds to `name`, and takes those of `apart` out of the time of training."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._apart += apart

    def put(self, name: str, seconds: float) -> None:
        """Says what this process has spent on `name` so far."""
        self._seconds[name] = seconds

    def training(self) -> float:
        """Seconds in which this process trained."""
        if self._loop is None:
            return 0.0
        return (self._ended or time.perf_counter()) - self._loop - self._apart

    def rate(self, examples: int) -> float:
        """Returns examples a second since the last call, of `examples` trained on so far."""
        now = self.training()
        done, (self._last, before) = examples, ((examples, now), self._last)
        return (done - before[0]) / max(now - before[1], 1e-9)

    def to_json(self) -> dict[str, float]:
        """Returns the seconds of the whole run so far."""
        mine = self._seconds | {
            "seconds_training": self.training(),
            "seconds_total": time.perf_counter() - self._began,
        }
        return {
            name: self._saved.get(name, 0.0) + mine.get(name, 0.0) for name in self._saved | mine
        }

    def summary(self, batch_size: int) -> dict[str, float]:
        """Returns the seconds, and the pace of the whole run."""
        seconds = self.to_json()
        examples = seconds.pop("steps_timed", 0) * batch_size
        training = max(seconds["seconds_training"], 1e-9)
        return seconds | {
            "examples_per_second": examples / training,
            "data_wait_fraction": seconds.get("seconds_data_wait", 0.0) / training,
        }
