"""Llama, Mistral, Qwen2, Qwen3, Gemma 2 and 3: the config.json of each, in both directions."""

from typing import Any

from research.transfer.hf import rotary
from research.transfer.hf.options import (
    REQUIRED,
    Config,
    ModelType,
    Options,
    Uncovered,
    divides,
)

DECODER: Options = {
    "norm": "rms",
    "position": "rotary",
    "gated": True,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "pool": "last",
    "pooler": "",
    "head_bias": False,
}
GEMMA: Options = {"norm_offset": True, "norm_after": True, "embed_scale": True}


def _type(name: str, naming: str, cased: str, **more: Any) -> ModelType:
    """`cased` is what architectures begin with; of a language model's head, without 'Text'."""
    gemma = name.startswith("gemma")
    return ModelType(
        name,
        naming,
        {
            "classify": f"{cased}ForSequenceClassification",
            "lm": f"{cased.removesuffix('Text')}ForCausalLM",
            "": f"{cased}Model",
        },
        {
            "width": ("hidden_size", REQUIRED),
            "depth": ("num_hidden_layers", REQUIRED),
            "heads": ("num_attention_heads", REQUIRED),
            "hidden": ("intermediate_size", REQUIRED),
            "context": ("max_position_embeddings", REQUIRED),
            "norm_epsilon": ("rms_norm_eps", 1e-6),
            "attention_dropout": ("attention_dropout", 0.0),
            "tied": ("tie_word_embeddings", gemma),
        },
        ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu"),
        **more,
    )


def _heads(config: Config, kv_heads: int = 0, head_width: int = 0) -> Options:
    """The arguments are transformers' values where the keys are absent; 0 is what follows from the others."""
    return {
        "kv_heads": config.get("num_key_value_heads", kv_heads) or 0,
        "head_width": config.get("head_dim", head_width) or 0,
    }


def _write_heads(options: Options) -> Config:
    return {"num_key_value_heads": options["kv_heads"], "head_dim": options["head_width"]}


def _biases(config: Config) -> Options:
    bias = bool(config.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias}


def _read_llama(config: Config) -> Options:
    return {
        **_heads(config),
        **_biases(config),
        "mlp_bias": bool(config.get("mlp_bias", False)),
        **rotary.read(config, base=10000.0),
    }


def _write_llama(options: Options) -> Config:
    return {
        **_write_heads(options),
        "attention_bias": options["qkv_bias"],
        "mlp_bias": options["mlp_bias"],
        **rotary.write(options),
    }


def _read_mistral(config: Config) -> Options:
    depth = config["num_hidden_layers"]
    given = {"sliding_window": config.get("sliding_window", 4096)}
    return {
        **_heads(config, 8),
        **rotary.read(config, base=10000.0),
        **rotary.windows(given, depth, default=[rotary.SLIDING] * depth),
    }


def _write_mistral(options: Options) -> Config:
    window = options["window"] or None
    return {**_write_heads(options), **rotary.write(options), "sliding_window": window}


def _read_qwen(config: Config, head_width: int = 0) -> Options:
    depth, start = config["num_hidden_layers"], config.get("max_window_layers", 28)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else 0
    types = [rotary.FULL if i < start else rotary.SLIDING for i in range(depth)]
    return {
        **_heads(config, 32, head_width),
        **rotary.read(config, base=10000.0),
        **rotary.windows({**config, "sliding_window": window}, depth, default=types),
    }


def _write_qwen(options: Options) -> Config:
    window, depth = options["window"], options["depth"]
    return {
        **_write_heads(options),
        **rotary.write(options),
        "use_sliding_window": bool(window),
        "sliding_window": window or None,
        "max_window_layers": 0 if window else depth,
        "layer_types": rotary.layer_types(depth, window, options["global_every"]),
    }


def _read_gemma(config: Config) -> Options:
    """What Gemma 2 and 3 share, but for the values of absent keys."""
    heads = _heads(config, 4, 256)
    scale = config.get("query_pre_attn_scalar", 256)
    return {
        **heads,
        **_biases(config),
        "attention_scale": float(scale) ** -0.5,
        "attention_softcap": float(config.get("attn_logit_softcapping") or 0.0),
        "logit_softcap": float(config.get("final_logit_softcapping") or 0.0),
    }


def _write_gemma(options: Options) -> Config:
    scale, window, every = (options[k] for k in ("attention_scale", "window", "global_every"))
    return {
        **_write_heads(options),
        "attention_bias": options["qkv_bias"],
        "sliding_window": window or 4096,  # of no layer, where there is none
        "layer_types": rotary.layer_types(options["depth"], window, every),
        "query_pre_attn_scalar": round(scale**-2) if scale else options["head_width"],
        "attn_logit_softcapping": options["attention_softcap"] or None,
        "final_logit_softcapping": options["logit_softcap"] or None,
    }


def _gemma_windows(config: Config, every: int) -> Options:
    depth = config["num_hidden_layers"]
    given = {**config, "sliding_window": config.get("sliding_window", 4096)}
    return rotary.windows(given, depth, default=rotary.layer_types(depth, 1, every))


def _read_gemma2(config: Config) -> Options:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return {
        **_read_gemma({**caps, **config}),
        **rotary.read(config, base=10000.0),
        **_gemma_windows(config, 2),
    }


def _read_gemma3(config: Config) -> Options:
    if cap := config.get("attn_logit_softcapping"):
        raise Uncovered(f"attn_logit_softcapping={cap!r}, which transformers leaves out as well")
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return {
        **_read_gemma(config),
        **rotary.read(config, base=1e6, local_base=10000.0),
        **_gemma_windows(config, every),
    }


def _write_gemma3(options: Options) -> Config:
    every = options["global_every"]
    return {
        **_write_gemma(options),
        **rotary.write(options, by_layer=True),
        **({"sliding_window_pattern": every} if every else {}),
    }


def _check_gemma3(options: Options, head: str) -> list[str]:
    cap = options["attention_softcap"]
    return divides(options, head) + ([f"config.model.attention_softcap={cap}"] if cap else [])


TYPES = (
    _type(
        "llama",
        "llama",
        "Llama",
        fixed=DECODER,
        read=_read_llama,
        write=_write_llama,
        check=divides,
    ),
    _type("mistral", "llama", "Mistral", fixed=DECODER, read=_read_mistral, write=_write_mistral),
    _type(
        "qwen2",
        "llama",
        "Qwen2",
        fixed={**DECODER, "qkv_bias": True},
        read=_read_qwen,
        write=_write_qwen,
    ),
    _type(
        "qwen3",
        "qwen3",
        "Qwen3",
        fixed={**DECODER, "qk_norm": True},
        read=lambda config: {**_read_qwen(config, 128), **_biases(config)},
        write=lambda options: {**_write_qwen(options), "attention_bias": options["qkv_bias"]},
    ),
    _type(
        "gemma2",
        "gemma2",
        "Gemma2",
        fixed={**DECODER, **GEMMA},
        read=_read_gemma2,
        write=lambda options: {**_write_gemma(options), **rotary.write(options)},
        check=divides,
    ),
    _type(
        "gemma3_text",
        "gemma3",
        "Gemma3Text",
        fixed={**DECODER, **GEMMA, "qk_norm": True},
        read=_read_gemma3,
        write=_write_gemma3,
        check=_check_gemma3,
    ),
)
