"""The arrays of an adapter's file: which is what, and whose names they have."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError
from research.transfer.formats import safetensors, torch
from research.transfer.peft.pieces import PREFIX, Layer, by_module, layers, some
from research.transfer.peft.settings import ARRAYS
from research.transfer.recognise import namings_of
from research.transfer.tables import Arrays, Naming, Shapes

PARTS = re.compile(
    r"(?P<module>.+)\.(?:lora_(?:embedding_)?(?P<factor>[AB])|(?P<m>lora_magnitude_vector)|(?P<base>base_layer))"
    r"(?:\.weight)?"
)
UNUSED = re.compile(r".+\.base_layer\.bias")


class Found(NamedTuple):
    """The arrays of an adapter file by what they are."""

    factors: dict[str, dict[str, np.ndarray]]  # module -> 'A', 'B', 'm', of those that are there
    bases: Arrays  # name of a base's array -> what the file holds of it
    whole: Arrays  # name -> an array that stands for the base's


def read_arrays(folder: Path) -> tuple[Found, list[str]]:
    """Returns the arrays of an adapter by what they are, and a line for each that has no place.

    Raises:
      UserError: the file isn't there or is damaged, or holds no adapter.
    """
    path = folder / ARRAYS
    old = folder / "adapter_model.bin"
    arrays = torch.read(old) if old.is_file() and not path.is_file() else safetensors.read(path)
    if wrong := [n for n, a in arrays.items() if "float" not in a.dtype.name]:
        raise UserError(
            f"{folder}: '{wrong[0]}' is {arrays[wrong[0]].dtype.name}; floats were expected"
        )
    wide = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return _sorted(wide, folder)


def recognised(
    found: Found, model: str, options: dict[str, Any], shapes: Shapes, first: str, folder: Path
) -> tuple[Naming, dict[str, Layer], Found]:
    """Returns the naming that has the most of the adapter's modules, its layers, and the arrays by its names.

    Args:
      first: the naming to prefer, or ''.

    Raises:
      UserError: none has any of them.
    """
    best: tuple[int, Any] = (0, None)
    expected = []
    for naming in sorted(namings_of(model), key=lambda n: n.name != first):
        try:
            there = layers(naming, shapes, options)
        except UserError:  # a naming of models of another kind
            continue
        modules = by_module(there)
        expected += [f"{naming.name}: {some(modules)}"] if modules else []
        for called in (found, _whole_names(found, naming, shapes)):
            known = len(modules.keys() & called.factors.keys())
            if known > best[0]:
                best = known, (naming, there, called)
    if not best[0]:
        raise UserError(
            f"{folder}: adapts {some(found.factors)}, none of which is in a {model}; there are, by naming, "
            f"{'; '.join(expected)}"
        )
    return best[1]


def _whole_names(found: Found, naming: Naming, shapes: Shapes) -> Found:
    """The arrays of a bare model's adapter, by the names of the whole one."""
    if naming.match is None:
        return found
    old = {f"{module}.weight": np.zeros(0) for module in found.factors}
    new = {was: name for name, was in naming.match(old | found.whole | found.bases, shapes).items()}
    ends = len(".weight")
    return Found(
        {new.get(f"{m}.weight", f"{m}.weight")[:-ends]: x for m, x in found.factors.items()},
        {new.get(name, name): array for name, array in found.bases.items()},
        {new.get(name, name): array for name, array in found.whole.items()},
    )


def _sorted(arrays: Arrays, folder: Path) -> tuple[Found, list[str]]:
    """Sorts arrays by what they are; and a line for what has no place."""
    found, strangers = Found({}, {}, {}), []
    for name, array in arrays.items():
        inner = name.removeprefix(PREFIX)
        if inner == name:
            strangers.append(name)
        elif match := PARTS.fullmatch(inner):
            if match["base"]:
                found.bases[f"{match['module']}.weight"] = array
            else:
                part = match["factor"] or "m"
                found.factors.setdefault(match["module"], {})[part] = array
        elif ".lora_" in inner:
            strangers.append(name)
        elif not UNUSED.fullmatch(inner):
            found.whole[inner] = array
    if not found.factors:
        raise UserError(f"{folder}: holds no adapter ({some(arrays) or 'no array at all'})")
    return found, [f"{folder}: '{name}' is no array of an adapter of LoRA's" for name in strangers]
