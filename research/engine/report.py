"""report.html: one page with everything that a run has to show, readable anywhere, offline too."""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.data.source import in_order, is_part, is_test
from research.engine import files, page
from research.engine.plots import line_plot
from research.engine.text import duration, figure, number
from research.task import Section


def write_report(workdir: str | os.PathLike, sections: Sequence[Section] = ()) -> Path:
    """Writes report.html from the files of the run directory; files that are missing are left out.

    From top to bottom: the result with its interval, curves, all final figures, `sections`,
    parameters, config and environment.

    Args:
        workdir: the run directory.
        sections: what the task has to say; see `research.task.Section`.

    Returns:
        The page's path.

    Raises:
        ValueError: a section of unknown kind.
    """
    workdir = Path(workdir)
    lines = [value for _, value in files.read_lines(workdir / "metrics.jsonl")]
    summary = files.read_json(workdir / "summary.json", {})
    config = files.read_json(workdir / "config.json", {})
    run = files.read_json(workdir / "run.json", {})
    title = _title(config) or workdir.resolve().name
    curves = _curves(lines)
    figures = _final_figures(lines, summary)
    body = [
        _head(title, workdir, run),
        _headline(_main_figure(config, figures), figures),
        _tiles(summary),
        page.heading("Curves", f'<div class="plots">{curves}</div>') if curves else "",
        _final_table(figures),
        *map(page.section, sections),
        _collapsed("Parameters", _read(workdir / "parameters.txt")),
        _collapsed("Config", config),
        _collapsed("Environment and sessions", run),
    ]
    path = workdir / "report.html"
    files.write_text(path, page.document(title, body))
    return path


def _title(config: dict[str, Any]) -> str:
    """'classification: cnn on digits', of whatever the config names."""
    task, model, data = (config.get(key, {}).get("name", "") for key in ("task", "model", "data"))
    return f"{task}: {model} on {data}" if task and model and data else ""


def _head(title: str, workdir: Path, run: dict[str, Any]) -> str:
    words = [workdir.resolve().name, (run.get("start") or "")[:16].replace("T", " ")]
    if run.get("exit") not in (0, None):
        words.append(f"ended with exit code {run['exit']}")
    text = " · ".join(html.escape(word) for word in words if word)
    return f'<h1>{html.escape(title)}</h1><p class="sub">{text}</p>'


def _main_figure(config: dict[str, Any], figures: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """(split, name) of the figure that the run is judged by; ('', '') where there is none."""
    wanted = config.get("checkpoint", {}).get("best", "").partition("/")[2]
    for split in ("test", "validation", "train"):
        names = [name for name, row in figures.items() if split in row]
        if wanted in names:
            return split, wanted
        if names:
            return split, names[0]
    return "", ""


def _headline(main: tuple[str, str], figures: dict[str, dict[str, Any]]) -> str:
    split, name = main
    if not split:
        return '<section><p class="sub">No figures yet.</p></section>'
    value, low, high = figures[name][split]
    interval = (
        "" if low is None else f" <small>95% interval {figure(low)} to {figure(high)}</small>"
    )
    return (
        f'<section><p class="sub">{html.escape(f"{split} {name}")}</p>'
        f'<div class="headline">{figure(value)}{interval}</div></section>'
    )


def _tiles(summary: dict[str, Any]) -> str:
    def seconds(value: float) -> str:
        return duration(value) if value >= 60 else f"{value:.1f} s"

    if summary.get("params_trainable") == summary.get("params_total"):
        summary = {key: value for key, value in summary.items() if key != "params_trainable"}
    shown = {
        "steps": ("steps", number),
        "examples_per_second": ("examples/s", lambda v: number(round(v))),
        "seconds_total": ("time in all", seconds),
        "seconds_compile": ("compiling", seconds),
        "data_wait_fraction": ("waiting for data", lambda v: f"{v:.1%}"),
        "peak_memory_bytes": ("peak memory", lambda v: f"{v / 1e9:.2f} GB"),
        "params_total": ("parameters", number),
        "params_trainable": ("trained", number),
    }
    tiles = "".join(
        f'<div class="tile"><b>{html.escape(show(summary[key]))}</b><span>{word}</span></div>'
        for key, (word, show) in shown.items()
        if isinstance(summary.get(key), int | float)
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _curves(lines: list[dict[str, Any]]) -> str:
    """One plot for each figure of training or validation, the values of the tests in it."""
    series: dict[str, dict[str, tuple[list, list]]] = {}
    tests: dict[str, dict[str, tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("step", "split") or not isinstance(value, int | float):
                continue
            if is_test(line["split"]):
                tests.setdefault(name, {})[line["split"]] = line["step"], value
            else:
                xs, ys = series.setdefault(name, {}).setdefault(line["split"], ([], []))
                xs.append(line["step"])
                ys.append(value)
    # The loss first, then what is measured on validation too, then what only training knows.
    names = sorted(series, key=lambda name: (name != "loss", "validation" not in series[name]))
    return "".join(
        line_plot(
            name,
            {split: series[name][split] for split in in_order(series[name])},
            xlabel="step",
            ylabel=name,
            marks=tests.get(name),
        )
        for name in names
    )


def _final_figures(
    lines: list[dict[str, Any]], summary: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Metric -> split -> (value, low, high): the summary's figures, else the last ones logged."""
    flat: dict[str, Any] = {}
    for line in lines:
        flat |= {f"{line['split']}/{k}": v for k, v in line.items() if k not in ("step", "split")}
    flat |= {key: value for key, value in summary.items() if is_part(key.partition("/")[0])}
    figures: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        split, _, name = key.partition("/")
        if name and not name.endswith(("_low", "_high")) and isinstance(value, int | float):
            ends = flat.get(f"{key}_low"), flat.get(f"{key}_high")
            figures.setdefault(name, {})[split] = (value, *ends)
    return figures


def _final_table(figures: dict[str, dict[str, Any]]) -> str:
    measured = {name: row for name, row in figures.items() if row.keys() - {"train"}}
    figures = measured or figures  # without what is known of training steps only: gradient norms
    there = in_order({split for row in figures.values() for split in row})
    others = [split for split in there if not is_test(split)]
    splits = [*filter(is_test, there), *reversed(others)]
    if not splits:
        return ""
    head = "".join(f"<th>{html.escape(word)}</th>" for word in ("figure", *splits))
    rows = []
    for name, row in figures.items():
        cells = "".join(f"<td>{_with_interval(row.get(split))}</td>" for split in splits)
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return page.heading(
        "Final figures",
        '<p class="note">In brackets: 95% bootstrap interval over examples.</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div>",
    )


def _with_interval(measured: tuple[float, float | None, float | None] | None) -> str:
    if measured is None:
        return ""
    value, low, high = measured
    ends = "" if low is None or high is None else f" <small>[{figure(low)}, {figure(high)}]</small>"
    return figure(value) + ends


def _collapsed(title: str, content: Any) -> str:
    if not content:
        return ""
    text = (
        content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    )
    return f"<section>{page.details(title, text)}</section>"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
