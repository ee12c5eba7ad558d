"""What is made of times: medians, ratios, the share of the machine's peak, exponents; and the tables that show them.

A side's turn is {'ms': [...], 'processor_ms': [...]}, a number for each step. Pure functions of JSON values.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.turns import ratios

Turn = dict[str, list[float]]


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Returns the median of all steps, the least, and the median of each round; ms."""
    steps = [ms for turn in turns for ms in turn["ms"]]
    return {
        "ms": statistics.median(steps),
        "least_ms": min(steps),
        "processor_ms": statistics.median(ms for turn in turns for ms in turn["processor_ms"]),
        "rounds": [statistics.median(turn["ms"]) for turn in turns],
    }


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Returns ours/theirs of two summaries: the median of the rounds' ratios, and their range."""
    each = ratios(ours["rounds"], theirs["rounds"])
    return {"ratio": statistics.median(each), "range": [min(each), max(each)]}


def exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """Returns b of values ~ a * sizes**b, by least squares of logarithms."""
    xs, ys = ([math.log(v) for v in each] for each in (sizes, values))
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    over = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return over / sum((a - x) ** 2 for a in xs)


def exponents(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Returns that of all sizes, and that of the two largest, where what does not grow counts least."""
    return {"all": exponent(sizes, values), "end": exponent(sizes[-2:], values[-2:])}


def share(gflop: float, ms: float, product_gflops: float) -> float:
    """Returns how near a step that needs so many GFLOP comes to the machine's product of large matrices."""
    return gflop / (ms / 1e3) / product_gflops


def rows(subjects: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what was compared, a row for each ratio: subject, what, rival, ours, theirs, unit, ratio, most."""
    found = []
    for name, subject in subjects.items():
        for what, figure in subject.get("figures", {}).items():
            for rival, compared in figure["rivals"].items():
                row = {"subject": name, "title": subject["title"], "what": what, "rival": rival}
                row |= {"unit": figure["unit"], "ours": figure["ours"], **compared}
                found.append(row | {"most": figure.get("most"), "aim": figure.get("aim")})
    return found


def table(subjects: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "| what | ours | theirs | ours/theirs | at most | aim |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows(subjects):
        missed = row["most"] is not None and row["ratio"] > row["most"]
        asked = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("most", "aim")]
        mine, other = (f"{shown(row[side])} {row['unit']}" for side in ("ours", "theirs"))
        cells = [f"{row['title']}: {row['what']}", mine, f"{other}, {row['rival']}"]
        apart = f"{row['ratio']:.2f}" if row["ratio"] >= 0.1 else shown(row["ratio"])
        cells += [f"{apart}{' MISSED' if missed else ''}", *asked]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def growth_table(subjects: dict[str, Any]) -> str:
    """Returns the fitted exponents as Markdown, the arithmetic's beside them."""
    lines = [
        "| against | sizes | time: measured, arithmetic | memory: measured, arithmetic |",
        "| --- | --- | --- | --- |",
    ]
    for subject in subjects.values():
        if "exponents" not in subject:
            continue
        cells = [subject["title"], ", ".join(map(str, subject["sizes"]))]
        for key in ("time", "memory"):
            both = (subject["exponents"][key], subject["exponents"][f"{key}_arithmetic"])
            cells.append(", ".join(f"{each['all']:.2f} (end {each['end']:.2f})" for each in both))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def points_table(subjects: dict[str, Any]) -> str:
    """Returns what has points and no rival as Markdown: times, memory and compilation of each."""
    lines = []
    for subject in subjects.values():
        points = subject.get("points")
        if not points:
            continue
        keys = list(points[0])
        lines += ["", f"| {subject['title']}: {' | '.join(keys)} |"]
        lines += ["| " + " | ".join(["---"] * len(keys)) + " |"]
        for point in points:
            cells = [v if isinstance(v, str) else shown(v) for v in point.values()]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def shown(value: float) -> str:
    """Returns a number with three digits that count, or all before the point."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if value else "0"
