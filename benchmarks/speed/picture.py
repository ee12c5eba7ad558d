"""The picture of what benchmarks/bench.py found: ratios as bars, and what grows."""

from pathlib import Path
from typing import Any

from benchmarks.speed import results

COLOURS = {"PyTorch": "C1", "transformers": "C1", "Keras on TensorFlow": "C2"}
KEPT = ", memory kept"  # a rival with a setting that it does not come with
LIMITS = 1 / 8, 4  # longer bars are cut
TITLES = 58  # letters of a bar's name


def draw(found: dict[str, Any], path: Path) -> None:
    """Bars of ours/theirs with a line at 1; below, the step's time against each size, with the arithmetic's dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = results.rows(found["subjects"])
    kept = {key(bar): bar["ratio"] for bar in bars if bar["rival"].endswith(KEPT)}
    bars = sorted((bar for bar in bars if not bar["rival"].endswith(KEPT)), key=place)
    grown = [s for s in found["subjects"].values() if "exponents" in s]
    heights = [0.17 * len(bars) + 1.1, 3.0][: 2 if grown else 1]
    figure, axes = plt.subplots(
        len(heights),
        1,
        figsize=(8, sum(heights)),
        dpi=110,
        height_ratios=heights,
        squeeze=False,
    )
    figure.subplots_adjust(hspace=1.3 / (sum(heights) / len(heights)))
    draw_ratios(axes[0, 0], bars, kept)
    if grown:
        draw_growth(axes[1, 0], grown)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def place(bar: dict[str, Any]) -> int:
    """Bars of one kind stand together."""
    kinds = "train step", "from command", "a ", "inference", "peak memory"
    return next(i for i, kind in enumerate((*kinds, "")) if bar["what"].startswith(kind))


def key(bar: dict[str, Any]) -> tuple[str, str, str]:
    return bar["subject"], bar["what"], bar["rival"].removesuffix(KEPT)


def draw_ratios(axis: Any, bars: list[dict[str, Any]], kept: dict[tuple, float]) -> None:
    names, seen = [], set()
    for i, bar in enumerate(bars):
        rival, ratio = bar["rival"].split(",")[0], bar["ratio"]
        label = None if rival in seen else rival
        seen.add(rival)
        axis.barh(i, ratio - 1, left=1, height=0.7, color=COLOURS.get(rival, "C7"), label=label)
        if (other := kept.get(key(bar))) is not None:
            label = None if KEPT in seen else "the same with our setting of malloc"
            seen.add(KEPT)
            axis.plot(min(max(other, LIMITS[0]), LIMITS[1]), i, "D", ms=2.5, color="k", label=label)
        side = {"va": "center", "ha": "right" if ratio >= 1 else "left"}
        axis.text(0.98 if ratio >= 1 else 1.02, i, results.shown(ratio), fontsize=6, **side)
        names.append(f"{bar['title'].split(',')[0]}: {bar['what']}"[:TITLES])
    axis.axvline(1.0, color="k", lw=1)
    axis.set_yticks(range(len(bars)), names, fontsize=6)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xscale("log", base=2)
    axis.set_xlim(*LIMITS)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title("ours / theirs on a CPU; left of the line ours is better", fontsize=9)
    if bars:
        below = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.6 / (0.17 * len(bars) + 0.3))}
        axis.legend(fontsize=7, frameon=False, ncols=4, **below)


def draw_growth(axis: Any, grown: list[dict[str, Any]]) -> None:
    for i, subject in enumerate(grown):
        sizes = [size / subject["sizes"][0] for size in subject["sizes"]]
        points = subject["points"]
        times, work = ([point[key] / points[0][key] for point in points] for key in ("ms", "gflop"))
        exponents = (subject["exponents"][key]["all"] for key in ("time", "time_arithmetic"))
        label = "{}: {:.2f} ({:.2f})".format(subject["title"], *exponents)
        axis.plot(sizes, times, "o-", ms=3, lw=1.2, color=f"C{i}", label=label)
        axis.plot(sizes, work, "--", lw=0.8, color=f"C{i}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:g}")
    axis.set_xlabel("times the smallest size", fontsize=7)
    axis.set_ylabel("times the smallest's step", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.set_title("a step's time as work grows, and the arithmetic's (dashed)", fontsize=9)
    if grown:
        axis.legend(fontsize=7, frameon=False, title="exponent (arithmetic's)", title_fontsize=7)
