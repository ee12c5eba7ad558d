"""The table of what becomes of each parameter: parameters.txt, the log, and what a checkpoint is compared by."""

import io
import math
from typing import Any, NamedTuple

import jax
import optax

from research.engine.state import named_leaves, split
from research.engine.text import print_table
from research.groups import Treatment
from research.task import Params


class Row(NamedTuple):
    """What the optimizer does to a parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    treatment: Treatment
    optimizer_bytes: int  # of state kept for it, once it is trained

    @property
    def trainable(self) -> bool:
        return self.treatment.start is not None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def parameter_table(
    params: Params, tx: optax.GradientTransformation, table: dict[str, Treatment]
) -> list[Row]:
    """Returns a row for each parameter, in the order of the tree.

    Args:
      params: arrays or their shapes.
      tx: the optimizer, with everything in it that is ever trained. A state array belongs to the parameter whose path
        its own path ends with (the longest such); step counts belong to none.
      table: what becomes of each parameter.
    """
    leaves = named_leaves(params)
    trained, _ = split(params, lambda path: table[path].start is not None)
    state_bytes = dict.fromkeys(leaves, 0)
    for path, leaf in named_leaves(jax.eval_shape(tx.init, trained)).items():
        parts = path.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        owner = next((end for end in ends if end in leaves), None)
        if owner is not None:
            state_bytes[owner] += leaf.size * leaf.dtype.itemsize
    return [
        Row(path, tuple(leaf.shape), str(leaf.dtype), table[path], state_bytes[path])
        for path, leaf in leaves.items()
    ]


def format_table(rows: list[Row]) -> str:
    """Returns the table as aligned text, with the totals in its last lines."""
    out = io.StringIO()
    cells = [
        (
            row.path,
            "x".join(map(str, row.shape)) or "scalar",
            row.dtype,
            row.treatment.group,
            _when(row.treatment),
            f"{row.treatment.lr:.4g}",
            row.optimizer_bytes,
        )
        for row in rows
    ]
    header = ("path", "shape", "dtype", "group", "trained", "lr", "optimizer bytes")
    print_table(header, cells, stream=out)
    print(f"\n{_totals(rows)}", file=out)
    return out.getvalue()


def group_rows(rows: list[Row]) -> list[tuple[str, int, int, str, str]]:
    """Returns a row for each group: pattern, arrays, parameters, when trained, its factor of the learning rate."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.treatment.group, _when(row.treatment)), []).append(row)
    found = []
    for (group, when), members in groups.items():
        rates = sorted({row.treatment.lr for row in members})
        rate = " to ".join(f"{r:.4g}" for r in dict.fromkeys((rates[0], rates[-1])))
        found.append((group, len(members), sum(row.size for row in members), when, rate))
    return found


def summarize(rows: list[Row]) -> list[str]:
    """Returns a line for each group, and the totals: what the log of a run shows."""
    lines = [
        f"{group}: {size:,} parameters in {count} array{'s' * (count > 1)}, {when}"
        + (f", lr x {rate}" if when != "frozen" and rate != "1" else "")
        for group, count, size, when, rate in group_rows(rows)
    ]
    return [*lines, _totals(rows)]


def _when(treatment: Treatment) -> str:
    if treatment.start is None:
        return "frozen"
    return f"from step {treatment.start:,}" if treatment.start else "trainable"


def _totals(rows: list[Row]) -> str:
    trained = sum(row.size for row in rows if row.trainable)
    total = sum(row.size for row in rows)
    return (
        f"total: {total:,} parameters, {trained:,} trainable, {total - trained:,} frozen; "
        f"{sum(row.optimizer_bytes for row in rows):,} optimizer bytes"
    )


def stored(table: dict[str, Treatment]) -> dict[str, Any]:
    """Returns the table as a checkpoint keeps it: path -> [factor, start]. How a pattern is spelt is not in it."""
    return {path: [t.lr, t.start] for path, t in table.items()}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns a line for each parameter that two stored tables treat differently."""

    def words(row: Any) -> str:
        if row is None:
            return "absent"
        return "frozen" if row[1] is None else f"lr x {row[0]:.4g} from step {row[1]:,}"

    paths = [*then, *(path for path in now if path not in then)]
    return [
        f"{path}: {words(then.get(path))} -> {words(now.get(path))}"
        for path in paths
        if then.get(path) != now.get(path)
    ]
