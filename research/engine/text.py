"""Figures as people read them, on a terminal and in the report."""

import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO


def number(value: Any) -> str:
    """Four significant digits of a float ('0.8912', '12,345', '1.2e-05'); integers whole."""
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if float(value).is_integer() and not isinstance(value, float):
        return f"{int(value):,}"
    value = float(value)
    if math.isfinite(value) and 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def figure(value: float) -> str:
    """Four decimals where that says enough ('0.8910'), so that a column of figures lines up."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else number(value)


def duration(seconds: float) -> str:
    """'0:42', '12:05', '3:01:07', '2 d 3:01:07'."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    clock = f"{h}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
    return f"{days} d {clock}" if days else clock


def figures(metrics: dict[str, float], most: int = 6) -> str:
    """'loss 0.312  accuracy 0.89': the loss first, no interval ends, at most `most` of them."""
    names = [name for name in metrics if not name.endswith(("_low", "_high"))]
    names.sort(key=lambda name: name != "loss")
    return "  ".join(f"{name} {number(metrics[name])}" for name in names[:most])


def is_terminal(stream: TextIO) -> bool:
    """True where lines can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    stream: TextIO | None = None,
) -> None:
    """Prints a table: drawn on a terminal, aligned columns of plain text elsewhere.

    A column that holds nothing but numbers is aligned right.
    """
    stream = stream or sys.stdout
    rows = [tuple(row) for row in rows]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    cells = [[number(cell) for cell in row] for row in rows]
    if is_terminal(stream):
        _print_rich(header, cells, right, title, stream)
        return
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    if title:
        print(title, file=stream)
    for line in (header, ["-" * width for width in widths], *cells):
        columns = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        )
        print("  ".join(columns).rstrip(), file=stream)
    stream.flush()


def figure_table(figures: dict[str, float]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows for `print_table`: each 'split/name' beside its 95% interval."""
    rows: list[tuple[str, ...]] = []
    for name, value in figures.items():
        if "/" in name and not name.endswith(("_low", "_high")):
            low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
            ends = "" if low is None or high is None else f"{figure(low)} to {figure(high)}"
            rows.append((name, figure(value), ends))
    return ("figure", "value", "95% interval"), rows


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _print_rich(header, cells, right, title, stream) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for name, to_right in zip(header, right, strict=True):
        table.add_column(Text(name), justify="right" if to_right else "left")
    for row in cells:
        table.add_row(*map(Text, row))  # Text: a cell such as '[red]' is no markup
    Console(file=stream).print(table)
