"""Adapters in PEFT's format that a run starts from (config.lora.adapter)."""

from typing import Any

import jax

from research.engine.state import named_leaves, path_name
from research.errors import UserError
from research.task import Params
from research.transfer import lora, peft
from research.transfer.load import Imported


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


def placed(params: Params, adapter: peft.Adapter | None) -> Params:
    """Returns the parameters with an adapter's values among them."""
    values = {} if adapter is None else adapter.values
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: values.get(path_name(path), leaf), params
    )


def _arrays(leaves: dict[str, Any]) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
