"""Rotary positions and windows in a config.json, in the words of transformers 4 and 5.

    4: "rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_local_base_freq": 10000.0
    5: "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, or one such object for each type of layer

What is written says both; transformers 4 looks at the first only.
"""

from typing import Any

from research.transfer.hf.options import Uncovered

FULL, SLIDING = "full_attention", "sliding_attention"
Scaling = tuple[Any, ...]


def read(config: dict[str, Any], *, base: float, local_base: float = 0.0) -> dict[str, Any]:
    """Returns the options rotary_base, rotary_scaling and rotary_local_base.

    Args:
      base: of a config that doesn't say.
      local_base: the same, of layers with a window; 0: they have none of their own.

    Raises:
      Uncovered: a kind of scaling, or different kinds by layer, that the model does not have.
    """
    old, new = (config.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    given = old or new
    if local_base and old and (new.get(FULL) or new.get(SLIDING)):
        # Of Gemma 3, whose layers differ, the older word stands for one kind of them.
        given = {**new, FULL: {**(new.get(FULL) or {}), **old}}
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    base = config.get("rope_theta") or base
    local_base = local_base and (config.get("rope_local_base_freq") or local_base)
    sliding: dict[str, Any] = {}
    if isinstance(given.get(FULL), dict) or isinstance(given.get(SLIDING), dict):
        sliding, given = given.get(SLIDING) or {}, given.get(FULL) or {}
        if not local_base and sliding and sliding != given:
            raise Uncovered(f"{key}: {SLIDING!r} differs from {FULL!r}")
    if local_base and _kind(sliding) != "default":
        raise Uncovered(f"{key}: rope_type={_kind(sliding)!r} of {SLIDING!r}")
    return {
        "rotary_base": float(given.get("rope_theta") or base),
        "rotary_scaling": _scaling(
            {"original_max_position_embeddings": config.get("max_position_embeddings"), **given},
            key,
        ),
        "rotary_local_base": float(sliding.get("rope_theta") or local_base) if local_base else 0.0,
    }


def write(options: dict[str, Any], *, by_layer: bool = False) -> dict[str, Any]:
    """Returns the keys of config.json; `by_layer` as Gemma 3 has them."""
    base, scaling = options["rotary_base"], options["rotary_scaling"]
    parameters = _parameters(scaling)
    old: dict[str, Any] = {"rope_theta": base, "rope_scaling": parameters if scaling else None}
    full = {"rope_theta": base, **parameters}
    if not by_layer:
        return {**old, "rope_parameters": full}
    local = options["rotary_local_base"] or base
    sliding = {"rope_theta": local, "rope_type": "default"}
    return {**old, "rope_local_base_freq": local, "rope_parameters": {FULL: full, SLIDING: sliding}}


def windows(
    config: dict[str, Any], depth: int, *, default: list[str] | None = None
) -> dict[str, Any]:
    """Returns the options window and global_every, from layer_types (or the default) and sliding_window.

    Raises:
      Uncovered: the layers without a window do not come every so many.
    """
    window = config.get("sliding_window") or 0
    types = list(config.get("layer_types") or default or [FULL] * depth)
    if not window or SLIDING not in types:
        return {"window": 0, "global_every": 0}
    every = types.index(FULL) + 1 if FULL in types else 0
    if types != layer_types(depth, window, every):
        raise Uncovered(f"layer_types={types!r}, where layers of one kind come at no even distance")
    return {"window": int(window), "global_every": every}


def layer_types(depth: int, window: int, every: int) -> list[str]:
    """Returns transformers' word for each layer."""
    return [
        SLIDING if window and not (every and (i + 1) % every == 0) else FULL for i in range(depth)
    ]


def _kind(given: dict[str, Any]) -> str:
    return given.get("rope_type") or given.get("type") or "default"


def _scaling(given: dict[str, Any], key: str) -> Scaling:
    kind = _kind(given)
    if (part := given.get("partial_rotary_factor", 1.0)) not in (1, None):
        raise Uncovered(f"{key}: partial_rotary_factor={part!r}")
    if kind == "default":
        return ()
    try:
        if kind == "linear":
            return kind, float(given["factor"])
        if kind == "llama3":
            return (
                kind,
                float(given["factor"]),
                float(given["low_freq_factor"]),
                float(given["high_freq_factor"]),
                int(given["original_max_position_embeddings"]),
            )
    except KeyError as error:
        raise Uncovered(f"{key} of rope_type {kind!r} lacks {error}") from error
    raise Uncovered(f"{key}: rope_type={kind!r} (known: default, linear, llama3)")


def _parameters(scaling: Scaling) -> dict[str, Any]:
    if not scaling:
        return {"rope_type": "default"}
    kind, factor, *rest = scaling
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": kind, "factor": factor, **dict(zip(names, rest, strict=False))}
