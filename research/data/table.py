"""A user's table of pictures: CSV or JSONL with path, label and perhaps split and group, checked line by line."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from research.data.source import PARTS, PARTS_WORDS, is_part
from research.errors import UserError, UserErrors, nearest

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?|nan|inf", re.IGNORECASE)
_LISTED = 10
_COLUMNS = ("path", "label", "split", "group")


class Row(NamedTuple):
    """One line of the table."""

    path: str
    label: int
    split: str
    group: str


class Table(NamedTuple):
    """The whole table."""

    class_names: tuple[str, ...]
    rows: list[Row]


def read_table(path: Path) -> Table:
    """Reads a table.

    Raises:
      UserErrors: every line that is wrong, up to ten, then their number.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"config.data.path={path}: neither a directory nor a .csv or .jsonl file")
    try:
        lines = list(_csv_lines(path) if path.suffix.lower() == ".csv" else _json_lines(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise UserError(
            f"{path}: the table is empty; it needs a line for each picture, with path and label"
        )
    declared = _declared(path.parent / "classes.txt")
    classes, numbers, rule = _number_labels([line["label"] for _, line in lines], declared)
    errors, rows = [], []
    seen: dict[str, int] = {}
    for number, line in lines:
        where = f"{path} line {number}"
        name, label, split = line["path"], line["label"], line["split"] or "train"
        if not name:
            errors.append(f"{where}: no path")
        elif name in seen:
            errors.append(f"{where}: {name} is already in line {seen[name]}; list it once")
        if not label:
            errors.append(f"{where}: no label")
        elif label not in numbers:
            errors.append(
                f"{where}: label '{label}' is out of range{nearest(label, numbers)}; {rule}"
            )
        if not is_part(split):
            errors.append(
                f"{where}: split '{split}'{nearest(split, PARTS)} is not one of {PARTS_WORDS}"
            )
        seen.setdefault(name, number)
        rows.append(Row(name, numbers.get(label, -1), split, line["group"]))
    if not errors and len(classes) < 2:
        errors.append(f"{path}: only one class, '{classes[0]}'; two or more are needed")
    if not errors and not any(row.split == "train" for row in rows):
        errors.append(f"{path}: no line has split 'train'")
    if errors:
        more = (
            [f"{path}: {len(errors) - _LISTED} more lines are wrong"]
            if len(errors) > _LISTED
            else []
        )
        raise UserErrors(errors[:_LISTED] + more)
    return Table(classes, rows)


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_columns(path, [name or "" for name in reader.fieldnames or []])
        for line in reader:
            yield (
                reader.line_num,
                {k: (line.get(k) or "").strip() for k in _COLUMNS},
            )


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number}: not JSON ({error})") from error
        if not isinstance(line, dict):
            raise UserError(
                f'{path} line {number}: not an object such as {{"path": "a.png", "label": "cat"}}'
            )
        _check_columns(f"{path} line {number}", list(line))
        values = {k: line.get(k) for k in _COLUMNS}
        yield number, {k: "" if v is None else str(v).strip() for k, v in values.items()}


def _check_columns(where: Any, names: list[str]) -> None:
    lines = [
        f"{where}: no column '{needed}'{nearest(needed, names)}; there: {', '.join(names) or 'nothing'}"
        for needed in ("path", "label")
        if needed not in names
    ]
    if lines:
        raise UserErrors(lines)


def _declared(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    names = [
        name.strip() for name in file.read_text(encoding="utf-8-sig").splitlines() if name.strip()
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{file}: the class '{twice[0]}' stands there twice")
    return tuple(names)


def _number_labels(
    labels: list[str], declared: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, int], str]:
    """Returns the class names, label as written -> number, and what is wrong with any other label."""
    whole = {label: int(label) for label in labels if label.isdecimal()}
    if declared:
        numbers = {label: number for label, number in whole.items() if number < len(declared)}
        numbers |= {name: i for i, name in enumerate(declared)}
        rule = f"classes.txt declares {len(declared)} classes, named there or numbered 0 to {len(declared) - 1}"
        return declared, numbers, rule
    numeric = [label for label in labels if _NUMBER.fullmatch(label)]
    if 2 * len(numeric) > len(labels):
        found = sorted(set(whole.values()))
        numbers = {label: found.index(number) for label, number in whole.items()}
        return tuple(map(str, found)), numbers, "the others are whole numbers from 0 on"
    names = sorted({label for label in labels if label and label not in numeric})
    return tuple(names), {name: i for i, name in enumerate(names)}, "the others are names"
