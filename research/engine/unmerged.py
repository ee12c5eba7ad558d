"""Adapters of a run as they are, beside their base, in PEFT's format."""

from pathlib import Path
from typing import Any

import jax

from research.engine import pretrained
from research.engine.state import TrainState, evaluated_params
from research.task import Task
from research.transfer import peft
from research.transfer.recognise import named, namings_of
from research.transfer.tables import TORCH

TYPES = {
    "classify": "SEQ_CLS",
    "lm": "CAUSAL_LM",
}  # a model's head -> PEFT's word; it has none for the others


def write(folder: Path, config: Any, state: TrainState, naming: str, head: str) -> None:
    """Writes the adapters that evaluation uses, and what config.lora.train names, into a folder.

    Args:
      head: of a model of tokens, `Task.about['head']`; '' of any other.

    Raises:
      UserErrors: something trained can't be said in PEFT's format.
    """
    kind, _, place = config.pretrained.source.partition(":")
    options = {key: value for key, value in config.model.items() if key != "name"}
    peft.write(
        folder,
        jax.device_get(evaluated_params(state)),
        config.lora,
        model=config.model.name,
        options=options,
        naming=naming,
        base=place if kind == "hf" else "",
        task_type=TYPES.get(head, ""),
    )


def naming_in_memory(config: Any, task: Task) -> str:
    """Returns whose names the base's modules have once its library has read it.

    Where the base doesn't tell, those of the model's first PyTorch library.
    """
    name = config.model.name
    base = pretrained.read(config, *jax.eval_shape(task.init, jax.random.key(0)))
    found = named(name, base.naming) if base else None
    if found is None or found.convention != TORCH:
        found = next(naming for naming in namings_of(name) if naming.convention == TORCH)
    return found.in_memory or found.name
