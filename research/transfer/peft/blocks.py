"""The adapter of one layer of ours, made of those of their modules."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from research.transfer.peft.pieces import Layer, Piece, by_module, factors_in
from research.transfer.peft.settings import scale_of


class Part(NamedTuple):
    """What one of their modules gives to a layer."""

    start: int  # among the layer's outputs
    a: np.ndarray  # [..., r], as ours lie
    b: np.ndarray  # [r, outputs of the part]
    m: np.ndarray | None  # [outputs of the part], absolute
    scale: float  # of a b


class Block(NamedTuple):
    """What their modules give to a layer, and the rank that this takes here."""

    parts: tuple[Part, ...]
    rank: int


def blocks_of(
    there: dict[str, Layer], factors: dict[str, dict[str, np.ndarray]], settings: dict[str, Any]
) -> dict[str, Block]:
    """Returns what an adapter of theirs gives to each layer that it gives something.

    Args:
      there: all layers.
      factors: module -> its 'A', 'B' and with DoRA 'm', of the shapes that go with the layers.
      settings: adapter_config.json.
    """
    modules = by_module(there)
    blocks = {}
    for path, layer in there.items():
        parts, start = [], 0
        for piece in layer.pieces:
            if given := factors.get(piece.module):
                part = _part(layer, piece, given, modules[piece.module], settings)
                parts += [part._replace(start=start)] if part else []
            start += piece.size
        if parts:
            blocks[path] = Block(tuple(parts), sum(x.a.shape[-1] for x in _distinct(parts)))
    return blocks


def joined(
    layer: Layer, block: Block, rank: int, scale: float, norms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lora_a, lora_b and the magnitudes (absolute), for a rank that may be more than it takes.

    Args:
      rank: directions beyond what there is are zero.
      scale: that a b will be multiplied by.
      norms: the magnitudes of what has none in the block.
    """
    distinct = _distinct(block.parts)
    a = np.zeros((*distinct[0].a.shape[:-1], rank), np.float32)
    b = np.zeros((rank, len(norms)), np.float32)
    m = np.array(norms)
    begin = 0
    for first in distinct:
        rows = slice(begin, begin + first.a.shape[-1])
        begin = rows.stop
        a[..., rows] = first.a
        for part in block.parts:
            if np.array_equal(part.a, first.a):
                columns = slice(part.start, part.start + part.b.shape[1])
                b[rows, columns] = part.b * np.float32(part.scale / scale)
                if part.m is not None:
                    m[columns] = part.m
    return a, b, m


def _part(
    layer: Layer,
    piece: Piece,
    given: dict[str, np.ndarray],
    owners: list[Layer],
    settings: dict[str, Any],
) -> Part | None:
    """What a module gives; None where it is empty, as one of several blocks may be."""
    a, b = factors_in(layer.kind, given["A"], given["B"])
    outputs = slice(piece.start, piece.start + piece.size)
    b, rank, r = b[:, outputs], a.shape[-1], settings["r"]
    m = given["m"].ravel()[outputs] if "m" in given else None
    times = scale_of(settings, piece.module, rank)
    if len(owners) > 1 and rank == r * len(owners):
        number = [owner.path for owner in owners].index(layer.path)
        inside = slice(number * r, (number + 1) * r)
        if not np.any(np.delete(b, np.r_[inside], axis=0)):  # the blocks that export writes
            a, b = a[..., inside], b[inside]
            if not np.any(a) and not np.any(b):
                return None
    return Part(0, a, b, m, times)


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """The parts without those whose A another has."""
    kept: list[Part] = []
    for part in parts:
        if not any(np.array_equal(part.a, other.a) for other in kept):
            kept.append(part)
    return kept
