"""A folder for each class, in folders train, validation, test and test_NAME or not: whose files belong to what."""

import os
from pathlib import Path
from typing import NamedTuple

from research.data.source import in_order, is_test
from research.errors import UserError, UserErrors, nearest

SPELLINGS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
}


class Entry(NamedTuple):
    """One file of the user's."""

    path: Path
    key: str  # the path relative to data.path
    label: int
    group: str = ""


class Listing(NamedTuple):
    """All files of the user's, by part."""

    class_names: tuple[str, ...]
    parts: dict[str, list[Entry]]


class Kind(NamedTuple):
    """What the files are."""

    many: str  # 'pictures'
    instead: str  # what to do, if not to make a folder for each class


def given_path(data, hint: str) -> Path:
    """Returns the absolute `data.path`.

    Raises:
      UserError: it is empty, and `hint` says how to give it; or there is no such thing.
    """
    if not data.path:
        raise UserError(f"config.data.name={data.name}: which one? {hint}")
    path = Path(data.path).expanduser().absolute()
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"config.data.path={path}: there is no such file or directory{nearest(path.name, beside)}"
        )
    return path


def part_folders(path: Path) -> dict[str, Path]:
    """Returns part -> its folder; {} where nothing in `path` is called as a part is.

    Raises:
      UserError: there are others, but no train.
    """
    folders = _subfolders(path)
    parts = {SPELLINGS[f.name]: f for f in folders if f.name in SPELLINGS}
    if "train" in parts:
        parts |= {f.name: f for f in folders if is_test(f.name)}
    elif parts:
        raise UserError(
            f"config.data.path={path}: has a folder '{next(iter(parts.values())).name}', but none named 'train'"
        )
    return parts


def list_folder(path: Path, suffixes: tuple[str, ...], kind: Kind) -> Listing:
    """Lists the files of each class and part.

    Raises:
      UserErrors: everything that is laid out wrong.
    """
    parts = part_folders(path) or {"train": path}
    classes = tuple(f.name for f in _subfolders(parts["train"]))
    errors = [] if classes else [_no_classes(parts["train"], kind)]
    listed: dict[str, list[Entry]] = {}
    for part in in_order(parts):
        listed[part] = []
        for folder in _subfolders(parts[part]):
            files = [] if folder.name not in classes else files_in(folder, suffixes)
            if folder.name not in classes:
                errors.append(
                    f"{folder}: there is no class '{folder.name}' in train{nearest(folder.name, classes)}"
                )
            elif not files:
                errors.append(
                    f"{folder}: no {kind.many} in it{_others(folder)}; they end in {', '.join(suffixes)}"
                )
            label = classes.index(folder.name) if folder.name in classes else -1
            listed[part] += [Entry(p, p.relative_to(path).as_posix(), label) for p in files]
        if classes and not listed[part] and not errors:
            errors.append(f"{parts[part]}: no class folders in it; fill it or remove it")
    if len(classes) == 1:
        errors.append(
            f"config.data.path={path}: only one class folder, '{classes[0]}'; two or more are needed"
        )
    if errors:
        raise UserErrors(errors)
    return Listing(classes, listed)


def check_names(listing: Listing) -> None:
    """Records hold keys as UTF-8; a name that is not could be written nowhere."""
    keys = [entry.key for entries in listing.parts.values() for entry in entries]
    wrong = [key for key in keys if any("\udc80" <= c <= "\udcff" for c in key)]
    if wrong:
        raise UserErrors(
            f"{os.fsencode(key)!r}: the name is not UTF-8; rename it" for key in wrong[:10]
        )


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Returns the files below a folder that end so, sorted, without hidden ones."""
    found = []
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(base, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")
        ]
    return sorted(found)


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _no_classes(path: Path, kind: Kind) -> str:
    if not any(path.iterdir()):
        return f"config.data.path={path}: the folder is empty; it needs a folder for each class, with {kind.many} in it"
    mend = f"put the {kind.many} into a folder for each class, or {kind.instead}"
    return f"config.data.path={path}: no class folders in it; {mend}"


def _others(folder: Path) -> str:
    endings = sorted({p.suffix or p.name for p in folder.rglob("*") if p.is_file()})
    return f" (only {', '.join(endings[:5])})" if endings else ""
