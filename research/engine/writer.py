"""What a run leaves behind in its directory and shows on the way.

metrics.jsonl   the figures, and nothing that depends on the clock: equal runs, equal bytes
tensorboard/    the same figures, and the throughput
run.json        where, when and with what the run was made
summary.json    the final figures
"""

import datetime
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from research.data.source import PARTS_WORDS, is_part
from research.engine import files
from research.engine.environment import differences, environment
from research.engine.progress import Lines, Progress, make_progress
from research.engine.tensorboard import TensorBoard


class Writer:
    """Writes a run's files and its progress.

    Args:
        workdir: the run directory; made if need be.
        config: the run's config; reads `seed` and `log.tensorboard`.
        stream: where progress goes; stdout by default.

    Example:
        writer = Writer(workdir, config)
        writer.start_run(restored_step, data.fingerprints, total_steps=1000)
        writer.log(50, "train", {"loss": 0.3}, {"examples_per_second": 4012.0})
        writer.write_summary({"test/accuracy": 0.91})
        writer.end_run(0)
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Any,
        *,
        stream: TextIO | None = None,
    ):
        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._stream = stream or sys.stdout
        self._started = False
        self._metrics: BinaryIO | None = None
        self._tensorboard: TensorBoard | None = None
        self._progress: Progress = Lines(None, 0, self._stream)
        self._again: set[bytes] = set()

    def start_run(
        self,
        first_step: int = 0,
        fingerprints: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
        *,
        total_steps: int | None = None,
    ) -> None:
        """Begins a run, or goes on with the one in the directory.

        Figures of later steps, left by a process that ended without a checkpoint, are dropped.

        Args:
            first_step: updates made before; 0 is a new run.
            fingerprints: of the data.
            more: whatever else run.json should hold.
            total_steps: the last step, for the progress shown; None where it is not known.
        """
        self._write_run(first_step, dict(fingerprints or {}), dict(more or {}))
        self._started = True
        self.truncate(first_step if first_step else -1)
        if self._config.log.tensorboard:
            self._tensorboard = TensorBoard(self.workdir / "tensorboard", first_step)
        self._progress = make_progress(total_steps, first_step, self._stream)

    def log(
        self,
        step: int,
        split: str,
        metrics: Mapping[str, float],
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Writes one line of metrics.jsonl, TensorBoard scalars, and shows them.

        Args:
            step: updates made so far.
            split: 'train', 'validation', 'test' or 'test_NAME'.
            metrics: what the run computed; the same in every run of the same bits.
            timing: what the clock says, such as 'examples_per_second'. Never in metrics.jsonl.

        Raises:
            ValueError: an unknown split, or a metric named 'step' or 'split'.
        """
        if not is_part(split) or not {"step", "split"}.isdisjoint(metrics):
            raise ValueError(f"split {split!r} must be {PARTS_WORDS}; no metric is step or split")
        values = {name: float(metrics[name]) for name in sorted(metrics)}
        line = json.dumps({"step": int(step), "split": split, **values}).encode() + b"\n"
        if line not in self._again:
            file = self._open()
            file.write(line)
            file.flush()
        timing = {name: float(value) for name, value in (timing or {}).items()}
        if self._tensorboard:
            self._tensorboard.log(step, split, values | timing)
        shown = {name: values[name] for name in metrics}
        self._progress.log(step, split, shown, timing.get("examples_per_second", 0.0))

    def tick(self, step: int) -> None:
        """Moves the progress bar; costs nothing, reads no figure."""
        self._progress.tick(step)

    def say(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        self._progress.say(text)

    def flush(self) -> None:
        """Brings everything to disk; called before a checkpoint that counts on it."""
        if self._metrics:
            os.fsync(self._metrics.fileno())
        if self._tensorboard:
            self._tensorboard.flush()

    def truncate(self, step: int) -> None:
        """Drops the lines of metrics.jsonl after `step`, and what a kill left half written."""
        if self._metrics:
            self._metrics.close()
            self._metrics = None
        kept = [(line, v) for line, v in files.read_lines(self._path) if v.get("step", 0) <= step]
        files.write_bytes(self._path, b"".join(line for line, _ in kept))
        # An evaluation at the step itself is made again after a resume: its line is there already.
        self._again = {line for line, v in kept if v.get("step") == step}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        files.write_json(self.workdir / "summary.json", dict(summary))

    def end_run(self, exit_code: int) -> None:
        """Closes the run's files and notes the end in run.json, if the run was begun."""
        self._progress.close()
        if self._tensorboard:
            self._tensorboard.close()
            self._tensorboard = None
        if self._metrics:
            self._metrics.close()
            self._metrics = None
        if not self._started:
            return
        run = files.read_json(self.workdir / "run.json", {})
        ended = {"end": _now(), "exit": exit_code}
        run |= ended
        if run.get("sessions"):
            run["sessions"][-1] |= ended
        files.write_json(self.workdir / "run.json", run)

    @property
    def _path(self) -> Path:
        return self.workdir / "metrics.jsonl"

    def _open(self) -> BinaryIO:
        if self._metrics is None:
            self._metrics = open(self._path, "ab")  # noqa: SIM115 - open while the run goes on
        return self._metrics

    def _write_run(
        self, first_step: int, fingerprints: dict[str, str], more: dict[str, Any]
    ) -> None:
        """Writes run.json: the first process's circumstances, and a session for each process."""
        here = environment()
        now = _now()
        session: dict[str, Any] = {
            "start": now,
            "end": None,
            "exit": None,
            "first_step": first_step,
        }
        before = files.read_json(self.workdir / "run.json", {}) if first_step else {}
        if before.get("sessions"):
            changed = differences(before, here)
            session |= {"environment_changes": changed} if changed else {}
            run = before | {"end": None, "exit": None}
            run["sessions"].append(session)
        else:
            run = {"command": sys.argv, **here, "seed": self._config.seed, "data": fingerprints}
            run |= more | {"start": now, "end": None, "exit": None, "sessions": [session]}
        files.write_json(self.workdir / "run.json", run)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
