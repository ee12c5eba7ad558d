"""What a config and a task make: the optimizer, the pure step, and when things happen. Nothing runs here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from research.config import defaults, first_line
from research.durations import Durations, parse_duration
from research.engine import optim
from research.engine.parallel import Parallel
from research.engine.state import TrainState, create, named_leaves
from research.engine.step import make_train_step
from research.errors import UserError, UserErrors
from research.task import Task


class Plan(NamedTuple):
    """The steps at which things happen; 0 is never."""

    total: int
    log_every: int
    eval_every: int
    save_every: int
    steps_per_minute: float | None  # measured, if a duration is in minutes


class Program(NamedTuple):
    """What is compiled from a config and a task."""

    tx: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    create: Callable[
        [], TrainState
    ]  # the state before the first step, on the host's default device
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]  # pure; not compiled


def durations(config: Any, task: Task, steps_per_minute: float | None = None) -> Durations:
    """Returns what turns the config's durations into steps; `total_steps` is set where it can be."""
    units = Durations(config.train.batch_size, task.data.sizes["train"], steps_per_minute)
    if config.train.duration.startswith("minutes") and steps_per_minute is None:
        return units
    return units._replace(total_steps=units.to_steps(config.train.duration))


def make_program(config: Any, task: Task, parallel: Parallel, units: Durations) -> Program:
    """Builds the optimizer and the pure step."""
    tx, schedule = optim.make_optimizer(
        config.optimizer, total_steps=units.total_steps or 0, to_steps=units.to_steps
    )
    step = make_train_step(
        task,
        tx,
        seed=config.seed,
        micro_batches=config.train.micro_batches,
        ema=config.train.ema,
        axis_name=parallel.axis_name,
    )
    return Program(
        tx,
        schedule,
        jax.jit(lambda: create(task, tx, seed=config.seed, ema=config.train.ema)),
        step,
    )


def make_plan(config: Any, task: Task, units: Durations) -> Plan:
    """Turns the config's durations into steps.

    Raises:
      UserError: there would be no step at all.
    """
    if not units.total_steps:
        raise UserError(
            f"config.train.duration={config.train.duration}: is no step at all; give it some"
        )
    return Plan(
        units.total_steps,
        units.to_steps(config.log.every),
        units.to_steps(config.eval.every) if "validation" in task.data.sizes else 0,
        units.to_steps(config.checkpoint.every),
        units.steps_per_minute,
    )


def problems(config: Any, task: Task, parallel: Parallel) -> list[str]:
    """Returns every mistake that can be seen once data and model are there; run before anything is written."""
    try:
        units = durations(config, task, steps_per_minute=1000.0)  # any pace will do
        make_plan(config, task, units)
        program = make_program(config, task, parallel, units)
    except UserErrors as errors:
        return errors.lines
    except UserError as error:
        return [str(error)]
    try:
        shapes = jax.eval_shape(program.create)
        # Some options are looked at only here. The whole step takes longer to trace; the rest of it has no options.
        jax.eval_shape(program.tx.update, shapes.params, shapes.opt_state, shapes.params)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return [
            f"config.optimizer: optax.{config.optimizer.name} does not take these options: {first_line(error)}"
        ]
    usual = defaults().optimizer.decay_exclude
    patterns = [pattern for pattern in config.optimizer.decay_exclude if pattern not in usual]
    paths = named_leaves(shapes.params)
    lines = [
        f"config.optimizer.decay_exclude: {pattern!r} matches no parameter; there are {', '.join(list(paths)[:5])}, ..."
        for pattern in optim.unmatched_patterns(patterns, paths)
    ]
    return lines + _best_problems(config, task, shapes) + _final_problems(config, task)


def state_shapes(config: Any, task: Task, parallel: Parallel) -> TrainState:
    """Returns the shapes and dtypes of a run's state, without making it."""
    program = make_program(config, task, parallel, durations(config, task, steps_per_minute=1.0))
    return jax.eval_shape(program.create)


def in_minutes(config: Any) -> bool:
    """True if a duration has to be measured by the clock before it is a number of steps."""
    values = [
        config.train.duration,
        config.log.every,
        config.eval.every,
        config.checkpoint.every,
        *config.optimizer.schedule.to_dict().values(),
    ]
    texts = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(text, str) and text.startswith("minutes") for text in texts)


def best_name(config: Any) -> str:
    """The figure of the validation split that says which checkpoint is best."""
    return config.checkpoint.best.removeprefix("validation/")


def _final_problems(config: Any, task: Task) -> list[str]:
    """Says so if the final figures are to be of the best checkpoint and there will be none."""
    if config.eval.final != "best":
        return []
    reason = ""
    if "validation" not in task.data.sizes:
        reason = "there is no validation split (config.data.validation_fraction)"
    elif not parse_duration(config.eval.every)[1]:
        reason = f"config.eval.every={config.eval.every} never evaluates"
    elif not config.checkpoint.best:
        reason = "config.checkpoint.best names no figure"
    return [f"config.eval.final=best: {reason}; mend that, or choose last"] if reason else []


def _best_problems(config: Any, task: Task, shapes: TrainState) -> list[str]:
    """Says so if no evaluation will give the figure that config.checkpoint.best names."""
    if not config.checkpoint.best or "validation" not in task.data.sizes:
        return []
    batch = task.data.eval_batch("validation", 0, slice(0, 2))
    outputs = jax.eval_shape(task.predict, shapes.params, shapes.model_state, batch)
    names = task.measure(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), outputs), False)
    if best_name(config) not in names:
        known = ", ".join(f"validation/{name}" for name in names)
        return [
            f"config.checkpoint.best={config.checkpoint.best}: is not measured; there are {known}"
        ]
    return []
