"""What enters a run from outside, once: pretrained values, and constants such as a teacher.

With adapters (config.lora) the frozen base is in no checkpoint: it comes from `config.pretrained` again, and the
checkpoint names it by its hash. The same holds for `Task.constants`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research.engine import adapters, files
from research.engine.checkpoint import Checkpoints
from research.engine.program import Program, in_checkpoint
from research.engine.state import (
    TrainState,
    join,
    named_leaves,
    params_sha256,
    path_name,
    split,
)
from research.engine.workdir import read_config
from research.errors import UserError, UserErrors
from research.task import Params, Task
from research.transfer import distill, lora
from research.transfer.load import Imported, load


class Base(NamedTuple):
    """What of a state no checkpoint holds; NumPy leaves, None where one does."""

    params: Params
    constants: Params  # entries of model_state

    def hashes(self) -> dict[str, str]:
        """Returns {'params': sha256, 'constants': sha256} of what there is."""
        return {
            name: params_sha256(tree)
            for name, tree in self._asdict().items()
            if jax.tree.leaves(tree)
        }


def start(
    config: Any,
    task: Task,
    program: Program,
    say: Callable[[str], None] = print,
    *,
    with_adapter: bool = True,
) -> TrainState:
    """Returns the state before the first step, NumPy leaves: fresh values, and pretrained ones where there are any.

    Args:
      with_adapter: False leaves out `config.lora.adapter`, where a checkpoint has its values.

    Raises:
      UserErrors: the pretrained values do not fit; every array that does not is listed.
    """
    state = jax.device_get(program.create())
    found = read(config, state.params, state.model_state)
    for line in remarks(config, task, program, found):
        say(line)
    if found:
        state = dataclasses.replace(
            state,
            params=overlay(state.params, found.params),
            model_state=overlay(state.model_state, found.model_state),
        )
    if with_adapter and (adapter := adapters.read(config, state.params, found)):
        say(adapter.told(config.lora.adapter))
        state = dataclasses.replace(state, params=adapters.placed(state.params, adapter))
    if found:
        state = _begun_anew(program, state)
    return with_constants(task, state)


def problems(config: Any, task: Task) -> list[str]:
    """Returns what is wrong with `config.pretrained` and `config.lora.adapter`.

    They are read for that, so that nothing starts that cannot go on.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    try:
        found = read(config, *shapes)
        adapters.read(config, shapes[0], found)
    except UserErrors as errors:
        return errors.lines
    except UserError as error:
        return [str(error)]
    return _other_classes(config, task, found)


def _other_classes(config: Any, task: Task, found: Imported | None) -> list[str]:
    """Says so if the head comes from a folder that has the classes in another order."""
    if found is None or any(path.startswith("head/") for path in found.skipped):
        return []
    from research.transfer.hf import configs

    line = configs.order_problem(config.pretrained.source, task.about.get("classes", ()))
    return [line] if line else []


def remarks(config: Any, task: Task, program: Program, found: Imported | None) -> list[str]:
    """Returns what to say of the values a run starts from: where they are from, and what is hardly meant.

    Args:
      found: what `read` returned.
    """
    lines = [] if found is None else [told(config, found), other_pixels(config, task)]
    if found is None and config.pretrained.rules:
        lines.append("config.pretrained.rules are not read: config.pretrained.source is ''")
    fresh = program.table if found is None else found.skipped
    still = [path for path in fresh if path in program.table and not lora.is_adapter(path)]
    still = [path for path in still if program.table[path].start is None]
    if still:
        shown = ", ".join(still[:3]) + (f" and {len(still) - 3} more" if len(still) > 3 else "")
        lines.append(f"note: {shown}: frozen at fresh random values, which nothing has trained")
    lines.append(adapters.not_in_peft(config, task, found))
    return [line for line in lines if line]


def with_constants(task: Task, state: TrainState) -> TrainState:
    """Returns the state with the task's constants where `init` left room for them."""
    return dataclasses.replace(state, model_state={**state.model_state, **task.constants()})


