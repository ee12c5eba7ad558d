"""What a step costs as work grows: time and memory against batch, length, width and depth; ours alone.

The arithmetic beside it: the operations of subjects.py; and what a plain backward pass keeps (Korthikanti et al. 2022,
table 2, without dropout), with the parameters, their gradients and Adam's two moments.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.speed import subjects
from benchmarks.speed.results import exponents, summary
from benchmarks.turns import Worker, in_turn

BASE = {"batch": 4, "length": 256, "width": 256, "depth": 4}
RECURRENT = {"batch": 64, "length": 64, "width": 256}
KEYS = {
    "batch": ("train.batch_size",),
    "length": ("data.text.max_length", "model.context"),
    "width": ("model.width",),
    "depth": ("model.depth",),
}


class Growth(NamedTuple):
    title: str
    axis: str
    sizes: tuple[int, ...]
    model: str = "gpt"  # or "cnn", "lstm"


GROWTH = {
    "growth_batch": Growth("GPT, batch", "batch", (2, 4, 8, 16, 32)),
    "growth_length": Growth("GPT, length", "length", (128, 256, 512, 1024)),
    "growth_width": Growth("GPT, width", "width", (128, 256, 512)),
    "growth_depth": Growth("GPT, depth", "depth", (2, 4, 8, 16)),
    "growth_cnn": Growth("CNN, batch", "batch", (32, 64, 128, 256, 512), "cnn"),
    "growth_lstm_batch": Growth("LSTM, batch", "batch", (16, 32, 64, 128, 256), "lstm"),
    "growth_lstm_length": Growth("LSTM, length", "length", (16, 32, 64, 128, 256), "lstm"),
    "growth_lstm_width": Growth("LSTM, width", "width", (64, 128, 256, 512), "lstm"),
}
DEPTHS = (2, 6, 12, 24)
WAYS = (("none", False), ("dots", False), ("full", False), ("none", True), ("full", True))


def gpt_settings(work: Any, shape: dict[str, int], *more: str) -> list[str]:
    texts = [setting.format(work=work) for setting in subjects.TEXTS]
    given = [f"{key}={shape[axis]}" for axis, keys in KEYS.items() for key in keys]
    return [*texts, *given, *more]


def gpt_gflop(shape: dict[str, int]) -> float:
    return 3 * subjects.gpt(*shape.values()) / 1e9


def gpt_mb(shape: dict[str, int], heads: int = 8, vocabulary: int = 4096) -> float:
    """What has to be there, in MiB, if all that a plain backward pass reads is kept."""
    b, t, d, depth = shape.values()
    parameters = depth * 12 * d * d + (vocabulary + t) * d
    kept = b * t * (depth * (16 * d + heads * t) + 2 * vocabulary)
    return 4 * (4 * parameters + kept) / 2**20


def cnn_mb(batch: int) -> float:
    """The same of the small CNN: each layer's output, before and after the pools, and the picture."""
    kept = 28**2 + 32 * (26**2 + 13**2) + 64 * (11**2 + 5**2 + 3**2) + 64 + 10
    return 4 * (4 * 93_322 + batch * kept) / 2**20


def lstm_settings(work: Any, shape: dict[str, int]) -> list[str]:
    texts = [setting.format(work=work) for setting in subjects.SENTENCES]
    keys = {"batch": "train.batch_size", "length": "data.text.max_length", "width": "model.width"}
    return [*texts, *(f"{key}={shape[axis]}" for axis, key in keys.items())]


def lstm_gflop(shape: dict[str, int]) -> float:
    b, t, d = shape.values()
    return 3 * subjects.recurrent(b, t, 4, d) / 1e9


def lstm_mb(shape: dict[str, int], vocabulary: int = 3000) -> float:
    """Gates, cells and states, and the embedding that is read."""
    b, t, d = shape.values()
    parameters = vocabulary * 128 + 4 * d * (128 + d + 1)
    return 4 * (4 * parameters + b * t * (6 * d + 128)) / 2**20


def made_of(growth: Growth, size: int, work: Any) -> tuple[str, list[str], float, float]:
    """Returns a point's config, its settings, and what the arithmetic says: GFLOP and MiB."""
    if growth.model == "cnn":
        settings = [*subjects.DIGITS, "data.image_size=28", f"train.batch_size={size}"]
        config = subjects.SUBJECTS["cnn"].config
        return config, settings, 3 * subjects.cnn(size) / 1e9, cnn_mb(size)
    if growth.model == "lstm":
        shape = {**RECURRENT, growth.axis: size}
        config = subjects.SUBJECTS["lstm"].config
        return config, lstm_settings(work, shape), lstm_gflop(shape), lstm_mb(shape)
    shape = {**BASE, growth.axis: size}
    return subjects.PYTHON_LM, gpt_settings(work, shape), gpt_gflop(shape), gpt_mb(shape)


