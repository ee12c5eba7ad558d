"""PyTorch's side of benchmarks/python_lm.py: the same GPT, trained and timed when asked to, a JSON line at a time.

    {"do": "gradient"}               writes that of the first batch at the initial parameters into FOLDER/gradient.npz
    {"do": "time", "steps": 20}      -> {"ms": [481.2, ...], "processor_ms": [940.1, ...]}
    {"do": "train"}                  -> {"train": [[25, 7.1], ...], "validation": [[300, 1.9], ...], "seconds": [...]}

FOLDER holds what the other side wrote: settings.json, initial.npz (parameters by their paths there), train.npz
([N, B, T]) and validation.npz. Training is saved in FOLDER/theirs.pt at each evaluation, and goes on from there.

It is what one writes in PyTorch: nn.Linear with queries, keys and values in one, scaled_dot_product_attention, which is
told `is_causal` and gets a mask only where a row of the batch holds several documents, the fused AdamW.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import serve, timed
from research.ops.memory import keep_freed_memory

Batch = dict[str, torch.Tensor]


def main(folder: Path, threads: int) -> None:
    keep_freed_memory()  # on both sides
    torch.set_num_threads(threads)
    settings = json.loads((folder / "settings.json").read_text())
    data = {split: Rows(folder / f"{split}.npz") for split in ("train", "validation")}
    kept: dict[str, Any] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "train":
            return train(folder, settings, data)
        if asked["do"] == "gradient":
            model = initial(folder, settings)
            loss, _ = loss_of(model, data["train"].batch(0))
            loss.backward()
            parts = views(model, lambda p: p.grad)
            np.savez(folder / "gradient.npz", **{name: g.numpy() for name, g in parts.items()})
            return {"loss": loss.item(), "parameters": sum(p.numel() for p in model.parameters())}
        if not kept:
            model = initial(folder, settings)
            kept.update(step=make_step(model, settings), done=0)
        numbers = [(kept["done"] + i) % settings["steps"] for i in range(asked["steps"])]
        given = iter([(n, data["train"].batch(n)) for n in numbers])
        kept["done"] += asked["steps"]
        return timed(lambda: kept["step"](*next(given)), asked["steps"])

    serve(lambda asked: {**answer(asked), "version": torch.__version__})


def train(folder: Path, settings: dict[str, Any], data: dict[str, "Rows"]) -> dict[str, Any]:
    """Trains to the end; returns the loss in nats a token, as means since the last one, and the bits per byte."""
    model = initial(folder, settings)
    step = make_step(model, settings)
    kept = folder / "theirs.pt"
    curves: dict[str, Any] = {"train": [], "validation": [], "seconds": []}
    window, first = [0.0, 0.0], 0
    if kept.is_file():
        saved = torch.load(kept, weights_only=True)
        if saved["settings"] != settings:
            sys.exit(f"error: {kept} is of a run with other settings; remove it")
        model.load_state_dict(saved["model"])
        step.optimizer.load_state_dict(saved["optimizer"])
        curves, window, first = saved["curves"], saved["window"], saved["step"]
    for n in range(first, settings["steps"]):
        start = time.perf_counter()
        nll, weight = step(n, data["train"].batch(n))
        curves["seconds"].append(time.perf_counter() - start)
        window = [window[0] + nll, window[1] + weight]
        done = n + 1
        last = done == settings["steps"]
        if done % settings["log_every"] == 0 or last:
            curves["train"].append([done, window[0] / window[1]])
            window = [0.0, 0.0]
        if done % settings["eval_every"] == 0 or last:
            curves["validation"].append([done, bits_per_byte(model, data["validation"])])
            print(f"theirs: step {done}, {curves['validation'][-1][1]:.4f}", file=sys.stderr)
            state = {"model": model.state_dict(), "optimizer": step.optimizer.state_dict()}
            state |= {"curves": curves, "window": window, "step": done, "settings": settings}
            torch.save(state, f"{kept}.new")
            os.replace(f"{kept}.new", kept)
    return curves


class Step:
    """One update, called with its number and its batch; returns the sum of the losses and how many there are."""

    def __init__(self, model: "Model", settings: dict[str, Any]):
        self._model, self._settings = model, settings
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def __call__(self, n: int, batch: Batch) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._settings["rates"][n]
        self.optimizer.zero_grad(set_to_none=True)
        loss, count = loss_of(self._model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._settings["clip_norm"])
        self.optimizer.step()
        return loss.item() * count, count


def make_step(model: "Model", settings: dict[str, Any]) -> Step:
    return Step(model.train(), settings)


def loss_of(model: "Model", batch: Batch) -> tuple[torch.Tensor, int]:
    """The mean over the targets that count, and how many those are."""
    counted = batch["weights"] > 0
    targets = torch.where(counted, batch["targets"], -100)
    logits = model(batch["tokens"], batch["positions"], mask_of(batch["segments"]))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), int(counted.sum())


def mask_of(segments: torch.Tensor) -> torch.Tensor | None:
    """What a token sees, [B, 1, T, T], where a row holds several documents. Padding sees itself and counts nowhere."""
    if int(segments.max()) <= 1:
        return None
    return (segments[:, :, None] == segments[:, None, :]).tril()[:, None]


@torch.no_grad()
def bits_per_byte(model: "Model", rows: "Rows") -> float:
    model.eval()
    nll = size = 0.0
    for i in range(len(rows)):
        batch = rows.batch(i)
        mean, count = loss_of(model, batch)
        nll += mean.item() * count
        size += float((batch["bytes"] * batch["mask"]).sum())
    model.train()
    return nll / (math.log(2) * size)


class Rows:
    """Batches in a file, each field [N, B, ...]."""

    def __init__(self, path: Path):
        with np.load(path) as file:
            self._fields = {name: torch.from_numpy(file[name]) for name in file.files}

    def __len__(self) -> int:
        return len(self._fields["mask"])

    def batch(self, n: int) -> Batch:
        return converted({name: field[n] for name, field in self._fields.items()})


def converted(batch: Batch) -> Batch:
    """Returns a batch with indices as PyTorch wants them, and the padding's weights 0."""
    whole = {name: batch[name].long() for name in ("tokens", "targets", "positions")}
    return {**batch, **whole, "weights": batch["weights"] * batch["mask"][:, None]}


