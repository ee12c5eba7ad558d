r"""Encoders and decoders of Hugging Face transformers, as their files call the arrays.

BERT (MiniLM too), DistilBERT, RoBERTa; GPT-2; Llama (Mistral and Qwen2 too, which differ by biases and windows), Qwen3,
Gemma 2 and Gemma 3 (text). Each with a head for classes, one for tokens, or none:

    BERT        classifier (after bert.pooler), cls.predictions
    DistilBERT  classifier (after pre_classifier), vocab_transform, vocab_layer_norm, vocab_projector
    RoBERTa     classifier.out_proj (after classifier.dense), lm_head
    others      score; lm_head, which is absent or equal to the embedding where the model ties them

BERT's pooler is the layer before its head; RoBERTa's head has one of its own and no use for a bare model's pooler.
Files of a bare encoder or decoder lack the first word, 'bert.', 'transformer.' or 'model.'; files of 2018 call a
norm's scale gamma and its bias beta. GPT-2 keeps queries, keys and values in one array and its kernels as they are
here, [in, out]. Gemma's norms multiply by 1 + their weight, which the model does as well, so the arrays are the same.
"""

import re
from collections.abc import Callable
from typing import Any

from research.transfer.tables import TORCH, Arrays, Naming, Row, Rows, Shapes

_LAYER = r"block_(\d+)/"
_PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}


def _encoder(prefix: str) -> Rows:
    layer = rf"{prefix}.encoder.layer.\1"
    return (
        (r"embed", (f"{prefix}.embeddings.word_embeddings",)),
        (r"position", (f"{prefix}.embeddings.position_embeddings",)),
        (r"type", (f"{prefix}.embeddings.token_type_embeddings",)),
        (r"embed_norm", (f"{prefix}.embeddings.LayerNorm",)),
        (rf"{_LAYER}attention/(query|key|value)", (rf"{layer}.attention.self.\2",)),
        (rf"{_LAYER}attention/out", (rf"{layer}.attention.output.dense",)),
        (rf"{_LAYER}norm1", (rf"{layer}.attention.output.LayerNorm",)),
        (rf"{_LAYER}mlp/up", (rf"{layer}.intermediate.dense",)),
        (rf"{_LAYER}mlp/down", (rf"{layer}.output.dense",)),
        (rf"{_LAYER}norm2", (rf"{layer}.output.LayerNorm",)),
    )


def _bert(options: dict[str, Any], shapes: Shapes) -> Rows:
    masked = (
        (r"mlm/dense", ("cls.predictions.transform.dense",)),
        (r"mlm/norm", ("cls.predictions.transform.LayerNorm",)),
        (r"head", ("cls.predictions.decoder",)),
        # Without a tie the decoder has a bias of its own, and the other counts no more.
        (r"mlm", ("cls.predictions.decoder" if _untied(shapes) else "cls.predictions",)),
    )
    classes = ((r"pooler", ("bert.pooler.dense",)), (r"head", ("classifier",)))
    return (*_encoder("bert"), *(masked if "mlm/bias" in shapes else classes))


def _roberta(options: dict[str, Any], shapes: Shapes) -> Rows:
    masked = (
        (r"mlm/dense", ("lm_head.dense",)),
        (r"mlm/norm", ("lm_head.layer_norm",)),
        (r"head", ("lm_head.decoder",)),
        (r"mlm", ("lm_head.decoder" if _untied(shapes) else "lm_head",)),
    )
    classes = ((r"pooler", ("classifier.dense",)), (r"head", ("classifier.out_proj",)))
    return (*_encoder("roberta"), *(masked if "mlm/bias" in shapes else classes))


