"""ResNet 18, 34 and 50 of torchvision and timm, which give them the same names.

The stems differ: theirs is `model.stem='imagenet'`; for 'small' the first convolution must be skipped. timm's other
ResNets (resnet50d and the like, whose shortcuts average) are other models.
"""

from typing import Any

from research.transfer.tables import COUNTERS, IGNORED_COUNTERS, TORCH, Naming

ROWS = (
    (r"(conv1|bn1)", (r"\1",)),
    (r"layer(\d)_(\d+)/((?:conv|bn)\d)", (r"layer\1.\2.\3",)),
    (r"layer(\d)_(\d+)/downsample_conv", (r"layer\1.\2.downsample.0",)),
    (r"layer(\d)_(\d+)/downsample_bn", (r"layer\1.\2.downsample.1",)),
    (r"head", (r"fc",)),
)
SIGNATURE = (r"^layer1\.0\.conv1\.weight$", r"^layer4\.0\.conv2\.weight$")
NAMINGS = tuple(
    Naming(
        name,
        "a ResNet of torchvision or timm",
        TORCH,
        ROWS,
        SIGNATURE,
        ignored=IGNORED_COUNTERS,
        beside=COUNTERS,
    )
    for name in ("torchvision", "timm")
)


def not_built(options: dict[str, Any]) -> str:
    """Returns why none of the libraries builds this network, '' if they do."""
    return "" if options["stem"] == "imagenet" else f"config.model.stem='{options['stem']}'"
