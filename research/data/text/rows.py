"""Tables of texts, row by row: CSV, TSV, JSON Lines and Parquet.

A CSV file is read as RFC 4180 says, strictly: a field with a comma, a quote or a line break stands in double quotes. A
TSV file has no quotes, as its media type says: a field holds neither tab nor line break. Both begin with the names of
the columns. A line of JSON Lines is an object. Text is UTF-8; a row that is not is told apart from those that are.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from research.data.text.files import TextError, decoded
from research.errors import UserError, UserErrors

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_LISTED = 10
_LINE = re.compile(rb"\r\n|\n|\r")


class Row(NamedTuple):
    """A row of a table."""

    number: int  # of its first line, from 1; of a Parquet file its own
    where: str  # the file and the line, for messages
    values: dict[str, Any]
    broken: str = ""  # how it is not UTF-8; `values` may then hold nothing


class Rows(NamedTuple):
    """A table."""

    columns: list[str]  # of JSON Lines those of the first line
    rows: list[Row]


def read_rows(path: Path) -> Rows:
    """Reads a table.

    Raises:
      UserErrors: the lines that are no rows, up to ten, then their number; or the file is empty or cannot be read.
    """
    read: dict[str, Callable[[Path], Rows]] = {
        ".csv": lambda p: _separated(p, ","),
        ".tsv": lambda p: _separated(p, "\t"),
        ".jsonl": _json_lines,
        ".parquet": _parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in read:
        raise UserError(
            f"config.data.path={path}: not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        )
    try:
        if not path.stat().st_size:
            raise UserError(f"{path}: the file is empty")
        found = read[suffix](path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not found.rows:
        raise UserError(f"{path}: the table has no rows")
    return found


def some(errors: list[str], what: str) -> list[str]:
    """Returns the first ten of many lines, and how many more there are."""
    more = [f"{what}: {len(errors) - _LISTED} more lines are wrong"]
    return errors[:_LISTED] + more * (len(errors) > _LISTED)


def _separated(path: Path, delimiter: str) -> Rows:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    offset = path.stat().st_size - len(content)
    quoting: Any = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    # Bytes that are not UTF-8 become single surrogates, so that only the rows that hold them are lost.
    lines = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    starts = [0, *(match.end() for match in _LINE.finditer(content)), len(content)]
    columns: list[str] = []
    rows, errors = [], []
    limit = csv.field_size_limit(2**31 - 1)
    last = 0
    try:
        for fields in reader:
            first, last = last + 1, reader.line_num
            if not fields:
                continue
            where = f"{path} line {first}"
            broken = ""
            if any("\udc80" <= c <= "\udcff" for c in "".join(fields)):
                start, stop = starts[first - 1], starts[min(last, len(starts) - 1)]
                broken = _broken(content[start:stop], where, start + offset)
            if not columns:
                columns = _header(path, fields, broken)
            elif len(fields) != len(columns):
                errors.append(f"{where}: {len(fields)} fields, but the header has {len(columns)}")
            else:
                rows.append(Row(first, where, dict(zip(columns, fields, strict=True)), broken))
    except csv.Error as error:
        errors.append(f"{path} line {last + 1}: not CSV ({error})")
    finally:
        csv.field_size_limit(limit)
    if errors:
        raise UserErrors(some(errors, str(path)))
    return Rows(columns, rows)


def _header(path: Path, fields: list[str], broken: str) -> list[str]:
    if broken:
        raise UserError(broken)
    names = [name.strip() for name in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two columns are called '{twice[0]}'")
    return names


def _json_lines(path: Path) -> Rows:
    rows: list[Row] = []
    errors = []
    start = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        where, begin = f"{path} line {number}", start
        start += len(line) + 1
        if not line.strip():
            continue
        if broken := _broken(line, where, begin):
            rows.append(Row(number, where, {}, broken))
            continue
        try:
            values = json.loads(decoded(line, where))
        except json.JSONDecodeError as error:
            errors.append(f"{where}: not JSON ({error.msg}, character {error.pos}); mend the line")
            continue
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, a tower of lists
            reason = str(error).partition(";")[0]  # what comes then is advice to programmers
            errors.append(f"{where}: JSON that cannot be read ({reason}); mend the line")
            continue
        if isinstance(values, dict):
            rows.append(Row(number, where, values))
        else:
            errors.append(f'{where}: not an object such as {{"text": "...", "label": "good"}}')
    if all(row.broken for row in rows):  # the whole file is in another encoding
        errors += [f"{row.broken}; convert the file" for row in rows]
    if errors:
        raise UserErrors(some(errors, str(path)))
    return Rows(next((list(row.values) for row in rows if not row.broken), []), rows)


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        values = table.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason})") from error
    rows = [Row(i, f"{path} row {i}", row) for i, row in enumerate(values, 1)]
    return Rows(list(table.column_names), rows)


def _broken(content: bytes, where: str, start: int) -> str:
    try:
        decoded(content, where, start)
    except TextError as error:
        return str(error)
    return ""