def _distilbert(options: dict[str, Any], shapes: Shapes) -> Rows:
    layer = r"distilbert.transformer.layer.\1"
    attention = tuple(
        (rf"{_LAYER}attention/{ours}", (rf"{layer}.attention.{theirs}_lin",))
        for ours, theirs in {**_PARTS, "out": "out"}.items()
    )
    masked = (
        (r"mlm/dense", ("vocab_transform",)),
        (r"mlm/norm", ("vocab_layer_norm",)),
        (r"mlm|head", ("vocab_projector",)),
    )
    classes = ((r"pooler", ("pre_classifier",)), (r"head", ("classifier",)))
    return (
        (r"embed", ("distilbert.embeddings.word_embeddings",)),
        (r"position", ("distilbert.embeddings.position_embeddings",)),
        (r"embed_norm", ("distilbert.embeddings.LayerNorm",)),
        *attention,
        (rf"{_LAYER}norm1", (rf"{layer}.sa_layer_norm",)),
        (rf"{_LAYER}mlp/up", (rf"{layer}.ffn.lin1",)),
        (rf"{_LAYER}mlp/down", (rf"{layer}.ffn.lin2",)),
        (rf"{_LAYER}norm2", (rf"{layer}.output_layer_norm",)),
        *(masked if "mlm/bias" in shapes else classes),
    )


def _gpt2(options: dict[str, Any], shapes: Shapes) -> Rows:
    layer = r"transformer.h.\1"
    same: dict[int, tuple[int, ...]] = {}  # kernels are not transposed
    fused = tuple(
        Row(rf"{_LAYER}attention/{part}", (rf"{layer}.attn.c_attn",), same, (i, 3))
        for i, part in enumerate(("query", "key", "value"))
    )
    return (
        (r"embed", ("transformer.wte",)),
        (r"position", ("transformer.wpe",)),
        (rf"{_LAYER}norm([12])", (rf"{layer}.ln_\2",)),
        *fused,
        Row(rf"{_LAYER}attention/out", (rf"{layer}.attn.c_proj",), same),
        Row(rf"{_LAYER}mlp/up", (rf"{layer}.mlp.c_fc",), same),
        Row(rf"{_LAYER}mlp/down", (rf"{layer}.mlp.c_proj",), same),
        (r"norm", ("transformer.ln_f",)),
        (r"head", (_head(shapes),)),
    )


def _modern(norms: dict[str, str], *, qk_norm: bool) -> Callable[[dict[str, Any], Shapes], Rows]:
    layer = r"model.layers.\1"

    def rows(options: dict[str, Any], shapes: Shapes) -> Rows:
        attention = tuple(
            (rf"{_LAYER}attention/{ours}", (rf"{layer}.self_attn.{theirs}_proj",))
            for ours, theirs in _PARTS.items()
        )
        qk = tuple(
            (rf"{_LAYER}attention/{part}_norm", (rf"{layer}.self_attn.{part[0]}_norm",))
            for part in ("query", "key")
        )
        return (
            (r"embed", ("model.embed_tokens",)),
            *attention,
            *(qk if qk_norm else ()),
            *((rf"{_LAYER}{ours}", (rf"{layer}.{theirs}",)) for ours, theirs in norms.items()),
            (rf"{_LAYER}mlp/(gate|up|down)", (rf"{layer}.mlp.\2_proj",)),
            (r"norm", ("model.norm",)),
            (r"head", (_head(shapes),)),
        )

    return rows


def _head(shapes: Shapes) -> str:
    """A decoder's head is of its vocabulary or of classes, which is told by its width."""
    classes = shapes.get("head/kernel", (0, 0))[1]
    return "lm_head" if classes == shapes["embed/embedding"][0] else "score"


def _untied(shapes: Shapes) -> bool:
    return "head/kernel" in shapes


def _matching(prefix: str, heads: tuple[str, ...]) -> Callable[[Arrays, Shapes], dict[str, str]]:
    """Finds the names of a bare model, and those of 2018."""

    def match(arrays: Arrays, shapes: Shapes) -> dict[str, str]:
        bare = not any(name.startswith(prefix) for name in arrays)
        found = {}
        for name in arrays:
            new = name
            for old, now in ((".gamma", ".weight"), (".beta", ".bias")):
                new = new.removesuffix(old) + now if new.endswith(old) else new
            found[prefix + new if bare and not new.startswith(heads) else new] = name
        return found

    return match


