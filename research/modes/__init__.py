"""What launch.py can do, one file each: `run(config, mistakes, flags) -> exit code`. Here is what they share."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# The flags that only some modes read.
READ_BY = {
    "inputs": ("predict",),
    "prompt": ("predict",),
    "output": ("reproduce", "export"),
    "compile": ("check",),
    "format": ("export",),
}


def leave_soon(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Returns main(argv), and sees to it that the process then ends at once.

    Threads are waited for and whatever is registered for the exit runs, as ever. But then Python would take every
    module apart, for half a second in which nothing happens that anybody could miss.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:  # else the interpreter was told to stop, and the usual way out has its code
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(codes[0])

    atexit.register(leave)  # the first to be registered is the last to run
    try:
        codes.append(main(argv))
    except Exception:
        codes.append(1)  # as ever; a thread that still compiles would make it another one
        raise
    return codes[0]


def signals(mode: str) -> contextlib.AbstractContextManager:
    """Catches SIGTERM and SIGINT from the first moment on, in the modes that save before they stop."""
    from research.engine.preemption import StopRequest

    return StopRequest() if mode in ("train", "reproduce") else contextlib.nullcontext()


def find_config(flags: Any, overrides: Iterable[tuple[str, str]]) -> tuple[Any, list[str]]:
    """Returns the config that the flags name, and the mistakes in it: that of --config, else the workdir's own."""
    from research import config as configs
    from research.engine.workdir import read_config
    from research.errors import UserError

    for flag, readers in READ_BY.items():
        if getattr(flags, flag) is not None and flags.mode not in readers:
            some = " and ".join(f"--mode={mode}" for mode in readers)
            reads = "read" if len(readers) > 1 else "reads"
            raise UserError(f"--{flag}: only {some} {reads} it; leave it out")
    if flags.config:
        return configs.load(flags.config, overrides)
    if not flags.workdir:
        raise UserError(
            "give --config=configs/NAME.py to start a run, or --workdir=DIR to go on with one"
        )
    stored = read_config(flags.workdir)
    if not stored.to_dict():
        raise UserError(
            f"{Path(flags.workdir) / 'config.json'}: holds no config; restore it, or start again in another workdir"
        )
    return configs.resolve(stored, overrides)


def demand(config: Any, mistakes: list[str], flags: Any) -> Path:
    """Returns the workdir.

    Raises:
      UserErrors: the config has mistakes, --workdir is missing, or another run that it names will not do.
    """
    from research.errors import UserErrors

    lines = [*mistakes, *resume_problems(config, flags), *teacher_problems(config, flags)]
    if not flags.workdir:
        lines.append("give --workdir=runs/NAME, the directory of the run")
    if lines:
        raise UserErrors(lines)
    return Path(flags.workdir)


def resume_problems(config: Any, flags: Any) -> list[str]:
    """Says so if config.resume holds no checkpoints, in the modes that start from it."""
    if not config.resume or (Path(config.resume) / "checkpoints").is_dir():
        return []
    # A run that has checkpoints of its own goes on from these, even where the other is gone.
    begun = flags.workdir and (Path(flags.workdir) / "checkpoints").is_dir()
    if flags.mode in ("evaluate", "predict", "export") or (begun and flags.mode != "reproduce"):
        return []
    return [f"config.resume={config.resume}: holds no checkpoints; name the workdir of a run"]


def teacher_problems(config: Any, flags: Any) -> list[str]:
    """Says so if the run is to be its own teacher."""
    path = config.distill.teacher
    if not path or not flags.workdir or Path(path).resolve() != Path(flags.workdir).resolve():
        return []
    return [f"config.distill.teacher={path}: is --workdir itself; name another run"]


def build(config: Any, *, begun: bool = False) -> tuple[Any, Any]:
    """Returns the layout and the task of a config.

    Args:
      begun: the run goes on from a checkpoint of its own, so what else it might start from is not looked at.

    Raises:
      UserErrors: what can be known only with the data at hand and the devices counted.
    """
    from research.engine import parallel, pretrained, program, start
    from research.errors import UserError, UserErrors

    parallel.configure(cpu_devices=config.parallel.cpu_devices)
    layout = parallel.make(config.parallel.kind, config.parallel.devices)
    lines = []
    parts = layout.device_count * config.train.micro_batches
    if config.train.batch_size % parts:
        lines.append(
            f"config.train.batch_size={config.train.batch_size}: does not divide over {layout.device_count} device(s) "
            f"x {config.train.micro_batches} micro-batch(es); use a multiple of {parts}"
        )
    if config.eval.batch_size % layout.device_count:
        lines.append(
            f"config.eval.batch_size={config.eval.batch_size}: does not divide over {layout.device_count} devices; "
            f"use a multiple of {layout.device_count}"
        )
    task = None
    try:
        task = make_task(config, layout)
    except UserErrors as errors:
        lines += errors.lines
    except UserError as error:
        lines.append(str(error))
    if task is not None:
        lines += program.problems(config, task, layout)
        if not lines and not begun:
            lines += pretrained.problems(config, task) + start.problems(config, task, layout)
    if lines:
        raise UserErrors(lines)
    return layout, task


def make_task(config: Any, layout: Any) -> Any:
    """Returns the task of a config, with its adapters and its teacher."""
    import jax

    from research.config import find_module
    from research.engine.state import named_leaves
    from research.engine.teacher import with_teacher
    from research.errors import UserErrors
    from research.transfer import lora

    options = {key: value for key, value in config.task.items() if key != "name"}
    found = find_module("tasks", config.task.name)
    task = found.build(config, axis_name=layout.axis_name, **options)
    adapted = lora.adapt(task, config.lora)
    if config.lora.rank:
        key = jax.random.key(0)
        shapes = [named_leaves(jax.eval_shape(t.init, key)[0]) for t in (task, adapted)]
        if lines := lora.problems(config.lora, *shapes):
            raise UserErrors(lines)
    return with_teacher(config, layout, adapted, lambda other: make_task(other, layout))


def tell_differences(config: Any, workdir: Path) -> list[str]:
    """Tells and returns how a config differs from the run's own; on stderr, since stdout may be what is predicted."""
    from research.config import differences
    from research.engine.workdir import read_config

    if not (workdir / "config.json").is_file():
        return []
    lines = differences(read_config(workdir), config)
    if lines:
        print(f"not the config of the run in {workdir}:", *lines, sep="\n  ", file=sys.stderr)
    return lines


def restore(config: Any, workdir: Path) -> tuple[Any, Any, Any]:
    """Returns the layout, the task and the checkpoint that a trained model is used from."""
    from research.config import as_trained

    tell_differences(config, workdir)
    config = as_trained(config, workdir)
    layout, task = build(config)
    from research.engine.finish import restore_final

    return layout, task, restore_final(config, workdir, task, layout)
