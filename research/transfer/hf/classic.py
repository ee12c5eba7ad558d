"""BERT, RoBERTa, DistilBERT and GPT-2: the config.json of each, in both directions."""

from typing import Any

from research.transfer.hf.options import REQUIRED, Config, ModelType, Options, Uncovered

ENCODER: Options = {
    "causal": False,
    "prenorm": False,
    "final_norm": False,
    "embed_norm": True,
    "pool": "first",
    "head_bias": True,
}


def _bert(name: str, cased: str, **more: Any) -> ModelType:
    return ModelType(
        name,
        name,
        {
            "classify": f"{cased}ForSequenceClassification",
            "mlm": f"{cased}ForMaskedLM",
            "": f"{cased}Model",
        },
        {
            "width": ("hidden_size", REQUIRED),
            "depth": ("num_hidden_layers", REQUIRED),
            "heads": ("num_attention_heads", REQUIRED),
            "hidden": ("intermediate_size", REQUIRED),
            "context": ("max_position_embeddings", 512),
            "types": ("type_vocab_size", 2),
            "norm_epsilon": ("layer_norm_eps", 1e-12),
            "dropout": ("hidden_dropout_prob", 0.1),
            "attention_dropout": ("attention_probs_dropout_prob", 0.1),
            "tied": ("tie_word_embeddings", True),
        },
        ("hidden_act", "gelu"),
        {**ENCODER, "pooler": "tanh"},
        **more,
    )


def _read_roberta(config: Config) -> Options:
    padding = config.get("pad_token_id", 1)
    if not isinstance(padding, int):
        raise Uncovered(f"pad_token_id={padding!r}, from which its positions are counted")
    return {"position_offset": padding + 1}


def _check_roberta(options: Options, head: str) -> list[str]:
    activation = options["activation"]
    wrong = head == "mlm" and activation != "gelu"
    return [f"config.model.activation={activation!r} with a masked language model"] if wrong else []


def _check_types(options: Options, head: str) -> list[str]:
    return [] if options["types"] else ["config.model.types=0"]


BERT = _bert(
    "bert",
    "Bert",
    read=lambda config: {},
    write=lambda options: {"position_embedding_type": "absolute"},
    check=_check_types,
)
# Positions are counted from the padding's id + 1, and the table has as many more rows.
ROBERTA = _bert(
    "roberta",
    "Roberta",
    read=_read_roberta,
    write=lambda options: {
        "position_embedding_type": "absolute",
        "pad_token_id": options["position_offset"] - 1,
    },
    check=lambda options, head: _check_types(options, head) + _check_roberta(options, head),
)
DISTILBERT = ModelType(
    "distilbert",
    "distilbert",
    {
        "classify": "DistilBertForSequenceClassification",
        "mlm": "DistilBertForMaskedLM",
        "": "DistilBertModel",
    },
    {
        "width": ("dim", REQUIRED),
        "depth": ("n_layers", REQUIRED),
        "heads": ("n_heads", REQUIRED),
        "hidden": ("hidden_dim", REQUIRED),
        "context": ("max_position_embeddings", 512),
        "dropout": ("dropout", 0.1),
        "attention_dropout": ("attention_dropout", 0.1),
        "tied": ("tie_word_embeddings", True),
    },
    ("activation", "gelu"),
    {**ENCODER, "pooler": "relu", "norm_epsilon": 1e-12},
    read=lambda config: {},
    # The table may have begun as sinusoids; it is in the file either way.
    write=lambda options: {
        "sinusoidal_pos_embds": False,
        "seq_classif_dropout": options["dropout"],
    },
)
GPT2 = ModelType(
    "gpt2",
    "gpt2",
    {"classify": "GPT2ForSequenceClassification", "lm": "GPT2LMHeadModel", "": "GPT2Model"},
    {
        "width": ("n_embd", REQUIRED),
        "depth": ("n_layer", REQUIRED),
        "heads": ("n_head", REQUIRED),
        "context": ("n_positions", 1024),
        "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        "dropout": ("resid_pdrop", 0.1),
        "attention_dropout": ("attn_pdrop", 0.1),
        "tied": ("tie_word_embeddings", True),
    },
    ("activation_function", "gelu_new"),
    {"pool": "last", "pooler": "", "head_bias": False},
    read=lambda config: {"hidden": config.get("n_inner") or 0},
    write=lambda options: {"n_inner": options["hidden"], "embd_pdrop": options["dropout"]},
)
TYPES = (GPT2, BERT, ROBERTA, DISTILBERT)
