"""Where a run starts: its own checkpoint, another run's, pretrained values, or scratch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.durations import Durations
from research.engine import pretrained, table
from research.engine.checkpoint import Checkpoints, Restored, demand_same_data
from research.engine.parallel import Parallel
from research.engine.program import Plan, durations, in_minutes, make_program, state_shapes
from research.errors import UserError, UserErrors
from research.task import Task


def start(
    config: Any,
    task: Task,
    plan: Plan,
    parallel: Parallel,
    units: Durations,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> Restored:
    """Returns where the run starts, whole: what no checkpoint holds is there too.

    Raises:
      UserError: config.resume cannot be gone on from, the data or the base is not what it was, or other parameters
        would be trained.
    """
    # 1. Its own newest whole checkpoint;
    restored = restore(config, task, parallel, units, checkpoints, say)
    # 2. the newest of the run that config.resume names;
    if restored is None and config.resume:
        other = Checkpoints(Path(config.resume), read_only=True)
        restored = restore(config, task, parallel, units, other, say)
        other.close()
        if restored is None:
            raise UserError(f"config.resume={config.resume}: holds no whole checkpoint")
        if restored.step >= plan.total:
            raise UserError(
                f"config.train.duration={config.train.duration}: ends at step {plan.total:,}, but the run that "
                f"config.resume names is at {restored.step:,} already; give a longer one"
            )
        # Its best checkpoint and its time are not this run's.
        restored = restored._replace(meta=restored.meta | {"best": None, "timing": None})
    if restored is not None:
        demand_same_data(restored, task.data.fingerprints)
        say(f"going on from step {restored.step:,}")
        return restored
    # 3. what config.pretrained names; 4. scratch.
    program = make_program(config, task, parallel, units)
    return Restored(0, pretrained.start(config, task, program, say), {})


def restore(
    config: Any,
    task: Task,
    parallel: Parallel,
    units: Durations,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> Restored | None:
    """Returns the newest whole checkpoint, completed; None if there is none.

    Raises:
      UserErrors: it was made with another table of what is trained, and config.optimizer.regroup is off.
    """
    meta = checkpoints.newest_meta()
    if not meta:
        return checkpoints.restore(state_shapes(config, task, parallel, units), report=say)
    refused, changed = _compared(config, task, parallel, units, checkpoints.folder, meta)
    if not changed:
        restored = checkpoints.restore(state_shapes(config, task, parallel, units), report=say)
        if restored is None:
            return None
        program = make_program(config, task, parallel, units, at=max(restored.step - 1, 0))
        return restored._replace(
            state=pretrained.complete(config, task, program, restored.state, restored.meta)
        )
    if refused:
        raise UserErrors(refused)
    step, tree = checkpoints.variables()
    meta = checkpoints.read_meta(step)
    program = make_program(config, task, parallel, units, at=step)
    return Restored(step, pretrained.regrouped(config, task, program, step, tree, meta), meta)


def problems(config: Any, task: Task, parallel: Parallel) -> list[str]:
    """Returns what is wrong with going on from config.resume, before anything is written."""
    if not config.resume or in_minutes(config):  # a pace is measured later
        return []
    other = Checkpoints(Path(config.resume), read_only=True)
    meta, folder = other.newest_meta(), other.folder
    other.close()
    units = durations(config, task)
    return _compared(config, task, parallel, units, folder, meta)[0] if meta else []


def _compared(
    config: Any, task: Task, parallel: Parallel, units: Durations, folder: Path, meta: dict
) -> tuple[list[str], list[str]]:
    """Returns why a checkpoint of this meta is refused, and how its table differs from the config's."""
    now = table.stored(make_program(config, task, parallel, units).table)
    changed = table.differences(meta.get("table", now), now)
    if not changed or config.optimizer.regroup:
        return [], changed
    more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
    why = (
        f"config.optimizer.groups: the checkpoint in {folder} was made with another table of what "
        "is trained; bring the old groups back, or set config.optimizer.regroup=true to go on with the new "
        f"ones, whose optimizer state starts anew. What differs{more}:"
    )
    return [why, *changed[:10]], changed
