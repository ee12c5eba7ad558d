"""Which of PEFT's modules a layer of ours is, and how the factors of an adapter lie in either.

    layer              ours: lora_a, lora_b       PEFT's: lora_A, lora_B          its magnitudes
    Dense              [C, R], [R, D]             [R, C], [D, R]                  [D]
    Conv               [K, N, C, R], [R, D]       [R, C, K, N], [D, R, 1, 1]      [1, D, 1, 1]
    Embed              [V, R], [R, D]             lora_embedding_A [R, V], _B [D, R]  [D]

Where several of their modules make one layer here (query, key and value of a ViT: 'qkv'), they share A, and B is cut
by outputs. Where one of theirs makes several here (GPT-2's c_attn), the factors go side by side: A of rank n R, and B
with a block for each. Both compute the same as before, and DoRA too, whose norms are of single outputs.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from research.transfer.tables import Entry, Naming, Shapes, entries, natural

NAMES = {"Dense": "lora_{}.weight", "Conv": "lora_{}.weight", "Embed": "lora_embedding_{}"}
MAGNITUDE = "lora_magnitude_vector"
CALLED = {"A": "lora_A", "B": "lora_B", "m": MAGNITUDE}
TIED = "embed"  # the layer that may be the output layer too
PREFIX = "base_model.model."  # of every array in a file


class Piece(NamedTuple):
    """Outputs of one of their modules that are outputs of a layer of ours, in a row."""

    module: str
    start: int  # among the module's outputs
    size: int


class Layer(NamedTuple):
    """A layer of ours that can have an adapter in PEFT."""

    path: str
    kernel: str  # its path
    kind: str  # a key of NAMES
    transposed: bool  # their kernel lies as ours does, inputs first (GPT-2's Conv1D)
    pieces: tuple[Piece, ...]  # in the order of its outputs


def layers(naming: Naming, shapes: Shapes, options: dict[str, Any]) -> dict[str, Layer]:
    """Returns the layers of a model that PEFT could adapt, by path.

    Args:
      shapes: of the model's parameters; those of adapters among them say of what kind a layer is.
    """
    plain = {path: shape for path, shape in shapes.items() if "/lora_" not in path}
    found = {}
    for path, entry in entries(naming, plain, options).items():
        layer, _, leaf = path.rpartition("/")
        kind = _kind(leaf, plain[path], shapes.get(f"{layer}/lora_a"))
        if kind and all(name.endswith(".weight") for name in entry.theirs):
            found[layer] = Layer(
                layer, path, kind, kind == "Dense" and entry.axes is None, _pieces(entry, plain)
            )
    return found


def by_module(there: dict[str, Layer]) -> dict[str, list[Layer]]:
    """Returns the layers that share a module of theirs, in the order of its outputs."""
    found: dict[str, list[tuple[int, Layer]]] = {}
    for layer in there.values():
        for piece in layer.pieces:
            found.setdefault(piece.module, []).append((piece.start, layer))
    return {
        module: [layer for _, layer in sorted(pairs, key=lambda pair: pair[0])]
        for module, pairs in found.items()
    }


def factors_out(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns PEFT's lora_A and lora_B of ours."""
    if kind == "Conv":
        return a.transpose(3, 2, 0, 1), b.T[:, :, None, None]
    return a.T, b.T


def factors_in(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ours of PEFT's: the inverse of `factors_out`."""
    if kind == "Conv":
        return a.transpose(2, 3, 1, 0), b[:, :, 0, 0].T
    return a.T, b.T


def shapes_out(kind: str, kernel: tuple[int, ...], outputs: int, rank: int) -> Shapes:
    """Returns the shapes of PEFT's 'A', 'B' and 'm' for one of its modules.

    Args:
      kernel: the shape of a kernel of ours, of which only the inputs count.
    """
    ones = (1, 1) if kind == "Conv" else ()
    inputs = (kernel[2], *kernel[:2]) if kind == "Conv" else kernel[:-1]
    m = (1, outputs, 1, 1) if kind == "Conv" else (outputs,)
    return {"A": (rank, *inputs), "B": (outputs, rank, *ones), "m": m}


def column_norms(kernel: np.ndarray) -> np.ndarray:
    """||W|| over all axes but the last, float64 [D]."""
    wide = np.asarray(kernel, np.float64)
    return np.sqrt(np.square(wide).sum(axis=tuple(range(wide.ndim - 1))))


def tied(shapes: Shapes) -> bool:
    """Returns whether the embedding of a language model is its output layer too."""
    return "embed/embedding" in shapes and "head/kernel" not in shapes


def some(names: Iterable[str]) -> str:
    """A few of the names, in a natural order."""
    names = sorted(names, key=natural)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _kind(leaf: str, shape: tuple[int, ...], a: tuple[int, ...] | None) -> str | None:
    if leaf == "embedding":
        return "Embed"
    if leaf != "kernel":
        return None
    if len(shape) == 2:
        return "Dense"
    # A depthwise convolution's A is a matrix, and PEFT has no such form.
    return "Conv" if len(shape) == 4 and (a is None or len(a) == 4) else None


def _pieces(entry: Entry, shapes: Shapes) -> tuple[Piece, ...]:
    size = shapes[entry.ours][-1] // len(entry.theirs)
    start = entry.part[0] * size if entry.part else 0
    return tuple(Piece(name.removesuffix(".weight"), start, size) for name in entry.theirs)
