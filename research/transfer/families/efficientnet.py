"""EfficientNet-Lite 0 to 4 of the PyTorch port (lukemelas; the package efficientnet-lite-pytorch) and of timm.

Of timm, tf_efficientnet_lite0 to 4. Its efficientnet_lite0, without tf_, has the same names and shapes, but pads evenly
and adds 1e-5 in its norms: its weights give other logits here, and no array says so.
"""

from typing import Any

from research.models.efficientnet import SCALES, scaled
from research.transfer.tables import COUNTERS, IGNORED_COUNTERS, TORCH, Naming, Rows, Shapes

LUKEMELAS: Rows = (
    (r"block_(\d+)/(\w+)", (r"_blocks.\1._\2",)),
    (r"conv_stem|bn0|conv_head|bn1", (r"_\g<0>",)),
    (r"head", (r"_fc",)),
)
# A block's layers in timm: of the first stage, whose blocks don't expand, and of the others.
PLAIN = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
EXPANDING = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def timm(options: dict[str, Any], shapes: Shapes) -> Rows:
    """timm numbers blocks within their stage, so the rows depend on how many each stage has."""
    rows: list[tuple[str, tuple[str, ...]]] = [
        (r"conv_stem|conv_head", (r"\g<0>",)),
        (r"bn0", (r"bn1",)),
        (r"bn1", (r"bn2",)),
        (r"head", (r"classifier",)),
    ]
    block = 0
    for stage, (count, _, _, expansion, _) in enumerate(scaled(*SCALES[options["variant"]])):
        layers = PLAIN if expansion == 1 else EXPANDING
        for i in range(count):
            rows += [
                (f"block_{block}/{ours}", (f"blocks.{stage}.{i}.{theirs}",))
                for ours, theirs in layers.items()
            ]
            block += 1
    return tuple(rows)


NAMINGS = (
    Naming(
        "lukemelas",
        "an EfficientNet of the package efficientnet-lite-pytorch",
        TORCH,
        LUKEMELAS,
        (r"^_conv_stem\.weight$", r"^_blocks\.0\._depthwise_conv\.weight$"),
        refused=((r"\._se_reduce\.", "squeezes and excites, as Lite variants do not"),),
        ignored=IGNORED_COUNTERS,
        beside=COUNTERS,
    ),
    Naming(
        "timm",
        "a tf_efficientnet_lite of timm",
        TORCH,
        timm,
        (r"^conv_stem\.weight$", r"^blocks\.0\.0\.conv_dw\.weight$"),
        refused=((r"\.se\.conv_reduce\.", "squeezes and excites, as Lite variants do not"),),
        ignored=IGNORED_COUNTERS,
        beside=COUNTERS,
    ),
)
