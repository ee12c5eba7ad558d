"""Pictures as memory-mapped arrays: written in blocks as a source hands them over, and mapped in no time later."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from research.data.pictures import fit
from research.data.source import Examples, Opened, Problem, Progress, in_order
from research.errors import UserError, UserErrors


def write_arrays(folder: Path, opened: Opened, what: str) -> None:
    """Reads a source and writes what can be read: images.npy, labels.npy, keys.npy, groups.npy and meta.json.

    Raises:
      UserErrors: nothing of some part could be read.
      UserError: a block is not uint8, or not of as many pictures as labels, keys and groups.
    """
    labels = [np.zeros(0, np.int32)]
    keys: list[str] = []
    groups: list[str] = []
    sizes: dict[str, int] = {}
    problems: list[Problem] = []
    progress = Progress(f"reading {what}", sum(opened.sizes.values()))
    with open(folder / "images.npy", "wb") as file:
        # Written again once their number is known: NumPy leaves room in it for a longer first axis.
        _write_header(file, (0, *opened.shape))
        for part in in_order(part for part, size in opened.sizes.items() if size):
            before = len(keys)
            for item in opened.read(part):
                if isinstance(item, Problem):
                    problems.append(item)
                    progress.step()
                    continue
                _check(item, f"{what}, {part} part, from example {len(keys) - before:,} on")
                file.write(_fitted(item, opened.shape).data)
                labels.append(np.asarray(item.labels, np.int32))
                keys += item.keys
                groups += item.groups
                progress.step(len(item.keys))
            sizes[part] = len(keys) - before
            if not sizes[part]:
                raise UserErrors(_none(part, problems))
        file.seek(0)
        _write_header(file, (len(keys), *opened.shape))
    progress.close()
    np.save(folder / "labels.npy", np.concatenate(labels))
    np.save(folder / "keys.npy", np.array(keys, str))
    np.save(folder / "groups.npy", np.array(groups, str))
    meta = {
        "class_names": opened.class_names,
        "sizes": sizes,
        "problems": [problem._asdict() for problem in problems],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def load_arrays(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what meta.json holds, and images (mapped, uint8 [N, H, W, C]), labels, keys and groups [N]."""
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("labels", "keys", "groups")}
    return meta, arrays | {"images": np.load(folder / "images.npy", mmap_mode="r")}


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def _check(block: Examples, where: str) -> None:
    pictures = block.pictures
    if pictures.dtype != np.uint8 or pictures.ndim != 4:
        raise UserError(
            f"{where}: pictures {pictures.dtype} {list(pictures.shape)}; they must be uint8 [K, H, W, C]"
        )
    counts = [len(each) for each in (pictures, block.labels, block.keys, block.groups)]
    if min(counts) != max(counts):
        raise UserError(
            "{}: {} pictures, {} labels, {} keys and {} groups; there must be as many of each".format(
                where, *counts
            )
        )


def _fitted(block: Examples, shape: tuple[int, int, int]) -> np.ndarray:
    pictures = block.pictures
    if len(pictures) and pictures.shape[1:] != shape:
        pictures = np.stack([fit(picture, *shape) for picture in pictures])
    return np.ascontiguousarray(pictures)


def _none(part: str, problems: list[Problem]) -> list[str]:
    lines = [problem.detail for problem in problems]
    last = f"{len(lines)} pictures of the {part} part: none of them can be read; mend them"
    return [*lines[:10], last]