LLAMA = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
GEMMA = {
    "norm1": "input_layernorm",
    "norm1_post": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "norm2_post": "post_feedforward_layernorm",
}
BRANCH = "pre_feedforward_layernorm"
CLASSES = (r"^(classifier|pre_classifier|score)\.", "a head for classes")
TOKENS = (r"^(cls\.predictions|lm_head|vocab_\w+)\.", "a head for tokens")
POOLER = (r"(^|\.)pooler\.dense\.", "the layer before its head for classes")


def _tied(embedding: str, decoder: str, bias: str = "") -> tuple[tuple[str, str], ...]:
    biases = ((f"{decoder}.bias", bias),) if bias else ()
    return ((f"{decoder}.weight", f"{embedding}.weight"), *biases)


def _decoder(name: str, what: str, norms: dict[str, str], *signs: str, qk_norm: bool) -> Naming:
    signature = ("self_attn.q_proj", *signs)
    return Naming(
        name,
        what,
        TORCH,
        _modern(norms, qk_norm=qk_norm),
        tuple(rf"(^|\.)layers\.0\.{re.escape(sign)}\.weight$" for sign in signature),
        ignored=(r"\.rotary_emb\.inv_freq$",),
        tied=_tied("model.embed_tokens", "lm_head"),
        parts=(CLASSES, TOKENS),
        match=_matching("model.", ("lm_head.", "score.")),
    )


NAMINGS = (
    Naming(
        "bert",
        "a BERT of transformers",
        TORCH,
        _bert,
        (r"(^|^bert\.)encoder\.layer\.0\.attention\.self\.query\.weight$",),
        # The rest of pretraining, and the bias of a decoder that has another of its own.
        ignored=(r"\.position_ids$", r"^cls\.seq_relationship\.", r"^cls\.predictions\.bias$"),
        beside=((r"^(cls\.predictions)\.decoder\.bias$", r"\1.bias", None),),
        tied=_tied(
            "bert.embeddings.word_embeddings", "cls.predictions.decoder", "cls.predictions.bias"
        ),
        parts=(CLASSES, TOKENS, POOLER),
        match=_matching("bert.", ("cls.", "classifier.")),
    ),
    Naming(
        "roberta",
        "a RoBERTa of transformers",
        TORCH,
        _roberta,
        (r"^roberta\.encoder\.layer\.0\.attention\.self\.query\.weight$",),
        ignored=(r"\.position_ids$", r"^lm_head\.bias$"),
        beside=((r"^(lm_head)\.decoder\.bias$", r"\1.bias", None),),
        tied=_tied("roberta.embeddings.word_embeddings", "lm_head.decoder", "lm_head.bias"),
        parts=(CLASSES, TOKENS, POOLER),
        match=_matching("roberta.", ("lm_head.", "classifier.")),
    ),
    Naming(
        "distilbert",
        "a DistilBERT of transformers",
        TORCH,
        _distilbert,
        (r"(^|\.)transformer\.layer\.0\.attention\.q_lin\.weight$",),
        ignored=(r"\.position_ids$",),
        tied=_tied("distilbert.embeddings.word_embeddings", "vocab_projector"),
        parts=(CLASSES, TOKENS),
        match=_matching("distilbert.", ("vocab_", "pre_classifier.", "classifier.")),
    ),
    Naming(
        "gpt2",
        "a GPT-2 of transformers",
        TORCH,
        _gpt2,
        (r"(^|^transformer\.)h\.0\.attn\.c_attn\.weight$",),
        ignored=(r"\.attn\.(bias|masked_bias)$",),  # of old files: the triangle of ones
        tied=_tied("transformer.wte", "lm_head"),
        parts=(CLASSES, TOKENS),
        match=_matching("transformer.", ("lm_head.", "score.")),
    ),
    _decoder("llama", "a Llama, Mistral or Qwen2 of transformers", LLAMA, qk_norm=False),
    _decoder("qwen3", "a Qwen3 of transformers", LLAMA, "self_attn.q_norm", qk_norm=True),
    _decoder("gemma2", "a Gemma 2 of transformers", GEMMA, BRANCH, qk_norm=False),
    _decoder(
        "gemma3", "a Gemma 3 of transformers", GEMMA, BRANCH, "self_attn.q_norm", qk_norm=True
    ),
)
