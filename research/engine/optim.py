"""From a config to an optax transformation.

The optimizer is a function of optax, looked up by its name ('adamw', 'contrib.muon'); its options are that function's
own arguments. In front of it stand, in this order, the clipping of the gradient's global norm and the weight decay,
unless the optimizer brings its own.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from research.config import first_line
from research.engine.schedules import Schedule, make_schedule, schedule_options
from research.engine.state import named_leaves, path_name
from research.errors import UserError, UserErrors, nearest
from research.groups import Treatment, starts
from research.task import Params

__all__ = [
    "make_optimizer",
    "optimizer_options",
    "schedule_options",
]

OWN_KEYS = (
    "name",
    "learning_rate",
    "weight_decay",
    "decay_exclude",
    "clip_norm",
    "groups",
    "regroup",
    "schedule",
)
# optax spells these two in more than one way.
DECAY_ARGUMENTS = ("weight_decay", "weight_decay_rate")
MASK_ARGUMENTS = ("mask", "weight_decay_mask")
# They need more than a gradient (the loss or its value, noise, other parameters to evaluate with), or take no schedule.
EXCLUDED = (
    "lbfgs",
    "noisy_sgd",
    "optimistic_adam",  # deprecated for optimistic_adam_v2
    "rprop",
    "sm3",
    "contrib.momo",
    "contrib.momo_adam",
    "contrib.schedule_free_adamw",
    "contrib.schedule_free_sgd",
    "contrib.sophia",
)


def make_optimizer(
    config: Any,
    *,
    total_steps: int,
    to_steps: Callable[[str], int],
    table: dict[str, Treatment] | None = None,
    at: int = 0,
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds clipping, weight decay and the optimizer, chained in this order, and the learning rate's schedule.

    Weight decay leaves out the parameters whose path matches a pattern of `decay_exclude`. What it means is up to the
    optimizer:

    - adamw, adamaxw, adan, lamb, lion, lars, adadelta, contrib.muon, contrib.ademamix and all others that have a decay
      and a mask of their own use these: for adamw, p <- p - lr (update + decay p). adafactor's is not multiplied by the
      learning rate. contrib.muon's is that of its matrices; for the rest it has `adam_weight_decay`.
    - adam, sgd, rmsprop, adagrad, radam, novograd and all others see decay * p added to the clipped gradient: the L2
      penalty that PyTorch's optimizers of these names call weight_decay.

    What is clipped, decayed and updated is the tree that the step hands over: what is frozen is not in it. Where groups
    begin at different steps, each beginning has an optimizer of its own, whose counts start there and whose learning
    rate follows the schedule of the whole run.

    Args:
      config: the section `config.optimizer`.
      total_steps: of the whole run.
      to_steps: turns a duration such as 'percent=5' into steps.
      table: what becomes of each parameter; None trains all of them alike.
      at: the step that is to be made: groups that begin later are not there yet.

    Returns:
      The transformation, and the schedule: step [] -> learning rate [] float32.

    Raises:
      UserErrors: every unknown name, option or pattern, with the nearest valid one.
    """
    errors: list[str] = []
    options: dict[str, Any] = {}
    try:
        options = optimizer_options(config.name)
    except UserError as error:
        errors.append(f"config.optimizer.name: {error}")
    given = {key: value for key, value in config.items() if key not in OWN_KEYS}
    if not errors:
        errors += [
            f"config.optimizer.{key}: {config.name} has no such argument{nearest(key, [*options, *OWN_KEYS])}"
            for key in given
            if key not in options
        ]
    errors += _pattern_errors(config.decay_exclude)
    schedule: Any = None
    try:
        schedule = make_schedule(
            config.schedule, peak=config.learning_rate, total_steps=total_steps, to_steps=to_steps
        )
    except UserErrors as error:
        errors += error.lines
    if errors:
        raise UserErrors(errors)

    table = table or {}
    factors = {path: t.lr for path, t in table.items() if t.start is not None and t.lr != 1.0}
    begun = starts(table) or [0]
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if len(begun) == 1:
        return optax.chain(*clip, *_update(config, given, schedule, factors)), schedule
    parts = {
        f"from_{start}": optax.chain(*_update(config, given, _later(schedule, start), factors))
        for start in begun
        if start <= at
    }

    def labels(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: f"from_{table[path_name(path)].start}", params
        )

    return optax.chain(*clip, optax.partition(parts, labels)), schedule


