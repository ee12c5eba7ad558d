"""Adapters in PEFT's format: those that a run starts from (config.lora.adapter), and whether it can write its own."""

from typing import Any

import jax

from research.engine.state import named_leaves, path_name
from research.errors import UserError
from research.task import Params, Task
from research.transfer import lora, peft
from research.transfer.load import Imported
from research.transfer.recognise import named, namings_of
from research.transfer.tables import TORCH

# A model's head -> PEFT's word; it has none for the others.
PEFT_TYPES = {"classify": "SEQ_CLS", "lm": "CAUSAL_LM"}


def read(config: Any, params: Params, found: Imported | None) -> peft.Adapter | None:
    """Returns what `config.lora.adapter` names, fitted to a model; None if it names nothing.

    Args:
      params: arrays of the adapted model, or their shapes: then DoRA's magnitudes are checked, but not computed.
      found: the base, as `config.pretrained` names it.

    Raises:
      UserErrors: it doesn't fit; every reason is listed.
    """
    folder = config.lora.adapter
    if not folder:
        return None
    if found is None:
        raise UserError(
            f"config.lora.adapter={folder}: an adapter stands on the base that it was trained on; name that as "
            "config.pretrained.source"
        )
    leaves = named_leaves(params)
    known = leaves if _arrays(leaves) else named_leaves(found.params)
    return peft.read(
        folder,
        config.lora,
        model=config.model.name,
        options={key: value for key, value in config.model.items() if key != "name"},
        shapes={path: tuple(leaf.shape) for path, leaf in leaves.items()},
        base={path: leaf for path, leaf in known.items() if not lora.is_adapter(path)},
        naming=found.naming,
    )


def not_in_peft(config: Any, task: Task, found: Imported | None) -> str:
    """Says in a line that the run's adapters can't be exported in PEFT's format, and why; '' where they can.

    And where there is nothing to say: there are none, no base that PEFT could load, or no library that has the model.

    Args:
      found: the base, as `config.pretrained` names it.
    """
    naming = naming_in_memory(config, found)
    if not config.lora.rank or found is None or not naming:
        return ""
    shapes = named_leaves(jax.eval_shape(task.init, jax.random.key(0))[0])
    lines = peft.problems(
        {path: tuple(leaf.shape) for path, leaf in shapes.items()},
        config.lora,
        model=config.model.name,
        options={key: value for key, value in config.model.items() if key != "name"},
        naming=naming,
        task_type=PEFT_TYPES.get(task.about.get("head", ""), ""),
        beside=found.skipped,
    )
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return (
        f"note: --format=peft will not be able to write this run: {lines[0]}{more}" if lines else ""
    )


def naming_in_memory(config: Any, found: Imported | None) -> str:
    """Returns whose names the base's modules have once its library has read it; '' where no PyTorch library has any.

    Where the base doesn't tell, those of the model's first PyTorch library.
    """
    name = config.model.name
    naming = named(name, found.naming) if found else None
    if naming is None or naming.convention != TORCH:
        naming = next((n for n in namings_of(name) if n.convention == TORCH), None)
    return (naming.in_memory or naming.name) if naming else ""


def placed(params: Params, adapter: peft.Adapter | None) -> Params:
    """Returns the parameters with an adapter's values among them."""
    values = {} if adapter is None else adapter.values
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(path_name(path), leaf), params
    )


def _arrays(leaves: dict[str, Any]) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
