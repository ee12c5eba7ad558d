"""The run that `config.distill.teacher` names, as the teacher of another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import as_trained
from research.engine import files
from research.engine.finish import restore_final
from research.engine.parallel import Parallel
from research.engine.state import evaluated_params, params_sha256
from research.engine.workdir import read_config
from research.errors import UserError, UserErrors
from research.task import Task
from research.transfer.distill import distill


def with_teacher(config: Any, layout: Parallel, task: Task, build: Callable[[Any], Task]) -> Task:
    """Returns the task, wrapped in what its teacher says if the config names one.

    The teacher is the checkpoint that its own `eval.final` names, with the parameters that are evaluated;
    `about['teacher']` is their params_sha256. What it learned from itself plays no part.

    Args:
      build: config -> task, as for any run of its kind.

    Raises:
      UserErrors: the teacher is no finished run, it cannot be built any more, or it does not fit the task.
    """
    if not config.distill.teacher:
        return task
    path = Path(config.distill.teacher)
    try:
        own = _finished(path)
        teacher = build(own)
        restored = restore_final(own, path, teacher, layout)
        variables = evaluated_params(restored.state), restored.state.model_state
        distilled = distill(
            task,
            teacher,
            lambda: variables,
            variables,
            temperature=config.distill.temperature,
            weight=config.distill.weight,
        )
    except UserErrors as errors:
        raise UserErrors([_told(path, line) for line in errors.lines]) from errors
    except UserError as error:
        raise UserError(_told(path, str(error))) from error
    return distilled._replace(about={**task.about, "teacher": params_sha256(variables[0])})


def _finished(path: Path) -> Any:
    """Returns the config of a finished run."""
    if not (path / "config.json").is_file():
        raise UserError(
            f"there is no run in {path} (no config.json); name the workdir of a finished one"
        )
    if (files.read_json(path / "run.json") or {}).get("exit") != 0:
        raise UserError(
            f"its run has not come to its end; go on with it: python launch.py --workdir={path}"
        )
    return as_trained(read_config(path), path)


def _told(path: str | Path, line: str) -> str:
    return f"config.distill.teacher={path}: {line}"