def _update(
    config: Any, given: dict[str, Any], schedule: Schedule, factors: dict[str, float]
) -> list[optax.GradientTransformation]:
    """Weight decay, the optimizer, and the groups' factors of the learning rate."""
    parts = []
    function = _optimizers()[config.name]
    decay, mask = _decay_arguments(function)
    if decay and mask:
        given = given | {decay: config.weight_decay, mask: decay_mask(config.decay_exclude)}
    elif config.weight_decay:
        parts.append(
            optax.add_decayed_weights(config.weight_decay, decay_mask(config.decay_exclude))
        )
    try:
        parts.append(function(learning_rate=schedule, **given))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserErrors(
            [
                f"config.optimizer: optax.{config.name} does not take these options: {first_line(error)}"
            ]
        ) from error
    if factors:
        parts.append(
            optax.stateless(
                lambda updates, params: jax.tree_util.tree_map_with_path(
                    lambda path, u: u * factors.get(path_name(path), 1.0), updates
                )
            )
        )
    return parts


def _later(schedule: Schedule, start: int) -> Schedule:
    """The schedule of the whole run, for an optimizer that counts from `start`."""
    return lambda step: schedule(step + start)


def optimizer_options(name: str) -> dict[str, Any]:
    """Returns what a config may set of an optimizer, and optax's defaults.

    Raises:
      UserError: there is no such optimizer; the message lists what exists.
    """
    functions = _optimizers()
    if name in EXCLUDED:
        raise UserError(
            f"optax.{name} needs more than a gradient and a schedule, or is deprecated; choose another"
        )
    if name not in functions:
        raise UserError(
            f"there is no optimizer '{name}' in optax{nearest(name, functions)}: {', '.join(functions)}"
        )
    ours = ("learning_rate", *DECAY_ARGUMENTS, *MASK_ARGUMENTS)
    return {
        key: parameter.default
        for key, parameter in inspect.signature(functions[name]).parameters.items()
        if key not in ours and _is_plain(parameter.default)
    }


def decay_mask(exclude: Iterable[str]) -> Callable[[Params], Any]:
    """Returns params -> a tree of bools: whether a parameter is decayed."""
    patterns = [re.compile(pattern) for pattern in exclude]

    def mask(params: Params) -> Any:
        decayed = [not any(p.search(path) for p in patterns) for path in named_leaves(params)]
        return jax.tree.unflatten(jax.tree.structure(params), decayed)

    return mask


def unmatched_patterns(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Returns the patterns that are found in none of the parameter paths."""
    paths = list(paths)
    return [pattern for pattern in patterns if not any(re.search(pattern, path) for path in paths)]


def _optimizers() -> dict[str, Callable]:
    """The functions of optax that make a whole optimizer out of a learning rate and options."""
    found: dict[str, Callable] = {}
    for prefix, module in (("", optax), ("contrib.", optax.contrib)):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith(("_", "scale_by_")) or prefix + name in EXCLUDED:
                continue
            parameters = inspect.signature(function).parameters
            required = {
                key for key, p in parameters.items() if p.default is inspect.Parameter.empty
            }
            if "learning_rate" in parameters and required <= {"learning_rate"}:
                found[prefix + name] = function
    return found


def _decay_arguments(function: Callable) -> tuple[str, str] | tuple[None, None]:
    """The names of an optimizer's own weight decay and of its mask, if it has both."""
    parameters = inspect.signature(function).parameters
    decay = next((key for key in DECAY_ARGUMENTS if key in parameters), None)
    mask = next((key for key in MASK_ARGUMENTS if key in parameters), None)
    return (decay, mask) if decay and mask else (None, None)


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _pattern_errors(patterns: Iterable[str]) -> list[str]:
    errors = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            errors.append(
                f"config.optimizer.decay_exclude: '{pattern}' is no regular expression: {error}"
            )
    return errors