class Model(nn.Module):
    """GPT-2's: learned positions, norms first, the output's matrix the embedding's."""

    def __init__(
        self, vocab_size: int, context: int, width: int, depth: int, heads: int, hidden: int
    ):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.embed(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x, mask)
        return F.linear(self.norm(x), self.embed.weight)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def initial(folder: Path, settings: dict[str, Any]) -> Model:
    """Returns the model with the parameters that the other side starts from."""
    model = Model(**settings["model"])
    with np.load(folder / "initial.npz") as file, torch.no_grad():
        parts = views(model, lambda p: p)
        assert set(parts) == set(file.files), sorted(set(parts) ^ set(file.files))
        for name, part in parts.items():
            assert part.shape == file[name].shape, name
            part.copy_(torch.from_numpy(file[name]))
    decayed = {name for name, part in views(model, lambda p: p).items() if part.ndim >= 2}
    assert decayed == set(settings["decayed"]), decayed ^ set(settings["decayed"])
    return model


def views(model: Model, of: Callable[[Any], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns views of the parameters, or of what `of` makes of them, by the other side's paths and in its shapes."""
    found = {}

    def linear(path: str, layer: nn.Linear, rows: slice = slice(None)) -> None:
        found[f"{path}/kernel"] = of(layer.weight)[rows].T
        found[f"{path}/bias"] = of(layer.bias)[rows]

    def norm(path: str, layer: nn.LayerNorm) -> None:
        found[f"{path}/scale"], found[f"{path}/bias"] = of(layer.weight), of(layer.bias)

    found["embed/embedding"] = of(model.embed.weight)
    found["position/embedding"] = of(model.position.weight)
    for i, block in enumerate(model.blocks):
        d = block.out.in_features
        for j, name in enumerate(("query", "key", "value")):
            linear(f"block_{i}/attention/{name}", block.qkv, slice(j * d, (j + 1) * d))
        linear(f"block_{i}/attention/out", block.out)
        linear(f"block_{i}/mlp/up", block.up)
        linear(f"block_{i}/mlp/down", block.down)
        norm(f"block_{i}/norm1", block.norm1)
        norm(f"block_{i}/norm2", block.norm2)
    norm("norm", model.norm)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
