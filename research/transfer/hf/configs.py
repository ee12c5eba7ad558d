"""A config.json of Hugging Face as the options of model `transformer`, and back.

    options = to_model(json.loads(path.read_text()))  # {'name': 'transformer', 'width': 768, ...}
    config = from_model(options, head="classify", vocab_size=30522, class_names=("bad", "good"))

`to_model(from_model(x)) == x` for what `to_model` returns. A config that asks for what the model lacks is refused; so
are options that no model_type can say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError
from research.transfer.hf import classic, modern
from research.transfer.hf.folder import config_of, folder_of
from research.transfer.hf.options import (
    DEFAULTS,
    OF_CLASSES,
    OF_TRAINING,
    REQUIRED,
    Config,
    ModelType,
    Options,
    Uncovered,
    complete,
)

# In the order in which one is looked for that expresses a model.
TYPES = {kind.name: kind for kind in (*modern.TYPES, *classic.TYPES)}
# Endings of architectures -> the task's head.
HEADS = {
    "ForSequenceClassification": "classify",
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForMaskedLM": "mlm",
    "ForPreTraining": "mlm",
}
# What the model does not have, with the value by which a config says that it hasn't either.
REFUSED: Config = {
    "add_cross_attention": False,
    "alibi": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "num_experts": 0,
    "num_local_experts": 0,
    "partial_rotary_factor": 1.0,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "quantization_config": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_bidirectional_attention": False,
    "vision_config": None,
}
# transformers' words -> ours, and ours -> theirs; GPT-2's and Gemma's are two words for one.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
WORDS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu", "relu": "relu"}


class About(NamedTuple):
    """What a Hugging Face folder is."""

    folder: Path
    model_type: str
    naming: str  # config.pretrained.naming that its arrays have
    head: str  # 'classify', 'lm', 'mlm'; '' where it has none of these
    vocab_size: int
    class_names: tuple[str, ...]  # () where it has no classes


def about(source: str) -> About:
    """Returns what a source ('hf:FOLDER', 'package:NAME' ...) is.

    Raises:
      UserError: there is none, or it is none that model `transformer` covers.
    """
    config = config_of(source)
    kind = _type_of(config, source)
    head = head_of(config)
    size = config.get("vocab_size")
    if type(size) is not int or size < 1:
        raise UserError(
            f"{source}: vocab_size of config.json must be a positive integer, not {size!r}"
        )
    names = _class_names(config) if head == "classify" else ()
    return About(folder_of(source), kind.name, kind.naming, head, size, names)


def order_problem(source: str, class_names: Sequence[str]) -> str:
    """Returns what is wrong if a source has these classes in another order, by which its head would be misread.

    '' where the order is the same, the names are others, or the source says none.
    """
    try:
        config = config_of(source)
        labels = config.get("id2label")
        theirs = _class_names(config) if isinstance(labels, dict) else ()
    except (UserError, ValueError):  # a file of arrays alone, say
        return ""
    folded, wanted = ([name.casefold() for name in names] for names in (theirs, class_names))
    if folded == wanted or sorted(folded) != sorted(wanted):
        return ""
    return (
        f"{source}: its head has the classes {_listed(theirs)}, the data has {_listed(class_names)}: the same in "
        "another order; add the rule (r'^head/', 'skip') to config.pretrained.rules"
    )


def model_of(source: str) -> Options:
    """Returns config.model for a source: its config.json as `to_model` reads it.

    Raises:
      UserError: there is none, or the model does not cover it.
    """
    return to_model(config_of(source), where=source)


def head_of(config: Config) -> str:
    """Returns the head that `architectures` names: 'classify', 'lm', 'mlm', or '' for none of these."""
    for architecture in config.get("architectures") or ():
        for ending, head in HEADS.items():
            if str(architecture).endswith(ending):
                return head
    return ""


def to_model(config: Config, *, where: str = "config.json") -> Options:
    """Returns {'name': 'transformer', **options}, all options but those of computation.

    Dropout is what the config says of the residual branches and of attention; a classifier's own is not read.

    Args:
      config: of config.json, as transformers 4 or 5 wrote it.
      where: what messages begin with.

    Raises:
      UserError: a model_type that isn't covered, a missing key or a feature that the model does not have.
    """
    kind = _type_of(config, where)
    try:
        _refuse(config)
        options = _read(kind, config)
        if wrong := kind.check(options, head_of(config)):
            raise Uncovered(", ".join(wrong))
    except Uncovered as error:
        raise UserError(
            f"{where}: model_type {kind.name!r} with {error}: model transformer has no such thing; take another "
            "checkpoint"
        ) from error
    return {"name": "transformer", **options}


def from_model(
    options: Options,
    *,
    head: str,
    vocab_size: int,
    class_names: tuple[str, ...] = (),
    model_type: str = "",
    pad: int | None = None,
    bos: int | None = None,
    eos: int | Sequence[int] | None = None,
) -> Config:
    """Returns a config.json that transformers 4 and 5 read.

    Args:
      options: config.model, whole or in part.
      head: 'classify', 'lm', 'mlm', or '' for none.
      vocab_size: rows of the embedding.
      class_names: of head 'classify'.
      model_type: the one to write; '' takes the first that expresses the options exactly.
      pad, bos, eos: ids of the tokenizer's tokens; several of them may end a text.

    Raises:
      UserError: no such model_type, or none expresses the options; the line names those in the way.
    """
    if model_type and model_type not in TYPES:
        raise UserError(_unknown(model_type, "--format=hf"))
    kinds = [TYPES[model_type]] if model_type else list(TYPES.values())
    wanted = complete(options)
    misses = {kind.name: _misses(kind, wanted, head, pad) for kind in kinds}
    name = min(misses, key=lambda key: len(misses[key]))
    if misses[name]:
        nearest = f"model_type {name}" if model_type else f"the nearest, {name},"
        raise UserError(
            f"--format=hf: transformers has no model with these options; {nearest} differs in "
            f"{', '.join(misses[name])}; change them, or use --format=safetensors"
        )
    return {
        "architectures": [TYPES[name].heads[head]],
        "model_type": name,
        "vocab_size": vocab_size,
        **_write(TYPES[name], wanted),
        **({} if pad is None and name == "roberta" else {"pad_token_id": pad}),
        "bos_token_id": bos,
        "eos_token_id": _one_or_all(eos),
        **(_classes(class_names) if head == "classify" else {}),
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _one_or_all(ids: int | Sequence[int] | None) -> int | list[int] | None:
    if ids is None or isinstance(ids, int):
        return ids
    return ids[0] if len(ids) == 1 else list(ids) or None


def _type_of(config: Config, where: str) -> ModelType:
    name = config.get("model_type")
    if name not in TYPES:
        raise UserError(_unknown(name, where))
    return TYPES[name]


def _unknown(name: Any, where: str) -> str:
    what = f"model_type {name!r} is not covered" if name else "says no model_type"
    if name == "gemma3":
        what += " (its text alone is, gemma3_text)"
    return f"{where}: {what}; covered are {', '.join(sorted(TYPES))} (MiniLM is a bert)"


def _refuse(config: Config) -> None:
    for key, fine in REFUSED.items():
        if (value := config.get(key)) is not None and value != fine:
            raise Uncovered(f"{key}={value!r}" if key != "quantization_config" else key)


def _read(kind: ModelType, config: Config) -> Options:
    options: Options = dict(kind.fixed)
    for option, (key, absent) in kind.keys.items():
        value = config.get(key, absent)
        value = absent if value is None else value
        if value is REQUIRED:
            raise Uncovered(f"no {key}")
        options[option] = _number(value, key, type(DEFAULTS[option]))
    key, absent = kind.activation
    word = config.get(key) or absent
    if word not in ACTIVATIONS:
        raise Uncovered(f"{key}={word!r}")
    options["activation"] = ACTIVATIONS[word]
    return complete(options | kind.read(config))


def _number(value: Any, key: str, kind: type) -> Any:
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise Uncovered(f"{key}={value!r}, which is no {kind.__name__}")
    return value


def _write(kind: ModelType, options: Options) -> Config:
    config = {key: options[option] for option, (key, _) in kind.keys.items()}
    config[kind.activation[0]] = WORDS[options["activation"]]
    return config | kind.write(options)


def _misses(kind: ModelType, wanted: Options, head: str, pad: int | None) -> list[str]:
    """What a model_type can't say of the options: what reading its config would not give back."""
    misses = [] if head in kind.heads else [f"head {head!r}"]
    misses += kind.check(wanted, head)
    written = _write(kind, wanted)
    if kind.name == "roberta" and pad is not None and pad != written["pad_token_id"]:
        misses.append(
            f"config.model.position_offset={wanted['position_offset']} with padding {pad}"
        )
    try:
        found = _read(kind, written)
    except Uncovered as error:
        return [*misses, str(error)]
    of_head = ("tied",) if head == "classify" else OF_CLASSES
    return misses + [
        f"config.model.{key}={wanted[key]!r} (it has {found[key]!r})"
        for key in DEFAULTS
        if key not in (*OF_TRAINING, *of_head) and found[key] != wanted[key]
    ]


def _classes(names: tuple[str, ...]) -> Config:
    return {
        "num_labels": len(names),
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _class_names(config: Config) -> tuple[str, ...]:
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return tuple(str(labels[key]) for key in sorted(labels, key=int))
    return tuple(f"LABEL_{i}" for i in range(config.get("num_labels") or 2))
