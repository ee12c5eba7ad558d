"""Trains, from wherever the run stands, and shows the result."""

import contextlib
from typing import Any

from research import modes
from research.config import differences
from research.engine import files, preemption, workdir
from research.errors import UserError


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    if done(config, path) and not mended(config, path):
        print(f"{path}: is done; its result:")
        show(path)
        return 0
    pace = (files.read_json(path / "run.json") or {}).get("steps_per_minute")
    return train(config, path, flags.stop, pace)


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


def mended(config: Any, path: Any) -> bool:
    """True if a finished run has lost its last or its best checkpoint; it is then made one that goes on before it.

    Whoever deleted all checkpoints wanted the space, and whoever deleted the best had no use for it, unless it is the
    one that is evaluated.
    """
    folder = path / "checkpoints"
    if not folder.is_dir() or not any(folder.iterdir()):
        again = f"to train it again, delete {path / 'summary.json'} and give the same command"
        print(f"{path}: holds no checkpoint; {again}")
        return False
    from research.engine import parallel
    from research.engine.checkpoint import Checkpoints

    parallel.configure(cpu_devices=config.parallel.cpu_devices)
    summary = files.read_json(path / "summary.json")
    last, best = summary["steps"], summary.get("best_step", summary["steps"])
    kept = config.eval.final == "best" or (folder / str(best)).is_dir()
    checkpoints = Checkpoints(path, read_only=True)
    wanted = sorted({last, best} if kept else {last})
    lost = {step: what for step in wanted if (what := checkpoints.damage(step))}
    checkpoints.close()
    if not lost:
        return False
    with workdir.open_workdir(path, config):
        checkpoints = Checkpoints(path, keep=config.checkpoint.keep)
        told = [f"checkpoint {step} {what}" for step, what in lost.items()]
        for line in [*told, *checkpoints.set_aside_from(min(lost))]:
            print(f"{path}: {line}")
        checkpoints.close()
        # Until it has come to its end again, it is a run like any that was stopped.
        files.write_json(path / "run.json", files.read_json(path / "run.json") | {"exit": None})
    return True


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
