"""PEFT's adapters as ours: strict, every mistake told at once."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserErrors
from research.transfer.lora_layers import scale
from research.transfer.peft.arrays import Found, read_arrays, recognised
from research.transfer.peft.blocks import Block, blocks_of, joined
from research.transfer.peft.fitting import mismatches
from research.transfer.peft.pieces import (
    CALLED,
    TIED,
    Layer,
    by_module,
    column_norms,
    shapes_out,
    some,
    tied,
)
from research.transfer.peft.settings import SETTINGS, rank_of, read_settings
from research.transfer.strict import MOST
from research.transfer.tables import Arrays, Entry, Naming, Shapes, entries, ignorable


class Adapter(NamedTuple):
    """What `read` returns."""

    values: Arrays  # path of ours -> float32: the adapters' leaves, and parameters that PEFT saved whole
    naming: str  # whose names the modules have
    rank: int

    def told(self, folder: str) -> str:
        """Says in a line what was read."""
        layers = {path.rpartition("/")[0] for path in self.values if path.endswith("/lora_a")}
        whole = [path for path in self.values if "/lora_" not in path]
        beside = f", and {some(whole)}" if whole else ""
        return (
            f"{folder}: {len(layers)} adapters of rank {self.rank}, names of {self.naming}{beside}"
        )


def read(
    folder: str | Path,
    lora: Any,
    *,
    model: str,
    options: dict[str, Any],
    shapes: Shapes,
    base: Mapping[str, np.ndarray],
    naming: str = "",
) -> Adapter:
    """Returns the values that an adapter gives to a model of ours.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors (or .bin).
      lora: the section `config.lora`, which must say what the adapter is.
      model, options: of research/models.
      shapes: path -> shape, of all parameters of the adapted model.
      base: path -> array of the base's parameters, for DoRA's magnitudes; while only checking it may lack some.
      naming: whose names to try first, as the base's are known; '' where they aren't.

    Raises:
      UserErrors: a kind that is not covered, a damaged file; arrays that are missing, misshapen or of nothing here;
        settings that differ from config.lora's. A line for each, with what to set.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    found, strangers = read_arrays(folder)
    plain = {path: shape for path, shape in shapes.items() if "/lora_" not in path}
    chosen, there, found = recognised(found, model, options, shapes, naming, folder)
    table = entries(chosen, plain, options)
    lines = strangers + _unfit(found, there, plain, settings, folder)
    if tied(
        plain
    ):  # PEFT's ensure_weight_tying merges into it twice, so what it means is not known
        pieces = there[TIED].pieces if TIED in there else ()
        if adapted := [piece.module for piece in pieces if piece.module in found.factors]:
            lines.append(
                f"{folder}: adapts {adapted[0]} as an embedding only, which here is the output layer too; merge it in "
                "PEFT (merge_and_unload) and name the model as config.pretrained.source"
            )
    whole = _whole(found, table, chosen, plain, base, folder, lines)
    lines += [
        f"{folder}: '{name}' is missing, which is of the modules_to_save of {SETTINGS}"
        for name in _promised(settings, table)
        if name not in found.whole
    ]
    if lines:
        raise UserErrors(_cut(lines, folder))
    blocks = blocks_of(there, found.factors, settings)
    if lines := mismatches(lora, settings, blocks, whole, shapes, base, there, folder):
        raise UserErrors(lines)
    values = {path: array for path, array in whole.items() if _trained(path, lora)}
    for path, block in blocks.items():
        values |= _values(there[path], block, lora, base, folder, lines)
    lines += [
        f"{folder}: NaN or infinity in what is {path} here; save the adapter anew"
        for path, array in values.items()
        if not np.isfinite(array).all()
    ]
    if lines:
        raise UserErrors(_cut(lines, folder))
    return Adapter(values, chosen.name, lora.rank)


