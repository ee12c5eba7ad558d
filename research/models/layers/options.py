"""What a transformer may be: its blocks' options, and which of them go together."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from research.ops.activations import gelu
from research.ops.rotary import frequencies

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
    "relu": nn.relu,
}
POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}  # remat -> what is kept for the gradient
CHOICES = {
    "head": ("classify", "lm", "mlm"),
    "norm": ("layer", "rms"),
    "position": ("learned", "rotary", "none"),
    "activation": tuple(ACTIVATIONS),
    "pool": ("first", "mean", "last"),
    "pooler": ("", "tanh", "relu"),
    "remat": ("none", *POLICIES),
}


@dataclass(frozen=True)
class Options:
    """What a block is; the model's options of the same names, zeros filled in."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    causal: bool
    prenorm: bool
    norm: str
    norm_epsilon: float
    norm_offset: bool
    norm_after: bool
    qk_norm: bool
    activation: str
    gated: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    attention_scale: float
    attention_softcap: float
    dropout: float
    attention_dropout: float
    attention_block: int
    dtype: Any


def of(model: Any) -> Options:
    """The options of a model's blocks."""
    width = model.head_width or model.width // model.heads
    given = {
        "kv_heads": model.kv_heads or model.heads,
        "head_width": width,
        "hidden": model.hidden or 4 * model.width,
        "attention_scale": model.attention_scale or width**-0.5,
    }
    return Options(**{f.name: given.get(f.name, getattr(model, f.name)) for f in fields(Options)})


def windowed(model: Any, i: int) -> bool:
    """Whether block i sees through the window only."""
    return bool(model.window) and not (model.global_every and (i + 1) % model.global_every == 0)


def normal(o: Options | None = None) -> Callable:
    """Deviation 0.02, as BERT and GPT-2; over sqrt(2 depth) where a residual branch ends (GPT-2, section 2.3)."""
    return nn.initializers.normal(0.02 if o is None else 0.02 / (2 * o.depth) ** 0.5)


def check(model: Any, length: int, *, cached: bool) -> None:
    """Refuses options that cannot be.

    Args:
      model: `research.models.transformer.Model`.
      length: the tokens of a row; 0 where there is a cache, whose slots are more than the positions in it.
      cached: whether there is a cache.

    Raises:
      ValueError: one line for the first mistake.
    """
    for key, choices in CHOICES.items():
        if (value := getattr(model, key)) not in choices:
            raise ValueError(
                f"config.model.{key}={value!r} is none of {', '.join(map(repr, choices))}"
            )
    if not model.head_width and model.width % model.heads:
        raise ValueError(
            f"config.model.width={model.width} does not divide by config.model.heads={model.heads}; "
            "set config.model.head_width, or another number of heads"
        )
    if model.kv_heads and model.heads % model.kv_heads:
        raise ValueError(
            f"config.model.heads={model.heads} does not divide by config.model.kv_heads={model.kv_heads}: "
            "each head of keys and values serves the same number of query heads"
        )
    if model.position == "rotary":
        frequencies(of(model).head_width, model.rotary_base, model.rotary_scaling)
    if model.position == "learned" and length + model.position_offset > model.context:
        offset = f", the first {model.position_offset} unused" * bool(model.position_offset)
        raise ValueError(
            f"{length} tokens do not fit the table of positions, config.model.context={model.context} rows{offset}; "
            "shorten the rows, or give the table more"
        )
    if model.global_every and not model.window:
        raise ValueError(
            f"config.model.global_every={model.global_every} says which blocks have no "
            "window, but config.model.window=0"
        )
    if model.head == "lm" and not model.causal:
        raise ValueError(
            "config.model.causal=False: each token would be foretold from itself; set it to True, or "
            "config.task.objective='masked'"
        )
    if model.head == "mlm" and model.causal:
        raise ValueError(
            "config.model.causal=True: a hidden token would not be foretold from those after it; set it to False, or "
            "config.task.objective='causal'"
        )
    if model.attention_block < 0:
        raise ValueError(f"config.model.attention_block={model.attention_block} must be at least 0")
    if model.attention_block and model.attention_dropout:
        raise ValueError(
            f"config.model.attention_block={model.attention_block}: weights that are made twice, tile by tile, "
            f"are not dropped; set config.model.attention_dropout={model.attention_dropout} to 0, or "
            "config.model.attention_block"
        )
    if cached and model.head != "lm":
        raise ValueError(f"a cache is for causal language models; this is head {model.head!r}")
