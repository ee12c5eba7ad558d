"""Adapters of a run of ours as PEFT's."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError, UserErrors
from research.transfer.formats import safetensors
from research.transfer.formats.files import write_bytes
from research.transfer.load import flat
from research.transfer.lora import is_adapter
from research.transfer.peft.pieces import (
    MAGNITUDE,
    NAMES,
    PREFIX,
    TIED,
    Layer,
    by_module,
    column_norms,
    factors_out,
    layers,
    some,
    tied,
)
from research.transfer.peft.settings import ARRAYS, SETTINGS, settings_of
from research.transfer.recognise import named
from research.transfer.tables import Arrays, Entry, Naming, Shapes, entries, natural, written

# PEFT saves these itself with every SEQ_CLS adapter, and reads no adapter that lacks them.
CLASSIFIERS = ("classifier", "score")


def write(
    folder: Path,
    params: Mapping[str, Any],
    lora: Any,
    *,
    model: str,
    options: dict[str, Any],
    naming: str,
    base: str = "",
    task_type: str = "",
    beside: Collection[str] = (),
) -> None:
    """Writes adapter_model.safetensors and adapter_config.json; PeftModel.from_pretrained(base, folder) loads them.

    Args:
      folder: is made if need be.
      params: the tree of the adapted model, on the host: base, adapters, and what was trained as it is.
      lora: the section `config.lora` that it was trained by.
      model, options: of research/models.
      naming: whose names the modules have that PEFT will meet in memory.
      base: the name or the folder of the base, for whoever reads the settings.
      task_type: 'SEQ_CLS', 'CAUSAL_LM', or '' for a model that PEFT knows no task of.
      beside: paths that go along whole too, since the base, as the user has it, lacks their values.

    Raises:
      UserErrors: something trained here can't be said in PEFT's format.
    """
    arrays, settings = adapter_of(
        flat(params),
        lora,
        model=model,
        options=options,
        naming=naming,
        base=base,
        task_type=task_type,
        beside=beside,
    )
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / ARRAYS, arrays, {"format": "pt"})
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    write_bytes(folder / SETTINGS, text.encode())


def problems(
    shapes: Shapes,
    lora: Any,
    *,
    model: str,
    options: dict[str, Any],
    naming: str,
    task_type: str = "",
    beside: Collection[str] = (),
) -> list[str]:
    """Returns why `write` would refuse a model with parameters of these shapes; [] where it would not."""
    try:
        _planned(shapes, lora, named(model, naming), options, task_type, beside)
    except UserErrors as errors:
        return errors.lines
    except UserError as error:
        return [str(error)]
    return []


def adapter_of(
    leaves: Arrays,
    lora: Any,
    *,
    model: str,
    options: dict[str, Any],
    naming: str,
    base: str,
    task_type: str,
    beside: Collection[str] = (),
) -> tuple[Arrays, dict[str, Any]]:
    """Returns what `write` writes: the arrays by PEFT's names, and the settings."""
    leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    plan = _planned(shapes, lora, named(model, naming), options, task_type, beside)
    owners = plan.owners
    arrays: Arrays = {}
    ranks: dict[str, int] = {}
    for module in plan.modules:
        made = _module(owners[module], module, leaves, lora)
        rank = len(made["A"])
        if rank != lora.rank:
            ranks[module] = rank
        kind = owners[module][0].kind
        for factor in "AB":
            arrays[f"{PREFIX}{module}.{NAMES[kind].format(factor)}"] = made[factor]
        if lora.dora:
            arrays[f"{PREFIX}{module}.{MAGNITUDE}"] = made["m"]
    whole = written(plan.whole, {path: leaves[path] for path in plan.whole})
    arrays |= {PREFIX + name: a for name, a in whole.items() if name.startswith(plan.within)}
    settings = settings_of(
        lora,
        modules=plan.modules,
        others=owners,
        ranks=ranks,
        saved=plan.saved,
        transposed=plan.transposed,
        base=base,
        task_type=task_type,
    )
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, settings


class _Plan(NamedTuple):
    """What goes where, known from shapes alone."""

    owners: dict[str, list[Layer]]  # module of theirs -> layers of ours
    modules: list[str]  # that have an adapter
    transposed: bool
    saved: list[str]  # modules that go along whole
    whole: dict[str, Entry]  # path of ours -> its place in them

    @property
    def within(self) -> tuple[str, ...]:
        return tuple(f"{module}." for module in self.saved)


