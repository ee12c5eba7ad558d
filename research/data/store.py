"""The data of a run: found, built, cleaned and split once, then only mapped into memory.

    store = prepare(config.data)
    store.images[store.splits["train"][:10]]  # uint8 [10, H, W, C]

The folder SOURCE-<hash> of the cache (see prepared.py) holds the pictures as arrays, digests and near duplicates;
the shape of the pictures is part of its name. Below it lie the splits, and TFDS records once they were asked for.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.data import clean, prepared
from research.data.arrays import load_arrays, write_arrays
from research.data.duplicates import Findings, find
from research.data.source import Source, in_order
from research.errors import UserErrors

_FORMAT = "2"  # of the folders' content


class Store(NamedTuple):
    """N pictures and what is known of them."""

    images: (
        np.ndarray
    )  # memory-mapped uint8 [N, H, W, C]; what was dropped is there too, but in no split
    labels: np.ndarray  # int32 [N]
    keys: np.ndarray  # str [N] relative path, or 'train/00017'
    class_names: tuple[str, ...]
    splits: dict[
        str, np.ndarray
    ]  # 'train', 'validation', 'test', 'test_NAME' -> int64 indices into images, sorted
    mean: np.ndarray  # float32 [C] with pixels from 0 to 1: data.mean, or the training split's own
    std: np.ndarray  # float32 [C]
    fingerprints: dict[str, str]  # 'data' and each split -> sha256
    report: dict[str, Any]  # what data_report.json holds


def prepare(data) -> Store:
    """Returns the data that `config.data` describes; the second call maps what the first one built.

    Raises:
      UserError: a mistake in the config or in the user's files, or several of them.
    """
    source, folder = _built(data)
    meta, arrays = _load(folder)
    order = in_order(meta["sizes"])
    ends = np.cumsum([meta["sizes"][part] for part in order])
    whole = np.split(np.arange(len(arrays["labels"])), ends[:-1])
    findings = Findings(*(arrays[name] for name in Findings._fields))
    pool = clean.Pool(
        source.place,
        arrays["keys"],
        arrays["labels"],
        tuple(meta["class_names"]),
        dict(zip(order, whole, strict=True)),
        findings,
        meta["problems"],
        arrays["groups"],
    )
    cut = prepared.splits_folder(
        folder,
        data,
        {},
        lambda temporary: _write_splits(temporary, data, pool, arrays["images"]),
    )
    return _normalised(_store(pool, arrays["images"], cut), data)


def record_source(data) -> Any:
    """Returns the same pictures as a random-access source of records, for Grain.

    Record i is dict(image uint8 [H, W, C], label int, key and group bytes) of picture i of `Store.images`.
    """
    from research.data.records import open_records  # TFDS is imported only where records are read

    return open_records(_built(data)[1])


def _built(data) -> tuple[Source, Path]:
    """Finds the source and sees to it that its folder is there."""
    source, options = prepared.locate(data, "locate")
    state = [
        _FORMAT,
        source.name,
        source.version,
        source.fingerprint,
        data.image_size,
        data.channels,
        options,
    ]
    build = lambda temporary: _write_source(temporary, source)  # noqa: E731
    return source, prepared.source_folder(data, source, state, build)


def _write_source(folder: Path, source: Source) -> None:
    write_arrays(folder, source.open(), source.name)
    findings = find(np.load(folder / "images.npy", mmap_mode="r"))
    np.savez(folder / "findings.npz", **findings._asdict())


def _load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with prepared.reading(folder):
        meta, arrays = load_arrays(folder)
        with np.load(folder / "findings.npz") as findings:
            return meta, arrays | dict(findings)


def _write_splits(folder: Path, data, pool: clean.Pool, images: np.ndarray) -> None:
    judged = prepared.cut(data, pool)
    mean, std = _moments(images, judged.splits["train"])
    prints = prepared.fingerprints(pool, judged.splits, [list(images.shape[1:]), pool.class_names])
    report = {
        "name": data.name,
        "place": pool.place,
        "shape": list(images.shape[1:]),
        "sizes": {name: len(i) for name, i in judged.splits.items()},
        "classes": clean.class_counts(judged.splits, pool.labels, pool.class_names),
        "mean": _rounded(mean),
        "std": _rounded(std),
        "found": judged.found,
        "fingerprints": prints,
    }
    arrays: dict[str, Any] = {"mean": mean, "std": std, **judged.splits}
    np.savez(folder / "splits.npz", **arrays)
    (folder / "report.json").write_text(json.dumps(report))


def _moments(images: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation for each channel, float32 [C], pixels from 0 to 1; exact, from counts of values."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(indices), 1024):
        block = images[indices[start : start + 1024]]
        for c in range(channels):
            counts[c] += np.bincount(block[..., c].ravel(), minlength=256)
    values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(((values - mean[:, None]) ** 2 * weights).sum(1))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _store(pool: clean.Pool, images: np.ndarray, folder: Path) -> Store:
    with prepared.reading(folder):
        report = json.loads((folder / "report.json").read_text())
        with np.load(folder / "splits.npz") as saved:
            arrays = dict(saved)
    mean, std = arrays.pop("mean"), arrays.pop("std")
    prints = report["fingerprints"]
    return Store(
        images, pool.labels, pool.keys, pool.class_names, arrays, mean, std, prints, report
    )


def _normalised(store: Store, data) -> Store:
    """Puts the numbers of data.mean and data.std, where there are any, in the place of the training split's own."""
    channels, given, errors = store.images.shape[-1], {}, []
    for key in ("mean", "std"):
        values = data.get(key, ())
        if not values:
            continue
        given[key] = np.array(values, np.float32)
        if len(values) != channels:
            errors.append(
                f"config.data.{key} is {tuple(values)}, but the pictures have {channels} channel(s): give a number "
                "for each, () for the training split's own, or set config.data.channels"
            )
    if errors:
        raise UserErrors(errors)
    shown = {key: _rounded(values) for key, values in given.items()}
    words = {
        key: f"data.{key}" if key in given else "the training split" for key in ("mean", "std")
    }
    return store._replace(
        mean=given.get("mean", store.mean),
        std=given.get("std", store.std),
        report=store.report | shown | {"normalised_by": words},
    )


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]
