"""What config.lora must say for an adapter, and how it differs."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.transfer.peft.blocks import Block
from research.transfer.peft.pieces import Layer, some
from research.transfer.peft.settings import lora_lines
from research.transfer.tables import Arrays, Shapes, natural


def mismatches(
    lora: Any,
    settings: dict[str, Any],
    blocks: dict[str, Block],
    whole: Arrays,
    shapes: Shapes,
    base: Mapping[str, np.ndarray],
    there: dict[str, Layer],
    folder: Path,
) -> list[str]:
    """Returns a line for each key of config.lora that isn't the adapter's, and one that says all of them.

    Args:
      blocks: what the adapter gives, by layer.
      whole: parameters that it holds whole, by path.
      shapes: of all parameters of the adapted model.
      base: of the base's parameters, as far as they are known.
      there: layers that could have an adapter.
    """
    wanted = wanted_section(lora, settings, blocks, whole, shapes, base, there)
    here = {key: lora[key] for key in wanted}
    here["alpha"] = wanted["alpha"] if math.isclose(lora.alpha, wanted["alpha"]) else lora.alpha
    adapted = {path.removesuffix("/lora_a") for path in shapes if path.endswith("/lora_a")}
    lines = [
        f"config.lora.{key}={here[key]!r}: the adapter in {folder} needs {value!r}; set --config.lora.{key}={value!r}"
        for key, value in wanted.items()
        if key not in ("layers", "train") and here[key] != value
    ]
    if lora.rank and adapted != blocks.keys():
        more, less = sorted(adapted - blocks.keys()), sorted(blocks.keys() - adapted)
        words = [f"it has none for {some(more)}"] if more else []
        words += [f"it has one for {some(less)}"] if less else []
        lines.append(
            f"config.lora.layers: does not choose the layers of the adapter in {folder}: {' and '.join(words)}; set "
            f'--config.lora.layers="{wanted["layers"]!r}"'
        )
    if wanted["train"] != tuple(lora.train):
        held = [path for path in whole if not any(re.match(p, path) for p in lora.train)]
        lines.append(
            f"config.lora.train: the adapter in {folder} holds {some(held)} too; set "
            f'--config.lora.train="{wanted["train"]!r}"'
        )
    if len(lines) > 1 or (lines and not lora.rank):
        lines.append(f"{folder}: all that it needs: {'; '.join(lora_lines(wanted))}")
    return lines


def wanted_section(
    lora: Any,
    settings: dict[str, Any],
    blocks: dict[str, Block],
    whole: Arrays,
    shapes: Shapes,
    base: Mapping[str, np.ndarray],
    there: dict[str, Layer],
) -> dict[str, Any]:
    """Returns the keys of config.lora that decide what an adapter computes; see `mismatches`."""
    rank = max(block.rank for block in blocks.values())
    rslora = bool(settings.get("use_rslora"))
    alpha = next(iter(blocks.values())).parts[0].scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha, 6)  # the root's own rounding is no part of what a user sets
    return {
        "rank": rank,
        "alpha": near if math.isclose(near, alpha, rel_tol=1e-12) else alpha,
        "rslora": rslora,
        "dora": bool(settings.get("use_dora")),
        "layers": _patterns(blocks, there),
        "train": _train(lora, whole, base),
    }


def _train(lora: Any, whole: Arrays, base: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """config.lora.train, and what it lacks of the parameters that the adapter changes."""
    lost = [
        path
        for path, array in whole.items()
        if not any(re.match(pattern, path) for pattern in lora.train)
        and not (path in base and np.array_equal(base[path], array))
    ]
    modules = sorted({path.rpartition("/")[0] for path in lost}, key=natural)
    return (*lora.train, *(f"^{re.escape(module)}/" for module in modules))


def _patterns(blocks: dict[str, Block], there: dict[str, Layer]) -> tuple[str, ...]:
    """Patterns that choose just these layers: one for all blocks where all blocks have it."""
    patterns: dict[str, None] = {}
    for layer in sorted(blocks, key=natural):
        general = re.sub(r"\d+", r"\\d+", re.escape(layer)) + "$"
        alike = {path for path in there if re.match(general, path)}
        patterns[
            general if len(alike) > 1 and alike <= blocks.keys() else f"{re.escape(layer)}$"
        ] = None
    return tuple(patterns)
