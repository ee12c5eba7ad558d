"""Trains, from wherever the run stands, and shows the result."""

import contextlib
from typing import Any

from research import modes
from research.config import differences
from research.engine import files, preemption, workdir
from research.errors import UserError


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    if done(config, path):
        print(f"{path}: is done; its result:")
        show(path)
        return 0
    return train(config, path, flags.stop)


def train(
    config: Any, path: Any, stop: preemption.StopRequest, steps_per_minute: float | None = None
) -> int:
    """Runs a config in a directory to its end, or to a saved stop; returns the exit code."""
    begun = (path / "checkpoints").is_dir() and any((path / "checkpoints").iterdir())
    layout, task = modes.build(config, begun=begun)
    from research.engine.finish import finish
    from research.engine.train import train as train_loop
    from research.engine.writer import Writer

    with workdir.open_workdir(path, config):
        writer = Writer(path, config)
        try:
            trained = train_loop(config, path, task, layout, writer, stop, steps_per_minute)
            if trained.exit_code == 0:
                finish(config, path, task, layout, writer, trained)
                show(path)
            else:
                writer.end_run(trained.exit_code)
        except BaseException as error:
            with contextlib.suppress(
                OSError
            ):  # the disk may be full; the first error is the one to tell
                writer.end_run(2 if isinstance(error, UserError) else 1)
            raise
    return trained.exit_code


def done(config: Any, path: Any) -> bool:
    """True if the directory holds this config's run and it came to its end."""
    if not (path / "config.json").is_file() or not (path / "summary.json").is_file():
        return False
    ended = (files.read_json(path / "run.json") or {}).get("exit") == 0
    return ended and not differences(workdir.read_config(path), config)


def show(path: Any) -> None:
    """Prints the final figures."""
    from research.engine.text import figure_table, print_table

    summary = files.read_json(path / "summary.json")
    print_table(*figure_table(summary))
    print(
        f"{summary['steps']:,} steps, {summary['examples_per_second']:,.0f} examples/s, "
        f"{summary['seconds_total']:.1f} s in all; params_sha256 {summary['params_sha256'][:16]}; "
        f"report: {path / 'report.html'}"
    )
