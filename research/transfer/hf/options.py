"""What model `transformer` can be, and how a model_type of Hugging Face says it."""

from collections.abc import Callable
from typing import Any, NamedTuple

Options = dict[str, Any]
Config = dict[str, Any]
# Of research/models/transformer.py. How it is computed (scan, remat, attention_block) is not among them.
DEFAULTS: Options = {
    "width": 256,
    "depth": 6,
    "heads": 8,
    "kv_heads": 0,
    "head_width": 0,
    "hidden": 0,
    "context": 256,
    "causal": True,
    "prenorm": True,
    "norm": "layer",
    "norm_epsilon": 1e-5,
    "norm_offset": False,
    "norm_after": False,
    "final_norm": True,
    "embed_norm": False,
    "qk_norm": False,
    "position": "learned",
    "position_offset": 0,
    "rotary_base": 10000.0,
    "rotary_local_base": 0.0,
    "rotary_scaling": (),
    "types": 0,
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tied": True,
    "embed_scale": False,
    "window": 0,
    "global_every": 0,
    "attention_scale": 0.0,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pool": "mean",
    "pooler": "",
    "head_bias": True,
}
OF_TRAINING = ("dropout", "attention_dropout")  # a trained network computes the same without
OF_CLASSES = ("pool", "pooler", "head_bias")  # nothing else looks at them
REQUIRED = object()


class Uncovered(Exception):
    """What a config asks for and the model does not have: 'key=value', and more words where they help."""


class ModelType(NamedTuple):
    """One of Hugging Face's model_types, to be read and written."""

    name: str
    naming: str  # of research/transfer/families/transformer.py
    heads: dict[str, str]  # the task's head -> the architecture; '' is none
    keys: dict[str, tuple[str, Any]]  # option -> (key, its value where the key is absent)
    activation: tuple[str, str]  # (key, its value where the key is absent)
    fixed: Options  # what every model of this type has and no key says
    read: Callable[[Config], Options]  # what several keys say together
    write: Callable[[Options], Config]  # the inverse
    check: Callable[[Options, str], list[str]] = lambda options, head: []  # what can't be, by head


def complete(options: Options) -> Options:
    """Returns all options but those of computation: sizes in numbers, and what has no effect as the default has it.

    So two models that compute the same have the same options.
    """
    full = {**DEFAULTS, **{key: value for key, value in options.items() if key in DEFAULTS}}
    width, heads = full["width"], full["heads"]
    full["kv_heads"] = full["kv_heads"] or heads
    full["head_width"] = full["head_width"] or width // max(heads, 1)
    full["hidden"] = full["hidden"] or 4 * width
    full["rotary_scaling"] = tuple(full["rotary_scaling"])
    if full["position"] != "rotary":
        _forget(full, "rotary_base", "rotary_local_base", "rotary_scaling")
    if full["position"] != "learned":
        _forget(full, "position_offset")
    if not full["window"]:
        _forget(full, "global_every", "rotary_local_base")
    if full["rotary_local_base"] == full["rotary_base"] and not full["rotary_scaling"]:
        _forget(full, "rotary_local_base")
    if full["attention_scale"] == full["head_width"] ** -0.5:
        _forget(full, "attention_scale")
    return full


def divides(options: Options, head: str) -> list[str]:
    """A check: transformers wants the width to divide by the heads, whatever a head's width is."""
    width, heads = options["width"], options["heads"]
    return [f"config.model.width={width} that {heads} heads don't divide"] if width % heads else []


def _forget(options: Options, *names: str) -> None:
    options.update({name: DEFAULTS[name] for name in names})