def regrouped(
    config: Any, task: Task, program: Program, step: int, tree: dict[str, Any], meta: dict[str, Any]
) -> TrainState:
    """Returns a state of which the parameters are a checkpoint's, and the optimizer's state starts anew.

    Args:
      tree: 'params', 'model_state' and perhaps 'ema' of the checkpoint.
      meta: of the checkpoint, which names its base by hash.

    Raises:
      UserErrors: it holds another model, or stands on another base than the one that is named now.
    """
    fresh = start(config, task, program, lambda line: None)
    _demand_same_model(config, program, fresh.params, tree["params"], meta)
    state = dataclasses.replace(
        fresh,
        step=jax.numpy.int32(step),
        params=overlay(fresh.params, tree["params"]),
        model_state=overlay(fresh.model_state, tree.get("model_state", {})),
    )
    state = _begun_anew(program, state)
    if state.ema is not None and tree.get("ema"):
        state = dataclasses.replace(state, ema=overlay(state.ema, tree["ema"]))
    return state


def _demand_same_model(
    config: Any, program: Program, params: Params, then: Params, meta: dict[str, Any]
) -> None:
    there, here = named_leaves(then), named_leaves(params)
    table, base = meta.get("table", {}), meta.get("base", {}).get("params")
    inside = in_checkpoint(config, program)
    left_out = {path for path in table if base and path not in there}
    lines = [
        f"config.optimizer.regroup: {path} is {_shape(there, path)} in the checkpoint and {_shape(here, path)} here; "
        "other groups go on, another model does not: name the run as config.pretrained.source instead"
        for path in sorted((there.keys() | here.keys()) - left_out)
        if _shape(there, path) != _shape(here, path)
    ]
    if not lines and base:
        kept, _ = split(params, lambda path: path not in there)
        if params_sha256(kept) != base:
            lines.append(
                f"{_named_source(config)}: is not what the checkpoint was made "
                f"on: sha256 {params_sha256(kept)[:16]} here, {base[:16]} there; bring the old one back"
            )
    if not lines:
        moved = [
            path
            for path in there
            if not inside(path) and there[path].tobytes() != np.asarray(here[path]).tobytes()
        ]
        lines = [
            f"config.optimizer.groups: {path} was trained, so it is no longer the base's that config.lora needs again "
            "and again; go on training it, or export the run and name that as config.pretrained.source"
            for path in moved
        ]
    if lines:
        more = [f"config.optimizer.regroup: ... and {len(lines) - 10} more"]
        raise UserErrors(lines if len(lines) <= 10 else lines[:10] + more)


def _named_source(config: Any) -> str:
    return config.pretrained.source or "config.pretrained.source=''"


def _shape(leaves: dict[str, Any], path: str) -> str:
    return str(list(leaves[path].shape)) if path in leaves else "absent"


def overlay(tree: Params, other: Params) -> Params:
    """Returns `tree` with the leaves of `other` where the two have a path in common."""
    there = named_leaves(other)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: there.get(path_name(path), leaf), tree
    )


def _begun_anew(program: Program, state: TrainState) -> TrainState:
    """Makes the optimizer's state, and the average, of the parameters as they are."""
    trained, _ = split(state.params, program.trainable)
    opt_state = jax.device_get(jax.jit(program.tx.init)(trained))
    return dataclasses.replace(
        state, opt_state=opt_state, ema=None if state.ema is None else trained
    )


def told(config: Any, found: Imported) -> str:
    """Says in a line what was read."""
    left = f"; left as they are: {', '.join(found.skipped)}" if found.skipped else ""
    count = len(jax.tree.leaves((found.params, found.model_state)))
    return f"{config.pretrained.source}: {count} arrays, names of {found.naming}{left}"


def read(config: Any, params: Params, model_state: Params) -> Imported | None:
    """Returns what `config.pretrained` names, fitted to a model; None if it names nothing.

    Args:
      params, model_state: arrays of the model or their shapes; adapters among them stay as they are.
    """
    given = config.pretrained
    if not given.source:
        return None
    naming, source = given.naming, given.source
    if source.startswith("orbax:"):
        arrays = run_arrays(
            Path(source.removeprefix("orbax:")),
            given.checkpoint,
            evaluated=given.params == "evaluated",
        )
        naming = naming or "own"
    else:
        from research.transfer import formats

        if (Path(source) / "config.json").is_file():
            raise UserError(f"config.pretrained.source={source}: did you mean orbax:{source}?")
        arrays = formats.read(source)
        _demand_same_layers(config, source)
    plain, _ = split(params, lambda path: not lora.is_adapter(path))
    return load(
        arrays,
        model=config.model.name,
        options={key: value for key, value in config.model.items() if key != "name"},
        params=_without_none(plain),
        model_state={key: value for key, value in model_state.items() if key != distill.KEY},
        naming=naming,
        rules=given.rules,
        source=source,
    )


