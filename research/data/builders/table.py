"""A user's own table of texts: CSV, TSV, JSON Lines or Parquet.

`data.path` is a file, or a folder with train.csv, test.csv and perhaps validation.csv and test_NAME.csv (or .tsv,
.jsonl, .parquet). Options name the columns; '' is none:

    text_column, label_column      a text and its class: a name or a whole number
    prompt_column, answer_column   without classes: a chat of one question and one answer
    messages_column                without classes: a chat, a list of {"role": ..., "content": ...}
    split_column                   train, validation, test or test_NAME; where it is empty: train
    group_column                   texts of one group never lie in different splits

Without classes, what is there is taken, messages before prompts before texts. A key is the file and the line,
'train/0000012'.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from research.data.layout import SPELLINGS, given_path
from research.data.source import PARTS, PARTS_WORDS, is_part, is_test, stamp
from research.data.text.rows import SUFFIXES, Row, read_rows, some
from research.data.text.source import Messages, TextExample, TextOpened, TextProblem, TextSource
from research.errors import UserError, UserErrors, nearest

VERSION = "1"
_FRACTION = re.compile(
    r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?|nan|[+-]?inf", re.IGNORECASE
)
_HINT = f"Give it as --config.data.path=FILE ({', '.join(SUFFIXES)})"
_ROLES = '{"role": "user", "content": "..."}'


class _Columns(NamedTuple):
    """The names of columns; '' is none."""

    text: str
    label: str
    split: str
    group: str
    prompt: str
    answer: str
    messages: str


def locate_text(
    data,
    *,
    text_column: str = "text",
    label_column: str = "label",
    split_column: str = "",
    group_column: str = "",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    messages_column: str = "messages",
) -> TextSource:
    """Returns the source after looking at names and sizes of files only.

    Raises:
      UserError: the path is missing, or is neither such a file nor a folder of such files.
    """
    path = given_path(data, _HINT)
    files = _part_files(path) if path.is_dir() else {"train": path}
    wrong = [p for p in files.values() if p.suffix.lower() not in SUFFIXES]
    if wrong:
        raise UserError(f"config.data.path={wrong[0]}: not a {', '.join(SUFFIXES)} file")
    columns = _Columns(
        text_column,
        label_column,
        split_column,
        group_column,
        prompt_column,
        answer_column,
        messages_column,
    )
    return TextSource(
        "table",
        VERSION,
        str(path),
        stamp(files.values(), path.parent),
        lambda labelled: _open(files, columns, labelled),
    )


def _part_files(path: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES):
        part = SPELLINGS.get(file.stem, file.stem if is_test(file.stem) else "")
        if part in files:
            raise UserError(
                f"config.data.path={path}: both {files[part].name} and {file.name}; keep one"
            )
        if part:
            files[part] = file
    if "train" not in files:
        wanted = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise UserError(
            f"config.data.path={path}: holds none of {wanted}; name a file, or call it so"
        )
    return files


def _open(files: dict[str, Path], columns: _Columns, labelled: bool) -> TextOpened:
    examples, errors = [], []
    for part, file in files.items():
        found = read_rows(file)
        kind = _kind(file, found.columns, columns, labelled)
        for row in found.rows:
            try:
                examples.append(_example(row, file, part, columns, kind, labelled))
            except UserError as error:
                errors.append(str(error))
    if errors:
        raise UserErrors(some(errors, str(next(iter(files.values())).parent)))

    def read() -> Iterator[TextExample | TextProblem]:
        return iter(examples)

    return TextOpened((), len(examples), read)


def _kind(file: Path, there: list[str], columns: _Columns, labelled: bool) -> str:
    """What of the table is read: 'text', 'prompt' or 'messages'."""
    needed = [columns.split, columns.group, *([columns.text, columns.label] if labelled else [])]
    errors = [_missing(file, name, there) for name in needed if name and name not in there]
    if not errors and labelled:
        return "text"
    if not errors and columns.messages in there:
        return "messages"
    if not errors and columns.prompt in there and columns.answer in there:
        return "prompt"
    if not errors and columns.text not in there:
        also = f"nor '{columns.prompt}' and '{columns.answer}', nor '{columns.messages}'"
        errors = [_missing(file, columns.text, there, also)]
    if errors:
        raise UserErrors(errors)
    return "text"


def _missing(where: Any, name: str, there: list[str], also: str = "") -> str:
    said = f"no column '{name}'{nearest(name, there)}" + (f", {also}" if also else "")
    return f"{where}: {said}; there: {', '.join(there) or 'nothing'}; config.data.text_column and the like name others"


def _example(
    row: Row, file: Path, part: str, columns: _Columns, kind: str, labelled: bool
) -> TextExample | TextProblem:
    key = f"{file.stem}/{row.number:07d}"
    label = _label(row, columns.label) if labelled and not row.broken else None
    if row.broken:
        return TextProblem(key, row.broken, None, split=part)
    split = part
    if columns.split and (said := _word(row, columns.split)):
        split = SPELLINGS.get(said, said)
        if not is_part(split):
            raise UserError(
                f"{row.where}: split '{said}'{nearest(said, PARTS)} is not one of {PARTS_WORDS}"
            )
    group = _word(row, columns.group) if columns.group else ""
    if kind == "messages":
        return TextExample(key, _messages(row, columns.messages), None, split, group)
    if kind == "prompt":
        roles = {"user": columns.prompt, "assistant": columns.answer}
        chat = [{"role": role, "content": _text(row, name)} for role, name in roles.items()]
        return TextExample(key, chat, None, split, group)
    return TextExample(key, _text(row, columns.text), label, split, group)


def _text(row: Row, name: str) -> str:
    if name not in row.values:
        raise UserError(_missing(row.where, name, list(row.values)))
    value = row.values[name]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{row.where}: column '{name}' holds {_short(value)}, which is no text")
    return value or ""


def _word(row: Row, name: str) -> str:
    if name not in row.values:
        raise UserError(_missing(row.where, name, list(row.values)))
    value = row.values[name]
    return "" if value is None else str(value).strip()


def _label(row: Row, name: str) -> str:
    word = _word(row, name)
    if not word:
        raise UserError(f"{row.where}: no label in column '{name}'")
    if isinstance(row.values[name], float) or _FRACTION.fullmatch(word):
        raise UserError(
            f"{row.where}: label {word} is a fraction; a class is a name or a whole number"
        )
    return word


def _messages(row: Row, name: str) -> Messages:
    if name not in row.values:
        raise UserError(_missing(row.where, name, list(row.values)))
    value = row.values[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{row.where}: column '{name}' is not JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{row.where}: column '{name}' holds {_short(value)}, not a list of {_ROLES}"
        )
    for message in value:
        keys = ("role", "content")
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in keys):
            raise UserError(f"{row.where}: column '{name}' holds {_short(message)}, not {_ROLES}")
    if value[-1]["role"] != "assistant":
        raise UserError(
            f"{row.where}: the last message is of role '{value[-1]['role']}', not 'assistant'; nothing is learnt of it"
        )
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
