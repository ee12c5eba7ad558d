"""Vision Transformers of timm (AugReg's ViT, DeiT) and of Hugging Face transformers.

Both split queries, keys and values in this order, each by heads, as research/models/vit.py does; Hugging Face keeps
them apart. Its configs divide layer norms by sqrt(var + 1e-12), timm and this project by sqrt(var + 1e-6): for
activations of ordinary size that is one part in a million or less.

With `model.pool='gap'` the norm stands before the mean, as in timm with `fc_norm=False, class_token=False`.
"""

from research.transfer.tables import TORCH, Naming, Rows

TIMM: Rows = (
    (r"cls_token|pos_embed", (r"\g<0>",)),
    (r"patch_embed", (r"patch_embed.proj",)),
    (r"block_(\d+)/(norm[12])", (r"blocks.\1.\2",)),
    (r"block_(\d+)/(qkv|proj)", (r"blocks.\1.attn.\2",)),
    (r"block_(\d+)/(fc[12])", (r"blocks.\1.mlp.\2",)),
    (r"norm|head", (r"\g<0>",)),
)


def _hugging_face(prefix: str) -> Rows:
    layer = rf"{prefix}encoder.layer.\1"
    attention = tuple(rf"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
    return (
        *_outside(prefix),
        (r"block_(\d+)/norm1", (rf"{layer}.layernorm_before",)),
        (r"block_(\d+)/norm2", (rf"{layer}.layernorm_after",)),
        (r"block_(\d+)/qkv", attention),
        (r"block_(\d+)/proj", (rf"{layer}.attention.output.dense",)),
        (r"block_(\d+)/fc1", (rf"{layer}.intermediate.dense",)),
        (r"block_(\d+)/fc2", (rf"{layer}.output.dense",)),
    )


def _in_memory(prefix: str) -> Rows:
    """What state_dict() says since transformers 5, which renames when it reads and writes files."""
    layer = rf"{prefix}layers.\1"
    attention = tuple(rf"{layer}.attention.{part}_proj" for part in "qkv")
    return (
        *_outside(prefix),
        (r"block_(\d+)/norm1", (rf"{layer}.layernorm_before",)),
        (r"block_(\d+)/norm2", (rf"{layer}.layernorm_after",)),
        (r"block_(\d+)/qkv", attention),
        (r"block_(\d+)/proj", (rf"{layer}.attention.o_proj",)),
        (r"block_(\d+)/(fc[12])", (rf"{layer}.mlp.\2",)),
    )


def _outside(prefix: str) -> Rows:
    return (
        (r"cls_token", (rf"{prefix}embeddings.cls_token",)),
        (r"pos_embed", (rf"{prefix}embeddings.position_embeddings",)),
        (r"patch_embed", (rf"{prefix}embeddings.patch_embeddings.projection",)),
        (r"norm", (rf"{prefix}layernorm",)),
        (r"head", (r"classifier",)),
    )


DISTILLED = (
    r"(^|\.)(dist_token|head_dist|distillation_token|distillation_classifier)",
    "has a second token and a second head (a distilled DeiT), which this one lacks; take the DeiT without distillation",
)
FC_NORM = (
    r"^fc_norm\.",
    "norms after the mean over the tokens, and config.model.pool='gap' before "
    "it; take weights of a model without fc_norm",
)
SCALED = (
    r"^blocks\.0\.ls1\.",
    "scales its branches (LayerScale), which this model does not",
)
NAMINGS = (
    Naming(
        "timm",
        "a Vision Transformer of timm",
        TORCH,
        TIMM,
        (r"^patch_embed\.proj\.weight$", r"^blocks\.0\.attn\.qkv\.weight$"),
        refused=(DISTILLED, FC_NORM, SCALED),
    ),
    Naming(
        "hf",
        "a ViTForImageClassification of transformers",
        TORCH,
        _hugging_face("vit."),
        (r"^vit\.encoder\.layer\.0\.attention\.attention\.query\.weight$",),
        refused=(DISTILLED,),
        in_memory="hf5",
    ),
    Naming(
        "hf_bare",
        "a ViTModel of transformers",
        TORCH,
        _hugging_face(""),
        (r"^embeddings\.patch_embeddings\.", r"^encoder\.layer\.0\.attention\.attention\.query\."),
        ignored=(
            r"^pooler\.dense\.",
        ),  # works on the class token after the norm; no classifier uses it
        absent=(r"^head/",),
        refused=(DISTILLED,),
    ),
    Naming(
        "hf5",
        "the state dict of a ViTForImageClassification in transformers 5",
        TORCH,
        _in_memory("vit."),
        (r"^vit\.layers\.0\.attention\.q_proj\.weight$",),
        refused=(DISTILLED,),
    ),
)
