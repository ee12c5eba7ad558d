"""What a config and a task make: the optimizer, the pure step, and when things happen. Nothing runs here."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.config import defaults, first_line
from research.durations import Durations, parse_duration
from research.engine import optim, table
from research.engine.parallel import Parallel
from research.engine.state import (
    Keep,
    TrainState,
    create,
    join,
    named_leaves,
    path_name,
    split,
)
from research.engine.step import TrainStep, make_train_step
from research.errors import UserError, UserErrors
from research.groups import Treatment, starts, treatments, unfreezing
from research.ops.platform import on_cpu
from research.task import Task
from research.transfer import lora
from research.transfer.frozen_norm import hold_statistics

# Of what runs once, on a CPU: the same values in two thirds of the time to compile, or less (1.6 and 0.6 s for a CNN).
COMPILED_ONCE = {"xla_backend_optimization_level": 1}


class Plan(NamedTuple):
    """The steps at which things happen; 0 is never."""

    total: int
    log_every: int
    eval_every: int
    save_every: int
    steps_per_minute: float | None  # measured, if a duration is in minutes


class Program(NamedTuple):
    """What is compiled from a config and a task, for the steps in which the same parameters are trained."""

    tx: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    create: Callable[
        [], TrainState
    ]  # the state before the first step, on the host's default device
    make_step: Callable[[Task], TrainStep]  # the pure step of a task; not compiled
    table: dict[str, Treatment]  # what becomes of each parameter in the whole run
    trainable: Keep  # whether a parameter is trained in these steps
    until: int | None  # the step at which more is trained; None: never
    task: Task  # with frozen batch norms held

    @property
    def step(self) -> TrainStep:
        return self.make_step(self.task)


def durations(config: Any, task: Task, steps_per_minute: float | None = None) -> Durations:
    """Returns what turns the config's durations into steps; `total_steps` is set where it can be."""
    units = Durations(config.train.batch_size, task.data.sizes["train"], steps_per_minute)
    if config.train.duration.startswith("minutes") and steps_per_minute is None:
        return units
    return units._replace(total_steps=units.to_steps(config.train.duration))


def guessed(config: Any, task: Task) -> Durations:
    """Returns the same by any pace, where a pace would have to be measured: for what does not hang on it."""
    return durations(config, task, 1000.0)._replace(guessed=in_minutes(config))


def make_program(
    config: Any, task: Task, parallel: Parallel, units: Durations, at: int | None = 0
) -> Program:
    """Builds the optimizer and the pure step.

    Args:
      at: the step that is to be made; None: the last one, when everything is trained that ever is.

    Raises:
      UserErrors: what is wrong with the optimizer or the groups.
    """
    init = jax.eval_shape(task.init, jax.random.key(0))
    paths = list(named_leaves(init[0]))
    groups = config.optimizer.groups
    if config.lora.rank and not groups:
        groups = lora.groups(config.lora)
    total = units.total_steps
    known = None if units.guessed else total
    treated = treatments(groups, paths, task.layers, units.to_steps, known)
    begun = starts(treated)
    at = begun[-1] if at is None else at
    tx, schedule = optim.make_optimizer(
        config.optimizer, total_steps=total or 0, to_steps=units.to_steps, table=treated, at=at
    )
    trained = frozenset(
        path for path, t in treated.items() if t.start is not None and t.start <= at
    )
    trainable = trained.__contains__
    if len(trained) < len(paths) and jax.tree.leaves(init[1]):
        # A module is frozen with all of its parameters.
        alive = frozenset(path.rpartition("/")[0] for path in trained)
        task = hold_statistics(task, lambda path: path not in alive, config.train.frozen_batch_norm)

    def make_step(task: Task) -> TrainStep:
        return make_train_step(
            task,
            tx,
            seed=config.seed,
            micro_batches=config.train.micro_batches,
            ema=config.train.ema,
            axis_name=parallel.axis_name,
            trainable=trainable,
        )

    def make_state() -> TrainState:
        return create(task, tx, seed=config.seed, ema=config.train.ema, trainable=trainable)

    made: Any = jax.jit(make_state, compiler_options=COMPILED_ONCE if on_cpu() else None)

    def make_state_once() -> TrainState:
        if isinstance(jnp.zeros(()), jax.core.Tracer):  # only its shapes are asked for
            return make_state()
        state = made()
        made.clear_cache()  # the program takes as much memory as a network, 100 MB for a ViT-tiny
        return state

    until = next((start for start in begun if start > at), None)
    return Program(tx, schedule, make_state_once, make_step, treated, trainable, until, task)


