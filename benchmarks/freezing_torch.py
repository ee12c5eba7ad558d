"""PyTorch's side of benchmarks/freezing.py: takes train steps when asked to, a JSON line at a time.

    {"net": "resnet", "trained": "head", "layout": "channels_last", "batch": 32, "steps": 3}
    -> {"ms": [41.2, 40.7, 40.9], "processor_ms": [80.1, 79.8, 80.3], "parameters": 11173962, "trainable": 5130, ...}

The networks have the layers of research/models/efficientnet.py and resnet.py and as many parameters. Padding is
symmetric everywhere, which PyTorch does inside the convolution; EfficientNet's own would cost it a copy of each input.
'head' is the usual way: requires_grad_(False) on the trunk, its batch norms in eval mode, an optimizer of the head
alone. As no input of the trunk wants a gradient, autograd records nothing there, so torch.no_grad() would change
nothing.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import serve, timed
from research.ops.memory import keep_freed_memory

SIDES = {"efficientnet": 96, "resnet": 64}
CLASSES = 10
STAGES = (  # blocks, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def main(threads: int) -> None:
    keep_freed_memory()  # on both sides
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    steps: dict[tuple, tuple] = {}

    def answer(asked: dict) -> dict:
        key = asked["net"], asked["trained"], asked["layout"], asked["batch"]
        if key not in steps:
            steps[key] = make_step(*key)
        step, counts = steps[key]
        return {**timed(step, asked["steps"]), **counts, "version": torch.__version__}

    serve(answer)


def make_step(net: str, trained: str, layout: str, batch: int):
    """Returns a function that takes one train step, and how many parameters there are."""
    trunk, width = {"efficientnet": efficientnet, "resnet": resnet}[net]()
    model = nn.Sequential(trunk, nn.Linear(width, CLASSES)).train()
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=form)
    x = torch.randn(batch, 3, SIDES[net], SIDES[net]).to(memory_format=form)
    labels = torch.arange(batch) % CLASSES
    if trained == "head":
        trunk.requires_grad_(False).eval()
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-3, weight_decay=0.01, fused=True)
    loss_of = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x), labels).backward()
        optimizer.step()

    counts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in wanted),
    }
    return step, counts


def conv_norm(c: int, d: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c, d, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(d)]


class Residual(nn.Module):
    """act(x + body(x)), x projected where the shape changes, or left out where there is no projection."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, act: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.act(y if self.shortcut is None else y + self.shortcut(x))


def efficientnet() -> tuple[nn.Module, int]:
    """EfficientNet-Lite0 without its head, and the width of its features."""

    def relu6() -> nn.Module:
        return nn.ReLU6(inplace=True)

    layers, c = [*conv_norm(3, 32, 3, 2), relu6()], 32
    for count, kernel, first, expansion, d in STAGES:
        for i in range(count):
            stride, wide = first if i == 0 else 1, c * expansion
            body = [*conv_norm(c, wide, 1), relu6()] if expansion > 1 else []
            body += [*conv_norm(wide, wide, kernel, stride, groups=wide), relu6()]
            body += conv_norm(wide, d, 1)
            same = nn.Identity() if stride == 1 and c == d else None
            layers.append(Residual(nn.Sequential(*body), same, nn.Identity()))
            c = d
    layers += [*conv_norm(c, 1280, 1), relu6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers), 1280


def resnet() -> tuple[nn.Module, int]:
    """ResNet-18 with the small stem, without its head, and the width of its features."""
    layers, c = [*conv_norm(3, 64, 3), nn.ReLU(inplace=True)], 64
    for stage in range(4):
        for i in range(2):
            d, stride = 64 * 2**stage, 2 if stage and i == 0 else 1
            body = [*conv_norm(c, d, 3, stride), nn.ReLU(inplace=True), *conv_norm(d, d, 3)]
            same = stride == 1 and c == d
            shortcut = nn.Identity() if same else nn.Sequential(*conv_norm(c, d, 1, stride))
            layers.append(Residual(nn.Sequential(*body), shortcut, nn.ReLU(inplace=True)))
            c = d
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512


if __name__ == "__main__":
    main(int(sys.argv[1]))