def _planned(
    shapes: Shapes,
    lora: Any,
    chosen: Naming,
    options: dict[str, Any],
    task_type: str,
    beside: Collection[str],
) -> _Plan:
    there = layers(chosen, shapes, options)
    adapted = sorted(
        (p.removesuffix("/lora_a") for p in shapes if p.endswith("/lora_a")), key=natural
    )
    if not adapted:
        raise UserError(
            "--format=peft: the run has no adapters (config.lora.rank=0); use another format"
        )
    lines = [
        f"config.lora.layers: PEFT has no adapter of {path}'s kind, or {chosen.name} no name for it; export merged "
        "weights (--format=safetensors), or train without it"
        for path in adapted
        if path not in there
    ]
    if tied(shapes) and TIED in adapted:
        lines.append(
            "config.lora.layers: the embedding is the output layer too, and PEFT adapts only the one use of it; export "
            "merged weights, or train with layers that leave it out"
        )
    if lines:
        raise UserErrors(lines)
    owners = by_module(there)
    modules = sorted({piece.module for p in adapted for piece in there[p].pieces}, key=natural)
    saved, whole = _saved(shapes, lora, chosen, options, modules, task_type, beside)
    transposed = any(there[p].transposed for p in adapted)
    return _Plan(owners, modules, transposed, saved, whole)


def _module(owners: list[Layer], module: str, leaves: Arrays, lora: Any) -> dict[str, np.ndarray]:
    """lora_A, lora_B and with DoRA the magnitudes of one of their modules."""
    kind, rank = owners[0].kind, lora.rank
    a_parts, b_parts, magnitudes = [], [], []
    for number, layer in enumerate(owners):
        column = 0
        for piece in layer.pieces:
            outputs = slice(column, column + piece.size)
            column += piece.size
            if piece.module != module:
                continue
            kernel = leaves[layer.kernel]
            a = leaves.get(f"{layer.path}/lora_a")
            block = np.zeros((rank * len(owners), piece.size), np.float32)
            if a is None:  # its neighbours in the module have one
                a = np.zeros((*kernel.shape[:-1], rank), np.float32)
            else:
                b = leaves[f"{layer.path}/lora_b"]
                block[number * rank : (number + 1) * rank] = b[:, outputs]
            a_parts.append(a)
            b_parts.append(block)
            if lora.dora:
                m = leaves.get(f"{layer.path}/lora_m", np.ones(kernel.shape[-1], np.float32))
                magnitudes.append((m * column_norms(kernel))[outputs])
    out = dict(
        zip(
            "AB",
            factors_out(kind, np.concatenate(a_parts, -1), np.concatenate(b_parts, -1)),
            strict=True,
        )
    )
    if lora.dora:
        m = np.concatenate(magnitudes).astype(np.float32)
        out["m"] = m[None, :, None, None] if kind == "Conv" else m
    return out


def _saved(
    shapes: Shapes,
    lora: Any,
    naming: Naming,
    options: dict[str, Any],
    adapted: list[str],
    task_type: str,
    beside: Collection[str],
) -> tuple[list[str], dict[str, Entry]]:
    """modules_to_save, and where their arrays are: whole modules, so beside what was trained what the base has."""
    plain = {path: shape for path, shape in shapes.items() if not is_adapter(path)}
    table = entries(naming, plain, options)
    trained = [p for p in plain if any(re.match(pattern, p) for pattern in lora.train)]
    wanted = [path for path in plain if path in beside or path in trained]
    lines = []
    for key, paths in (("lora.train", trained), ("pretrained.rules", set(wanted) - set(trained))):
        if lost := [path for path in paths if path not in table]:
            lines.append(
                f"config.{key}: {some(lost)} has no name in the naming {naming.name} ({naming.what}); "
                "name another, --format=peft:NAMING"
            )
        if bare := [p for p in paths if p in table and "." not in table[p].theirs[0]]:
            lines.append(
                f"config.{key}: '{bare[0]}' belongs to no layer, and PEFT saves layers; export merged weights "
                "(--format=safetensors), or train without it"
            )
    found = [name for path in wanted if path in table for name in table[path].theirs]
    modules = {name.rpartition(".")[0] for name in found} - {""}
    theirs = [name for entry in table.values() for name in entry.theirs]
    if task_type == "SEQ_CLS":
        for classifier in CLASSIFIERS:
            inside = f"{classifier}."
            if any(name.startswith(inside) for name in theirs):
                modules = {m for m in modules if not m.startswith(inside)} | {classifier}
    saved = sorted(_taken(modules, theirs), key=natural)
    within = tuple(f"{module}." for module in saved)
    if both := [m for m in adapted if f"{m}.".startswith(within)]:
        lines.append(
            f"config.lora.layers: PEFT saves {some(both)} whole, where there is an adapter here; leave it out of the "
            "layers, or add it to config.lora.train"
        )
    if tied(plain) and f"{TIED}/embedding" in wanted:
        lines.append(
            "config.lora.train: the embedding is the output layer too, which PEFT would leave as it was; export merged "
            "weights (--format=safetensors)"
        )
    if lines:
        raise UserErrors(lines)
    return saved, {p: e for p, e in table.items() if any(n.startswith(within) for n in e.theirs)}


def _taken(modules: set[str], theirs: list[str]) -> set[str]:
    """The modules that PEFT saves where it is told these: all whose names end so, be it within a word."""
    parts = [name.split(".") for name in theirs]
    there = {".".join(words[:count]) for words in parts for count in range(1, len(words))}
    return {m for m in there if (PREFIX + m).endswith(tuple(modules))}
