"""PyTorch's side of benchmarks/bench.py: the same networks, as one writes them there, timed when asked to.

    {"do": "make", "subject": "gpt", "how": {"compiled": true}, "folder": "runs/x", "vocabulary": 4096, "threads": 2}
    {"do": "train", "steps": 3}              -> {"ms": [...], "processor_ms": [...]}
    {"do": "infer", "batch": 1, "steps": 3}  the same
    {"do": "memory"}                         -> {"peak_mb": ...}
    {"do": "data", "batch": 128, "count": 100, "shape": [60000, 28, 28, 1], "workers": 0}

FOLDER/batches.npz holds the other side's batches. `how` may say kept (freed memory stays in the process, as on the
other side), channels_last and compiled (torch.compile). ViT-tiny is timm's, MiniLM that of transformers; the ResNet is
that of freezing_torch.py and the GPT that of python_lm_torch.py.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parents[1]))

from benchmarks.turns import answering, serve, timed

Batch = dict[str, torch.Tensor]


def main() -> None:
    def make(**asked: Any) -> tuple[Any, dict[str, Any]]:
        run = Run(**asked)
        return run, {"version": torch.__version__, "parameters": run.parameters}

    serve(answering(make, data=data))


class Run:
    def __init__(
        self, subject: str, how: dict[str, Any], folder: str, vocabulary: int, threads: int
    ):
        if how.get("kept"):
            from research.ops.memory import keep_freed_memory

            keep_freed_memory()
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        with np.load(Path(folder) / "batches.npz") as file:
            fields = {name: torch.from_numpy(file[name]) for name in file.files}
        count = len(fields["mask"])
        made = [{name: field[i] for name, field in fields.items()} for i in range(count)]
        model, self._loss, convert, optimizer_of, self._clip = BUILDERS[subject](vocabulary)
        self._batches = [convert(batch) for batch in made]
        if how.get("channels_last"):
            model = model.to(memory_format=torch.channels_last)
            for batch in self._batches:
                batch["x"] = batch["x"].contiguous(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._optimizer = optimizer_of(model.parameters())
        self._wanted = list(model.parameters())
        self._model = torch.compile(model, dynamic=False) if how.get("compiled") else model
        self._done = 0

    def train(self, steps: int) -> dict[str, list[float]]:
        self._model.train()
        return timed(self._step, steps)

    def _step(self) -> None:
        batch = self._batches[self._done % len(self._batches)]
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(self._model, batch).backward()
        if self._clip:
            nn.utils.clip_grad_norm_(self._wanted, self._clip)
        self._optimizer.step()
        self._done += 1

    @torch.inference_mode()
    def infer(self, batch: int, steps: int) -> dict[str, list[float]]:
        self._model.eval()
        given = {name: field[:batch] for name, field in self._batches[0].items()}
        return timed(lambda: self._loss(self._model, given), steps)


def data(batch: int, count: int, shape: list[int], workers: int) -> dict[str, float]:
    """Times a DataLoader over pictures in memory that makes floats of them, the workers' start included."""
    from torch.utils.data import DataLoader, TensorDataset

    pictures = torch.randint(0, 256, shape, dtype=torch.uint8)
    made = TensorDataset(pictures, torch.zeros(shape[0], dtype=torch.long))
    start = time.perf_counter()
    for i, (x, _) in enumerate(DataLoader(made, batch, shuffle=True, num_workers=workers)):
        x.float().div_(255).sub_(0.3).div_(0.3)
        if i + 1 == count:
            break
    return {"ms": (time.perf_counter() - start) * 1e3}


def pictures(batch: Batch) -> Batch:
    return {"x": batch["image"].permute(0, 3, 1, 2).contiguous(), "y": batch["label"].long()}


def sentences(batch: Batch) -> Batch:
    return {
        "x": batch["tokens"].long(),
        "y": batch["label"].long(),
        "seen": (batch["segments"] > 0).long(),
    }


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def smoothed(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"], label_smoothing=0.1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05, fused=True)


def cnn(vocabulary: int) -> tuple:
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers), cross_entropy, pictures, adam, 0.0


def resnet(vocabulary: int) -> tuple:
    from freezing_torch import resnet

    trunk, width = resnet()

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
        )

    return nn.Sequential(trunk, nn.Linear(width, 10)), cross_entropy, pictures, sgd, 0.0


def vit(vocabulary: int) -> tuple:
    from generation_torch import declare_torchvision

    declare_torchvision()
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10)
    return model, smoothed, pictures, adamw, 1.0


class Recurrent(nn.Module):
    def __init__(self, layer: Callable[..., nn.Module], vocabulary: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 128)
        self.layer = layer(128, 256, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(tokens))[0][:, -1])


def elman(vocabulary: int) -> tuple:
    return Recurrent(nn.RNN, vocabulary), cross_entropy, sentences, adam, 1.0


def lstm(vocabulary: int) -> tuple:
    return Recurrent(nn.LSTM, vocabulary), cross_entropy, sentences, adam, 1.0


def gpt(vocabulary: int) -> tuple:
    from python_lm_torch import Model, converted, loss_of

    model = Model(vocabulary, context=256, width=256, depth=6, heads=8, hidden=1024)
    return model, lambda m, batch: loss_of(m, batch)[0], converted, adamw, 1.0


def minilm(vocabulary: int) -> tuple:
    from generation_torch import declare_torchvision

    declare_torchvision()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=2,
    )

    def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(batch["x"], attention_mask=batch["seen"], labels=batch["y"]).loss

    return BertForSequenceClassification(config), loss_of, sentences, adamw, 1.0


BUILDERS = {
    "cnn": cnn,
    "resnet": resnet,
    "vit": vit,
    "elman": elman,
    "lstm": lstm,
    "gpt": gpt,
    "minilm": minilm,
}


if __name__ == "__main__":
    main()