def stored(config: Any, task: Task, program: Program, state: TrainState) -> TrainState:
    """Returns what of a state, or of its shapes, a checkpoint holds: not a base under adapters, and no constants."""
    inside, _ = split(state.params, in_checkpoint(config, program))
    constants = task.constants_in
    return dataclasses.replace(
        state,
        params=inside,
        model_state={k: v for k, v in state.model_state.items() if k not in constants},
    )


def in_checkpoint(config: Any, program: Program) -> Keep:
    """Whether a checkpoint holds a parameter."""
    if not config.lora.rank:
        return lambda path: True
    return lambda path: lora.is_adapter(path) or program.table[path].start is not None


def state_shapes(
    config: Any, task: Task, parallel: Parallel, units: Durations
) -> Callable[[int], TrainState]:
    """Returns step -> the shapes and dtypes of what a checkpoint of that many steps holds."""

    def shapes(step: int) -> TrainState:
        program = make_program(config, task, parallel, units, at=max(step - 1, 0))
        return stored(config, task, program, jax.eval_shape(program.create))

    return shapes


def thaw(state: TrainState, program: Program) -> TrainState:
    """Returns a state, NumPy leaves, as the program of the next steps takes it: what begins there begins anew.

    The moments, counts and averages of what was trained before go on; those of what begins start from nothing, and an
    average from the parameters as they are.
    """
    trained, _ = split(state.params, program.trainable)
    fresh = jax.device_get(jax.jit(program.tx.init)(trained))
    before = named_leaves(state.opt_state)
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: before.get(path_name(path), leaf), fresh
    )
    ema = None if state.ema is None else join(state.ema, trained)
    return dataclasses.replace(state, opt_state=opt_state, ema=ema)


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
        units = guessed(config, task)
        make_plan(config, task, units)
        program = make_program(config, task, parallel, units)
    except UserErrors as errors:
        return errors.lines
    except UserError as error:
        return [str(error)]
    try:
        shapes = jax.eval_shape(program.create)
        # Some options are looked at only here. The whole step takes longer to trace; the rest of it has no options.
        trained, _ = split(shapes.params, program.trainable)
        jax.eval_shape(program.tx.update, trained, shapes.opt_state, trained)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return [
            f"config.optimizer: optax.{config.optimizer.name} does not take these options: {first_line(error)}"
        ]
    adapters = [t.start for path, t in program.table.items() if lora.is_adapter(path)]
    if adapters and not any(start is not None for start in adapters):
        return [
            "config.optimizer.groups: freezes every adapter of config.lora; leave the groups out (config.lora.train "
            "says what else is trained), or put (r'.*lora_', {}) first"
        ]
    if lines := _joined_problems(task, program):
        return lines
    usual = defaults().optimizer.decay_exclude
    patterns = [pattern for pattern in config.optimizer.decay_exclude if pattern not in usual]
    paths = named_leaves(shapes.params)
    lines = [
        f"config.optimizer.decay_exclude: {pattern!r} matches no parameter; there are {', '.join(list(paths)[:5])}, ..."
        for pattern in optim.unmatched_patterns(patterns, paths)
    ]
    return lines + _best_problems(config, task, shapes) + _final_problems(config, task)


def parameter_table(
    config: Any, task: Task, parallel: Parallel, units: Durations
) -> list[table.Row]:
    """Returns a row for each parameter: what becomes of it in the whole run."""
    program = make_program(config, task, parallel, units, at=None)
    return table.parameter_table(jax.eval_shape(program.create).params, program.tx, program.table)


def in_minutes(config: Any) -> bool:
    """True if a duration has to be measured by the clock before it is a number of steps."""
    values = [
        config.train.duration,
        config.log.every,
        config.eval.every,
        config.checkpoint.every,
        *config.optimizer.schedule.to_dict().values(),
        *unfreezing(config.optimizer.groups),
    ]
    texts = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(text, str) and text.startswith("minutes") for text in texts)


def best_name(config: Any) -> str:
    """The figure of the validation split that says which checkpoint is best."""
    return config.checkpoint.best.removeprefix("validation/")


def _joined_problems(task: Task, program: Program) -> list[str]:
    """Says so if parameters that are computed with as one are not frozen together."""
    for pattern, why in task.joined.items():
        first: dict[str, str] = {}
        for path, treatment in program.table.items():
            if not (match := re.match(pattern, path)):
                continue
            other = first.setdefault(path[match.end() :], path)
            if program.table[other].start != treatment.start:
                return [
                    f"config.optimizer.groups: {other} and {path} are not trained in the same steps, but both "
                    f"would get their gradients: {why}, or freeze them together"
                ]
    return []


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
