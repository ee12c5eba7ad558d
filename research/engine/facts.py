"""A nested report as tables: what is alike stands in one table, so that it reads at a glance."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 50  # rows shown of a list


class Table(NamedTuple):
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of a report: single values first, then a table for each mapping, then what is listed.

    A mapping of mappings gives a row for each of them, with a column for each key; of a longer list the first rows are
    shown, and how many there are.
    """
    return list(_tables("", content))


def _tables(title: str, content: Mapping[str, Any]) -> Iterator[Table]:
    single = {name: value for name, value in content.items() if _is_single(value)}
    alike = {name: value for name, value in content.items() if isinstance(value, Mapping) and value}
    lists = {
        name: value
        for name, value in content.items()
        if not _is_single(value) and not isinstance(value, Mapping)
    }
    flat = bool(alike) and all(map(_is_row, alike.values()))
    if single:
        yield Table(title, ("", "value"), list(single.items()))
    if title and flat:
        columns = list(dict.fromkeys(key for row in alike.values() for key in _singles(row)))
        rows = [(name, *(row.get(key, "") for key in columns)) for name, row in alike.items()]
        yield Table(title, ("", *columns), rows)
    for name, value in alike.items():
        under = f"{title}, {name}" if title else name
        inner = (
            {key: v for key, v in value.items() if not _is_single(v)} if title and flat else value
        )
        yield from _tables(under, inner)
    for name, values in lists.items():
        yield _listed(f"{title}, {name}" if title else name, list(values))


def _listed(title: str, values: list[Any]) -> Table:
    shown = values[:MOST]
    title += f" (the first {MOST} of {len(values):,})" if len(values) > MOST else ""
    if all(isinstance(value, Mapping) for value in shown):
        columns = list(dict.fromkeys(key for row in shown for key in row))
        return Table(title, columns, [[row.get(key, "") for key in columns] for row in shown])
    return Table(title, ("value",), [[value] for value in shown])


def _is_single(value: Any) -> bool:
    return not value or isinstance(value, str) or not isinstance(value, Mapping | list | tuple)


def _is_row(value: Mapping[str, Any]) -> bool:
    """Whether a mapping holds no mapping of its own, and something single."""
    return bool(_singles(value)) and not any(isinstance(v, Mapping) and v for v in value.values())


def _singles(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in value.items() if _is_single(v) and not isinstance(v, list | tuple)}
