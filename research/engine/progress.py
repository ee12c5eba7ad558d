"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import collections
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from research.engine.text import duration, figures, is_terminal, number

_WINDOW = 20  # log events over which the remaining time is reckoned


class Progress(Protocol):
    """Both kinds of progress do this and nothing else."""

    def tick(self, step: int) -> None:
        """A step was dispatched; cheap enough for every step."""

    def log(self, step: int, split: str, metrics: dict[str, float], throughput: float) -> None:
        """Figures came in; `throughput` is in examples a second, 0 where not known."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def close(self) -> None:
        """No more; leaves the terminal as it was."""


def make_progress(
    total_steps: int | None, first_step: int = 0, stream: TextIO | None = None
) -> Progress:
    """A bar where `stream` (stdout by default) is a terminal, else lines. Total None: not known."""
    stream = stream or sys.stdout
    return (Bar if is_terminal(stream) else Lines)(total_steps, first_step, stream)


class Lines:
    """'step 400/2,344  loss 0.312  accuracy 0.89  4,012 examples/s  0:42 left', one per event."""

    def __init__(
        self,
        total_steps: int | None,
        first_step: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._stream = total_steps, stream
        self._remaining = Remaining(total_steps, clock)

    def tick(self, step: int) -> None:
        pass

    def log(self, step: int, split: str, metrics: dict[str, float], throughput: float) -> None:
        words = [f"step {_of(step, self._total)}"]
        words += [split] if split != "train" else []
        words.append(figures(metrics))
        words += [f"{number(int(throughput))} examples/s"] if throughput else []
        left = self._remaining.update(step) if split == "train" else ""
        self.say("  ".join([*words, f"{left} left"] if left else words))

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar with the newest figures of each split below it, redrawn four times a second."""

    def __init__(self, total_steps: int | None, first_step: int, stream: TextIO):
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        self._total = total_steps
        self._remaining = Remaining(total_steps)
        self._left, self._throughput = "", ""
        self._splits: dict[str, tuple[int, str]] = {}  # split -> step, its newest figures
        self._bar = Progress(BarColumn(bar_width=None), TextColumn("{task.description}"))
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._step = first_step
        self._live = Live(
            console=Console(file=stream), get_renderable=self._draw, refresh_per_second=4
        )
        self._live.start()

    def tick(self, step: int) -> None:
        self._step = step  # drawn by the refreshing thread: no work here

    def log(self, step: int, split: str, metrics: dict[str, float], throughput: float) -> None:
        self._splits[split] = (step, figures(metrics))
        if throughput:
            self._throughput = f"{number(int(throughput))} examples/s"
        if split == "train":
            left = self._remaining.update(step)
            self._left = f"{left} left" if left else ""

    def say(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text))

    def close(self) -> None:
        self._live.stop()

    def _draw(self):
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        words = (f"step {_of(self._step, self._total)}", self._throughput, self._left)
        text = "  ".join(word for word in words if word)
        self._bar.update(self._task, completed=self._step, description=text)
        rows = Table.grid(padding=(0, 2))
        for split, (step, line) in list(self._splits.items()):
            at = "" if split == "train" else f"at step {number(step)}"
            rows.add_row(Text(split, style="bold"), Text(line), Text(at, style="dim"))
        return Group(self._bar.get_renderable(), rows)


class Remaining:
    """The time to the last step, from the pace of the last log events, evaluations included."""

    def __init__(self, total_steps: int | None, clock: Callable[[], float] = time.monotonic):
        self._total, self._clock = total_steps, clock
        self._seen: collections.deque[tuple[int, float]] = collections.deque(maxlen=_WINDOW)

    def update(self, step: int) -> str:
        """Notes that `step` is reached now; the time left, or '' before there is a pace."""
        self._seen.append((step, self._clock()))
        (first, start), (_, now) = self._seen[0], self._seen[-1]
        if not self._total or step <= first:
            return ""
        return duration((self._total - step) * (now - start) / (step - first))


def _of(step: int, total: int | None) -> str:
    return f"{step:,}/{total:,}" if total else f"{step:,}"
