"""adapter_config.json: what of it this project can compute, and what the config must say for it."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from research.errors import UserError, UserErrors
from research.transfer.formats.files import one_line

SETTINGS, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
# Inits that leave the base as it is. With others, PiSSA for one, the adapter stands on a base without the part of W
# that it starts from.
HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Keys that say nothing of what an adapter computes once its arrays are there.
SILENT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
READ = {
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_dora",
    "use_rslora",
}  # fmt: skip
WHY = {
    "alora_invocation_tokens": "switches on at certain tokens only (aLoRA)",
    "arrow_config": "chooses among several adapters (Arrow)",
    "kasa_config": "changes the base (KaSA)",
    "layer_replication": "repeats layers of the base",
    "lora_bias": "has biases in its factors",
    "target_parameters": "adapts parameters that are no layer's kernel",
    "trainable_token_indices": "replaces rows of an embedding",
    "use_bdlora": "has factors in blocks (BD-LoRA)",
    "use_qalora": "pools what enters it (QALoRA)",
}


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns adapter_config.json of an adapter that this project can compute.

    Raises:
      UserErrors: it isn't there or is damaged, or it is of an adapter that is not covered: a line for each reason.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(
            f"config.lora.adapter={folder}: no {SETTINGS} there; name a folder that PEFT's save_pretrained or "
            "--mode=export --format=peft has written"
        )
    try:
        found = json.loads(path.read_text())
        lines = _not_covered(found, path)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is no adapter's settings: {one_line(error)}") from error
    if lines:
        raise UserErrors(lines)
    return found


def scale_of(settings: dict[str, Any], module: str, rank: int) -> float:
    """Returns what PEFT multiplies a module's B A by."""
    alpha = _of_module(settings, "alpha_pattern", module, settings["lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def rank_of(settings: dict[str, Any], module: str) -> int:
    """Returns the rank that PEFT gives a module."""
    return int(_of_module(settings, "rank_pattern", module, settings["r"]))


def settings_of(
    lora: Any,
    *,
    modules: Sequence[str],
    others: Iterable[str],
    ranks: dict[str, int],
    saved: Sequence[str],
    transposed: bool,
    base: str,
    task_type: str,
) -> dict[str, Any]:
    """Returns adapter_config.json for adapters of ours; what it leaves out has PEFT's defaults.

    Args:
      lora: the section `config.lora`.
      modules: that have an adapter.
      others: the model's other modules that could have one.
      ranks: of the modules whose rank is not `lora.rank`.
      saved: modules whose parameters go along as they are.
      transposed: kernels lie inputs first (GPT-2).
      base: the name or the folder of the model that the adapters stand on.
      task_type: 'SEQ_CLS', 'CAUSAL_LM', or '' for neither.
    """
    times = {module: rank / lora.rank for module, rank in ranks.items()}
    if lora.rslora:
        times = {module: math.sqrt(factor) for module, factor in times.items()}
    return {
        "peft_type": "LORA",
        "task_type": task_type or None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": _short(lora.alpha),
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "target_modules": _targets(modules, others),
        "modules_to_save": list(saved) or None,
        "rank_pattern": ranks,
        "alpha_pattern": {m: _short(lora.alpha * factor) for m, factor in times.items()},
    }


def lora_lines(wanted: dict[str, Any]) -> list[str]:
    """Returns the lines of a config that say `config.lora`: {key: value} -> ['config.lora.rank = 8', ...]."""
    return [f"config.lora.{key} = {value!r}" for key, value in wanted.items()]


def _targets(modules: Sequence[str], others: Iterable[str]) -> list[str] | str:
    """A list, or where an entry is also the end of another module's name, which PEFT would take too, a pattern."""
    ends = tuple(f".{module}" for module in modules)
    chosen = set(modules)
    if any(name.endswith(ends) and name not in chosen for name in others):
        return "|".join(map(re.escape, modules))
    return list(modules)


def _of_module(settings: dict[str, Any], key: str, module: str, default: Any) -> Any:
    for pattern, value in (settings.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _not_covered(found: dict[str, Any], path: Path) -> list[str]:
    kind = found.get("peft_type")
    if kind != "LORA":
        return [
            f"{path}: is of kind {kind}; of PEFT's adapters only LORA (rsLoRA, DoRA) is read here"
        ]
    if missing := [key for key in ("r", "lora_alpha") if type(found.get(key)) not in (int, float)]:
        return [f"{path}: must say {' and '.join(missing)}, as numbers"]
    lines = []
    init = found.get("init_lora_weights", True)
    if init not in HARMLESS_INITS:
        lines.append(
            f"{path}: init_lora_weights is {init!r}, which changes the base's own weights; save the adapter by PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...), which makes it one of plain LoRA"
        )
    if found.get("bias", "none") != "none":
        lines.append(
            f"{path}: bias is {found['bias']!r}: biases trained beside adapters are not read; merge it in PEFT "
            "(merge_and_unload) and name the model as config.pretrained.source"
        )
    for key, value in found.items():
        if value and key not in SILENT | READ:
            why = WHY.get(key, "is not known here")
            lines.append(
                f"{path}: {key}={value!r}: {why}; merge it in PEFT (merge_and_unload) instead"
            )
    return lines


def _short(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)