def grow(growth: Growth, open_side: Callable[[], Worker], work: Any, rounds: int) -> dict[str, Any]:
    """Measures a point in a process of its own each, in turn."""
    sides, made, needed, sizes = {}, {}, {}, growth.sizes
    for size in sizes:
        sides[size] = open_side()
        config, settings, *needed[size] = made_of(growth, size, work)
        made[size] = sides[size].ask(do="make", config=config, settings=settings)
    try:
        points = measured(sides, made, rounds)
    finally:
        for side in sides.values():
            side.close()
    for point, size in zip(points, sizes, strict=True):
        point[growth.axis] = size
        point["gflop"], point["kept_mb"] = needed[size]
    columns = {
        "time": "ms",
        "time_arithmetic": "gflop",
        "memory": "needed_mb",
        "memory_arithmetic": "kept_mb",
        "peak": "peak_mb",
    }
    fitted = {
        name: exponents(sizes, [point[key] for point in points]) for name, key in columns.items()
    }
    first = (growth.axis, "ms", "needed_mb", "peak_mb", "gflop", "kept_mb")
    points = [{key: point[key] for key in first} for point in points]
    return {"title": growth.title, "sizes": sizes, "exponents": fitted, "points": points}


def measured(
    sides: dict[Any, Worker], made: dict[Any, dict], rounds: int
) -> list[dict[str, float]]:
    """Returns the step's time, what XLA says it needs, and the process's peak, of each side."""

    def turn(side: Worker, steps: int) -> Callable[[], dict]:
        return lambda: side.ask(do="train", steps=steps)

    steps = {}
    for key, side in sides.items():
        side.ask(do="train", steps=1)
        ms = side.ask(do="train", steps=1)["ms"][0]
        steps[key] = max(1, min(20, round(300 / ms)))
    taken = in_turn({key: turn(side, steps[key]) for key, side in sides.items()}, rounds, warm=0)
    return [
        {
            "ms": summary(taken[key])["ms"],
            "needed_mb": made[key]["argument_mb"] + made[key]["temporary_mb"],
            "peak_mb": side.ask(do="memory")["peak_mb"],
            "compile_seconds": made[key]["compile_seconds"],
        }
        for key, side in sides.items()
    ]


def trades(
    open_side: Callable[[], Worker], work: Any, rounds: int, depths: tuple[int, ...] = DEPTHS
) -> dict[str, Any]:
    """What remat and the scan over blocks give and take, against depth: step time, memory, compilation."""
    points = []
    for depth in depths:
        for remat, scan in WAYS:
            side = open_side()
            more = (f"model.remat={remat}", f"model.scan={scan}")
            settings = gpt_settings(work, {**BASE, "depth": depth}, *more)
            made = side.ask(do="make", config=subjects.PYTHON_LM, settings=settings)
            try:
                (point,) = measured({0: side}, {0: made}, rounds)
            finally:
                side.close()
            points.append({"depth": depth, "remat": remat, "scan": str(scan), **point})
    return {"title": "GPT, batch 4 x 256", "points": points}


def compile_times(open_side: Callable[[], Worker], work: Any, rounds: int) -> dict[str, Any]:
    """Seconds of tracing and compiling the GPT's step against its depth, with and without a scan.

    A process compiles once: later ones would find what is traced.
    """
    points = []
    for depth in DEPTHS:
        point: dict[str, Any] = {"depth": depth}
        for name, scan in (("unrolled", False), ("scan", True)):
            settings = gpt_settings(work, {**BASE, "depth": depth}, f"model.scan={scan}")
            times = []
            for _ in range(min(rounds, 3)):
                side = open_side()
                answer = side.ask(do="compile", config=subjects.PYTHON_LM, settings=settings)
                times.append((answer["seconds"], answer["processor_seconds"]))
                side.close()
            for unit, each in zip(("s", "processor s"), zip(*times, strict=True), strict=True):
                point[f"{name}, {unit}"] = statistics.median(each)
        points.append(point)
    return {"title": "Compilation against depth", "points": points}
