"""What the stores of pictures and of texts share: the source is found, and what was built of it is cleaned and cut.

Two folders in the cache make up prepared data. SOURCE-<hash> holds what the source's files decide; below it
splits-<hash> holds what the policies, fractions and the seed decide. Each is built beside its place and renamed, so
it is whole or not there.
"""

import hashlib
import importlib
import json
import pkgutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from research.config import find_builder, options_of
from research.data import cache, clean, splits
from research.errors import UserError, UserErrors

_KINDS = {"locate": "pictures", "locate_text": "texts"}


def locate(data, function: str) -> tuple[Any, dict[str, Any]]:
    """Returns the source that `config.data` names, and the builder's options.

    Args:
      function: of the builder: 'locate' for pictures, 'locate_text' for texts.

    Raises:
      UserError: there is no such builder, or it has none of that kind, or the source is not there.
    """
    try:
        builder = find_builder(data.name)
    except UserError as error:
        raise UserError(f"config.data.name: {error}") from error
    if not hasattr(builder, function):
        raise _wrong_kind(data.name, function)
    found = getattr(builder, function)
    options = {name: data.get(name, default) for name, default in options_of(found).items()}
    return found(data, **options), options


def source_folder(data, source: Any, state: list[Any], build: Callable[[Path], None]) -> Path:
    """Returns the folder of what the source's files decide, after `build(empty folder)` if it is not there yet."""
    plain = source.name.replace(":", "-").replace("/", "-")
    return cache.built(cache.root(data.cache_dir) / f"{plain}-{hashed(state)}", build)


def splits_folder(folder: Path, data, more: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Returns the folder below it of what the policies, the fractions, the seed and `more` decide."""
    wanted = {
        "version": clean.VERSION,
        "seed": data.split_seed,
        "validation": data.validation_fraction,
        "test": data.test_fraction,
        "clean": {kind: data.clean[kind] for kind in sorted(data.clean)},
        **more,
    }
    return cache.built(folder / f"splits-{hashed(wanted)}", build)


def cut(data, pool: clean.Pool) -> clean.Judged:
    """Cleans a pool and cuts its splits as `config.data` says.

    Raises:
      UserErrors: a finding whose policy is 'error', a class too small to be split, nothing left to train on.
    """

    def make(parts: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        fractions = {"test": data.test_fraction, "validation": data.validation_fraction}
        cuts = [name for name, fraction in fractions.items() if fraction and name not in parts]
        classes, digests = len(pool.class_names), pool.findings.digests
        counts = np.bincount(pool.labels[parts["train"]], minlength=classes)
        unread = np.array([p["label"] for p in pool.problems if p["label"] >= 0], np.int32)
        before = np.bincount(np.concatenate([pool.labels, unread]), minlength=classes)
        errors = splits.too_small(counts, before, pool.class_names, cuts, pool.place, pool.words)
        errors += splits.group_errors(parts, cuts, pool, pool.words)
        made = splits.make_splits(
            parts,
            pool.labels,
            digests,
            pool.keys,
            data.split_seed,
            fractions["validation"],
            fractions["test"],
            pool.groups,
            pool.pinned,
        )
        return made, errors

    judged = clean.judge(pool, dict(data.clean), make)
    if judged.errors:
        raise UserErrors(judged.errors)
    if "train" not in judged.splits:
        raise UserError(
            f"{pool.place}: cleaning left no {pool.words.one} to train on; look at the data, or at config.data.clean"
        )
    return judged


def fingerprints(pool: clean.Pool, parts: dict[str, np.ndarray], head: list[Any]) -> dict[str, str]:
    """Returns the sha256 of each split, and as 'data' that of all of them and of what stands in `head`."""
    prints = {
        name: splits.fingerprint(pool.keys[i], pool.labels[i], pool.findings.digests[i])
        for name, i in parts.items()
    }
    content = json.dumps([*head, prints], sort_keys=True)
    return prints | {"data": hashlib.sha256(content.encode()).hexdigest()}


def hashed(state: Any) -> str:
    """Returns 16 letters that name a state, in the names of folders."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Tells of files of the cache that are not as they were written.

    Raises:
      UserError: which folder to delete.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{folder}: the prepared data is damaged ({error}); delete this folder, it is built again"
        ) from error


def _wrong_kind(name: str, function: str) -> UserError:
    package = importlib.import_module("research.data.builders")
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    able = ["tfds:NAME" if n == "tfds" else n for n in names if hasattr(find_builder(n), function)]
    wanted = _KINDS[function]
    other = next(kind for kind in _KINDS.values() if kind != wanted)
    return UserError(
        f"config.data.name={name} gives {other}, but the task reads {wanted}: name one of {', '.join(able)}, "
        f"or a task of {other} as config.task.name"
    )