def _demand_same_layers(config: Any, source: str) -> None:
    """Raises UserErrors if a file says of its layers, beside their arrays, what the model here computes otherwise."""
    from research.transfer.families import cnn
    from research.transfer.formats import keras

    kind, _, path = source.partition(":")
    if kind != "keras" or config.model.name != "cnn":
        return
    lines = cnn.mismatches(keras.layers(path), config.model.to_dict())
    if lines:
        raise UserErrors(f"{source}: {line}" for line in lines)


def run_arrays(workdir: Path, which: str, *, evaluated: bool) -> dict[str, np.ndarray]:
    """Returns the parameters and the model state of a run of ours, by their paths.

    Args:
      which: 'best', 'last', or 'final': the one that the run's own config.eval.final names.
      evaluated: the moving average of the parameters, where the run kept one.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"config.pretrained.source=orbax:{workdir}: there is no run (no config.json); name the workdir of one that "
            "has trained"
        )
    config = read_config(workdir)
    if config.to_dict().get("lora", {}).get("rank"):
        raise UserError(
            f"config.pretrained.source=orbax:{workdir}: the run holds adapters, not a whole model; export it with "
            f"--workdir={workdir} --mode=export --format=safetensors --output=DIR and name safetensors:DIR/FILE"
        )
    which = config.eval.final if which == "final" else which
    _, tree = Checkpoints(workdir, read_only=True).variables(best=which == "best")
    params = join(tree["ema"], tree["params"]) if evaluated and tree.get("ema") else tree["params"]
    state = {key: value for key, value in tree.get("model_state", {}).items() if key != distill.KEY}
    arrays = named_leaves(params)
    for collection in state.values():
        arrays |= named_leaves(collection)
    return arrays


def other_pixels(config: Any, task: Task) -> str:
    """Says so if a run's parameters were trained on pixels normalised otherwise than here; '' if not, or not known."""
    source = config.pretrained.source
    if not source.startswith("orbax:"):
        return ""
    report = files.read_json(Path(source.removeprefix("orbax:")) / "data_report.json", {})
    then = [*report.get("mean", ()), *report.get("std", ())]
    now = [*task.about.get("mean", ()), *task.about.get("std", ())]
    if len(then) != len(now) or np.allclose(then, now, atol=1e-3):
        return ""
    words = [
        f"mean {tuple(round(x, 4) for x in values[: len(values) // 2])} and "
        f"std {tuple(round(x, 4) for x in values[len(values) // 2 :])}"
        for values in (then, now)
    ]
    return (
        f"{source}: was trained on pixels normalised by {words[0]}, here by {words[1]}; "
        "config.data.mean and config.data.std set them"
    )


def base_of(config: Any, task: Task, program: Program, state: TrainState) -> Base:
    """Returns what a checkpoint of this state leaves out."""
    _, outside = split(state.params, in_checkpoint(config, program))
    return Base(outside, {key: state.model_state[key] for key in task.constants_in})


def complete(
    config: Any, task: Task, program: Program, state: TrainState, meta: dict[str, Any]
) -> TrainState:
    """The inverse of `program.stored`.

    Args:
      meta: of the checkpoint, which names the base by its hashes.

    Raises:
      UserError: the base is another one now.
    """
    if not config.lora.rank and not task.constants_in:
        return state
    # Without groups of a user's own all that an adapter gives is trained, and in the checkpoint.
    again = bool(config.optimizer.groups)
    fresh = start(config, task, program, lambda line: None, with_adapter=again)
    base = base_of(config, task, program, fresh)
    then = meta.get("base", {})
    for part, sha256 in base.hashes().items():
        if sha256 != then.get(part):
            what = {
                "params": _named_source(config),
                "constants": config.distill.teacher,
            }[part]
            raise UserError(
                f"{what}: is not what the checkpoint was made on: sha256 {sha256[:16]} here, "
                f"{then.get(part, 'none')[:16]} there; bring the old one back, or start in another workdir"
            )
    return dataclasses.replace(
        state,
        params=join(state.params, base.params),
        model_state={**state.model_state, **base.constants},
    )


def _without_none(tree: Any) -> Any:
    """Drops what `split` took out, and what is then empty."""
    if not isinstance(tree, dict):
        return tree
    kept = {key: _without_none(value) for key, value in tree.items() if value is not None}
    return {
        key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)
    }
