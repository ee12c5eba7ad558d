"""THE loop: restore, step, log, evaluate, save. Nothing else in the project loops over steps."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research.data.prefetch import stream
from research.durations import Durations
from research.engine import diagnose, features, files, pretrained, table
from research.engine.checkpoint import Checkpoints
from research.engine.compiled import Compiled, foreseen
from research.engine.evaluate import predict_split
from research.engine.parallel import Parallel
from research.engine.preemption import EXIT_CODE, StopRequest
from research.engine.program import (
    Program,
    best_name,
    durations,
    in_minutes,
    make_plan,
    make_program,
    parameter_table,
    stored,
    thaw,
)
from research.engine.start import restore, start
from research.engine.state import TrainState
from research.engine.window import Clock, Window
from research.engine.writer import Writer
from research.groups import starts
from research.task import Task


class Trained(NamedTuple):
    """A finished run, or one that was asked to stop."""

    exit_code: int
    step: int
    state: TrainState | None  # of the last step, on devices; None if it was asked to stop
    best: dict[str, Any] | None  # {'step', 'value'} of the best checkpoint
    clock: Clock
    units: Durations  # by the pace that was measured, if one was
    predict: Callable | None = None  # compiled; None where `task.predict` itself never was
    # What it said of the validation split after the last step; None where that was not asked, or not in this process.
    validated: dict[str, Any] | None = None


def train(
    config: Any,
    workdir: Path,
    task: Task,
    parallel: Parallel,
    writer: Writer,
    stop: StopRequest,
    steps_per_minute: float | None = None,
) -> Trained:
    """Trains to the end of `config.train.duration`, from wherever the run stands.

    Args:
      stop: is true once the run has been asked to stop; it then saves and returns with exit code 75.
      steps_per_minute: the pace by which another run turned minutes into steps; measured here if None.

    Raises:
      UserError: the disk is full, or `config.resume` cannot be gone on from.
      diagnose.NonFinite: the loss or the gradient is; the checkpoints before are kept.
    """
    began = time.perf_counter()
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    try:
        trained = _train(
            config, workdir, task, parallel, writer, stop, steps_per_minute, checkpoints, began
        )
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            checkpoints.close()
        raise
    checkpoints.close()
    return trained


def _train(
    config, workdir, task, parallel, writer, stop, steps_per_minute, checkpoints, began
) -> Trained:
    if in_minutes(config) and steps_per_minute is None:
        steps_per_minute = checkpoints.newest_meta().get("steps_per_minute") or _pace(
            config, task, parallel
        )
    units = durations(config, task, steps_per_minute)
    plan = make_plan(config, task, units)

    ahead = foreseen(config, task, plan, parallel, units, checkpoints)

    def enter(at: int, host: TrainState) -> tuple[Program, TrainState, Compiled]:
        """Returns the program of the steps from `at` on, a state as it takes it, and what is compiled of it."""
        program = make_program(config, task, parallel, units, at=at)
        if at and at in starts(program.table):
            host = thaw(host, program)
        placed = features.cached(config, program, host, parallel, writer.say)
        if ahead and ahead.at == at and placed is program.task:
            return ahead.program, parallel.put_state(host), ahead
        program = program._replace(task=placed)
        compiled = Compiled(config, program, parallel, plan, at, host)
        return program, parallel.put_state(host), compiled

    begun = start(config, task, plan, parallel, units, checkpoints, writer.say)
    first, meta = begun.step, begun.meta
    rows_of = parameter_table(config, task, parallel, units)
    files.write_text(workdir / "parameters.txt", table.format_table(rows_of))
    files.write_json(workdir / "data_report.json", task.data.report)
    for name, text in task.files.items():
        files.write_text(workdir / name, text)
    for line in task.data.remarks:
        writer.say(line)
    if any(row.treatment != rows_of[0].treatment or not row.trainable for row in rows_of):
        for line in table.summarize(rows_of):
            writer.say(line)
    program, state, compiled = enter(first, begun.state)
    base = pretrained.base_of(config, task, program, begun.state).hashes()
    del begun  # the host's copy of the state
    best: dict[str, Any] | None = meta.get("best")
    writer.start_run(
        first,
        task.data.fingerprints,
        {
            "steps_per_minute": plan.steps_per_minute,
            **({"base": base} if base else {}),
        },
        total_steps=plan.total,
    )

    rows = parallel.rows(config.train.batch_size)
    window = Window(meta.get("window"))
    clock = Clock(meta.get("timing"), began)
    pending: tuple[int, dict[str, Any]] | None = None

    def collect() -> None:
        """Reads the figures of the last step dispatched, once."""
        nonlocal pending
        if pending is not None:
            n, metrics = pending
            pending = None
            values = {name: float(value) for name, value in parallel.take(metrics).items()}
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                raise diagnose.NonFinite(n, values)
            window.add(values)

    def save(step: int) -> None:
        host = stored(config, task, program, parallel.take_state(state))
        if bad := diagnose.first_bad({"params": host.params, "opt_state": host.opt_state}):
            raise diagnose.NonFinite(step - 1, {}, bad)
        writer.flush()
        meta = {
            "config": config.to_dict(),
            "data": task.data.fingerprints,
            "best": best,
            "window": window.to_json(),
            "timing": clock.to_json(),
            "steps_per_minute": plan.steps_per_minute,
            "table": table.stored(program.table),
            "base": base,
        }
        checkpoints.save(step, host, meta, best=best["step"] if best else None)

    step = first
    outputs: dict[str, Any] | None = None  # of the newest evaluation
    waited = 0.0
    stopping = False
    try:
        while step < plan.total and not stopping:  # once, or once for each thaw of a group
            if step > first:
                program, state, compiled = enter(step, parallel.take_state(state))
            until = min(program.until or plan.total, plan.total)
            with stream(
                program.task.data.train_batch, rows, step, until, config.data, parallel.put_batch
            ) as batches:
                for n, batch in batches:
                    run = compiled.step(state, batch, clock, apart=n > first)
                    if n == first:
                        clock.start()
                    state, metrics = run(state, batch)
                    collect()  # the figures of the step before; elsewhere than on a CPU while this one runs
                    pending = (n, metrics)
                    step = n + 1
                    writer.tick(step)
                    if n == first:
                        clock.put("seconds_to_first_step", time.perf_counter() - began)
                    last = step == plan.total
                    log = _due(step, plan.log_every) or last
                    evaluate = _due(step, plan.eval_every) or (last and plan.eval_every)
                    keep = _due(step, plan.save_every) or last
                    if not (log or evaluate or keep or stop):
                        continue
                    collect()
                    if log:
                        rate = clock.rate((step - first) * config.train.batch_size)
                        figures = window.take() | {"learning_rate": float(program.schedule(n))}
                        writer.log(step, "train", figures, {"examples_per_second": rate})
                    if evaluate:
                        with clock.measure("seconds_evaluation", apart=True):
                            outputs = predict_split(
                                config,
                                program.task,
                                parallel,
                                compiled.predict,
                                state,
                                "validation",
                            )
                            figures = task.measure(outputs, False)
                            writer.log(step, "validation", figures)
                        if _better(config, figures, best):
                            best = {"step": step, "value": figures[best_name(config)]}
                            keep = True
                    stopping = bool(stop) and not last  # read once: a signal may come at any moment
                    if keep or stopping:
                        clock.put("seconds_data_wait", waited + batches.waited)
                        clock.put("steps_timed", step - first)
                        with clock.measure("seconds_checkpoint"):
                            save(step)
                    if stopping:
                        break
                collect()
                waited += batches.waited
                clock.put("seconds_data_wait", waited)
                clock.put("steps_timed", step - first)
    except diagnose.NonFinite as error:
        checkpoints.wait()
        _explain(error, config, task, plan, parallel, units, checkpoints, enter, writer)
        raise
    clock.stop()
    checkpoints.wait()
    if stopping:
        writer.say(
            f"{stop.signal}: saved at step {step:,} of {plan.total:,}; the same command goes on"
        )
        return Trained(EXIT_CODE, step, None, best, clock, units)
    if program.task.predict is not task.predict or program.task.data is not task.data:
        return Trained(0, step, state, best, clock, units)
    return Trained(0, step, state, best, clock, units, compiled.predict, outputs)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _better(config, figures: dict[str, float], best: dict[str, Any] | None) -> bool:
    if not config.checkpoint.best:
        return False
    value = figures[best_name(config)]
    if best is None:
        return True
    return value > best["value"] if config.checkpoint.best_mode == "max" else value < best["value"]


def _pace(config, task: Task, parallel: Parallel, steps: int = 10) -> float:
    """Returns steps a minute, measured on a state that is thrown away."""
    size = task.data.sizes["train"]
    units = Durations(config.train.batch_size, size, 1.0, 1000, guessed=True)
    program = make_program(config, task, parallel, units, at=None)
    host = jax.device_get(program.create())
    state = parallel.put_state(pretrained.with_constants(task, host))
    batch = parallel.put_batch(task.data.train_batch(0, parallel.rows(config.train.batch_size)))
    step = parallel.compile_train(program.step, state, batch)
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return steps * 60 / (time.perf_counter() - began)


def _explain(error, config, task, plan, parallel, units, checkpoints, enter, writer) -> None:
    """Goes back to the last whole checkpoint and forward to the bad step, and names what went wrong there.

    A run is a pure function of its config, so the state before the bad step can be had again; nothing
    has to be kept for it while all goes well.
    """
    begun = restore(config, task, parallel, units, checkpoints, writer.say)
    kept = begun is not None
    begun = begun or start(config, task, plan, parallel, units, checkpoints, writer.say)
    first = begun.step
    writer.say(
        f"step {error.step + 1:,}: not finite; going from step {first:,} to it again to find the cause"
    )
    program, state, compiled = enter(first, begun.state)
    clock = Clock()
    rows = parallel.rows(config.train.batch_size)
    for n in range(first, error.step):
        if n == program.until:
            program, state, compiled = enter(n, parallel.take_state(state))
        batch = parallel.put_batch(program.task.data.train_batch(n, rows))
        state, _ = compiled.step(state, batch, clock, apart=False)(state, batch)
    host = parallel.take_state(state)
    batch = program.task.data.train_batch(error.step, slice(None))
    where, ids = diagnose.explain(program.task, host, batch, config.seed, parallel.axis_name)
    shown = ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    error.args = (
        f"step {error.step + 1:,}: the loss is not finite. First bad tensor: {where}. Examples: {shown}. "
        + (f"The checkpoint of step {first:,} is kept" if kept else "No checkpoint had been made")
        + "; try a smaller config.optimizer.learning_rate, or config.optimizer.clip_norm=1.0",
    )
