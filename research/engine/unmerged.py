"""Adapters of a run as they are, beside their base, in PEFT's format."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.engine import adapters, pretrained
from research.engine.state import TrainState, evaluated_params, named_leaves
from research.task import Task
from research.transfer import lora, peft
from research.transfer.load import Imported


def write(
    folder: Path, config: Any, state: TrainState, task: Task, naming: str, base: Imported | None
) -> None:
    """Writes the adapters that evaluation uses, and whole what else is not as the base has it, into a folder.

    That is what config.lora.train names or groups train, and frozen fresh values.

    Args:
      task: of the config.
      naming: whose names the modules have.
      base: what `base_of` returned.

    Raises:
      UserErrors: something trained can't be said in PEFT's format.
    """
    kind, _, place = config.pretrained.source.partition(":")
    params = jax.device_get(evaluated_params(state))
    peft.write(
        folder,
        params,
        config.lora,
        model=config.model.name,
        options={key: value for key, value in config.model.items() if key != "name"},
        naming=naming,
        base=place if kind == "hf" else "",
        task_type=adapters.PEFT_TYPES.get(task.about.get("head", ""), ""),
        beside=_others(params, base.params) if base else (),
    )


def base_of(config: Any, task: Task) -> Imported | None:
    """Returns what the adapters stand on, as `config.pretrained` names it."""
    return pretrained.read(config, *jax.eval_shape(task.init, jax.random.key(0)))


def _others(params: Any, base: Any) -> list[str]:
    """Paths of the parameters that the base has not, or otherwise."""
    there = named_leaves(base)
    return [
        path
        for path, leaf in named_leaves(params).items()
        if not lora.is_adapter(path)
        and (there.get(path) is None or not np.array_equal(leaf, there[path]))
    ]