def _unfit(
    found: Found, there: dict[str, Layer], shapes: Shapes, settings: dict[str, Any], folder: Path
) -> list[str]:
    """A line for each module that isn't here, lacks a factor, or has one of another shape."""
    lines, modules = [], by_module(there)
    wanted = {"A", "B", "m"} if settings.get("use_dora") else {"A", "B"}
    for module, parts in found.factors.items():
        if module not in modules:
            lines.append(
                f"{folder}: adapts '{module}', which is no layer here that can have an adapter"
            )
        elif parts.keys() != wanted:
            lost = [CALLED[part] for part in sorted(wanted - parts.keys())]
            more = [CALLED[part] for part in sorted(parts.keys() - wanted)]
            word = f"lacks {' and '.join(lost)}" if lost else f"has {' and '.join(more)} too many"
            lines.append(f"{folder}: '{module}' {word}; save the adapter anew")
        else:
            layer = modules[module][0]
            outputs = sum(p.size for o in modules[module] for p in o.pieces if p.module == module)
            rank = rank_of(settings, module)
            expected = shapes_out(layer.kind, shapes[layer.kernel], outputs, rank)
            lines += [
                f"{folder}: {CALLED[part]} of '{module}' is {list(array.shape)}, where {list(expected[part])} was "
                f"expected (rank {rank} of {SETTINGS})"
                for part, array in parts.items()
                if array.shape != expected[part]
            ]
    return lines


def _whole(
    found: Found,
    table: dict[str, Entry],
    naming: Naming,
    shapes: Shapes,
    base: Mapping[str, np.ndarray],
    folder: Path,
    lines: list[str],
) -> Arrays:
    """Parameters that the file holds whole, by path; what doesn't fit is added to the lines."""
    given = found.whole | found.bases
    used, whole = set(), {}
    for path, entry in table.items():
        names = [name for name in entry.theirs if name in given]
        used |= set(names)
        if not names:
            continue
        if len(names) < len(entry.theirs):
            lost = [name for name in entry.theirs if name not in given]
            lines.append(f"{folder}: '{lost[0]}' is missing beside '{names[0]}'")
            continue
        try:
            value = entry.read(given)
        except ValueError:
            value = np.zeros(0)
        if value.shape != shapes[path]:
            expected = list(entry.shape(shapes[path]))
            lines.append(
                f"{folder}: '{names[0]}' is {list(given[names[0]].shape)}, where {expected} was expected ({path})"
            )
            continue
        if names[0] not in found.bases:
            whole[path] = np.asarray(value, np.float32, order="C")
        elif path in base and not np.allclose(value, base[path], rtol=1e-2, atol=1e-2):
            # As wide as bfloat16: a base may be kept in fewer bits.
            lines.append(
                f"{folder}: '{names[0]}' is not the base's {path}; the adapter stands on another model"
            )
    lines += [
        f"{folder}: nothing here takes '{name}'"
        for name in given
        if name not in used and not ignorable(naming, name)
    ]
    return whole


def _promised(settings: dict[str, Any], table: dict[str, Entry]) -> list[str]:
    """Names of the arrays that an adapter should hold whole."""
    modules = [re.escape(module) for module in settings.get("modules_to_save") or ()]
    inside = re.compile(rf"(.*\.)?({'|'.join(modules)})\..*")
    names = [name for entry in table.values() for name in entry.theirs] if modules else []
    return [name for name in names if inside.fullmatch(name)]


def _values(
    layer: Layer, block: Block, lora: Any, base: Mapping[str, np.ndarray], folder: Path, lines: list
) -> Arrays:
    """The leaves of one layer's adapter."""
    norms = np.ones(sum(piece.size for piece in layer.pieces))
    if layer.kernel in base:
        norms = column_norms(base[layer.kernel])
    a, b, m = joined(layer, block, lora.rank, scale(lora), norms)
    values = {f"{layer.path}/lora_a": a, f"{layer.path}/lora_b": b}
    if lora.dora:
        if np.any((norms == 0) & (m != 0)):
            lines.append(
                f"{folder}: {layer.path} has a magnitude for an output whose weights are all zero in the base, which "
                "nothing here can say; merge it in PEFT (merge_and_unload)"
            )
        values[f"{layer.path}/lora_m"] = np.divide(m, norms, out=np.ones_like(m), where=norms != 0)
    return {name: np.asarray(value, np.float32, order="C") for name, value in values.items()}


def _trained(path: str, lora: Any) -> bool:
    return any(re.match(pattern, path) for pattern in lora.train)


def _cut(lines: list[str], folder: Path) -> list[str]:
    return (
        lines if len(lines) <= MOST else [*lines[:MOST], f"{folder}: and {len(lines) - MOST} more"]
    )
