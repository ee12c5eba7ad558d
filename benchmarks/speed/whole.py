"""What is timed from outside: whole runs, the data pipeline alone, start-up, generation."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.results import ratio
from benchmarks.turns import PAUSE, ROOT, Worker, in_turn

FASHION = "/usr/share/datasets/fashion-mnist"
KERAS = "Keras on TensorFlow"


def run(theirs: str, work: Path, rounds: int, epochs: int) -> dict[str, Any]:
    """Fashion-MNIST from command to result: import, data, compilation, training, evaluation.

    In each round ours runs twice, with empty caches and then with data and compiled programs kept, and theirs between.
    """
    if not Path(FASHION).is_dir():
        raise SystemExit(f"error: {FASHION} is not there: apt-get install dataset-fashion-mnist")
    cache, workdir = work / "cache", work / "fashion"
    mine = [sys.executable, "launch.py", "--config=configs/fashion_mnist_cnn.py"]
    mine += [f"--workdir={workdir}", f"--config.train.duration=epochs={epochs}"]
    script = str(ROOT / "benchmarks" / "speed" / "fashion_keras.py")
    found: dict[str, list[dict[str, float]]] = {"first": [], "later": [], KERAS: []}

    def ours(which: str) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        found[which].append(ended(mine, work / "ours.log", {"ROOTSTOCK_CACHE": str(cache)}))
        result = json.loads((workdir / "summary.json").read_text())
        found[which][-1]["accuracy"] = result["test/accuracy"]

    for _ in range(min(rounds, 3)):
        shutil.rmtree(cache, ignore_errors=True)
        ours("first")
        found[KERAS].append(ended([theirs, script, str(epochs), FASHION], work / "keras.log", {}))
        last = (work / "keras.log").read_text().split("test accuracy")[1]
        found[KERAS][-1]["accuracy"] = float(last)
        ours("later")
    sides = {name: {"ours": found[name], KERAS: found[KERAS]} for name in ("first", "later")}
    asked = {"most": 0.8, "aim": 0.5}
    figures = {
        "from command to result, first": figure(sides["first"], "seconds", "s") | asked,
        "from command to result, caches filled": figure(sides["later"], "seconds", "s"),
        "peak memory": figure(sides["first"], "peak_mb", "MB") | {"most": 1.3, "aim": 1.0},
    }
    title = f"Fashion-MNIST, CNN, {epochs} epoch{'s' if epochs > 1 else ''}"
    return {"title": title, "figures": figures, "runs": found}


def ended(command: list[str], log: Path, env: dict[str, str]) -> dict[str, float]:
    """Runs a command to its end; returns its seconds, those of the processor, and its peak memory."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | env, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command[1:3])} failed; see {log}")
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def figure(found: dict[str, list[dict]], key: str, unit: str) -> dict[str, Any]:
    """Returns ours and theirs, with the median of the rounds' ratios."""
    each = {side: [one[key] for one in rounds] for side, rounds in found.items()}
    rivals = {}
    for rival in list(each)[1:]:
        apart = ratio({"rounds": each["ours"]}, {"rounds": each[rival]})
        rivals[rival] = {"theirs": statistics.median(each[rival]), **apart}
    return {"unit": unit, "ours": statistics.median(each["ours"]), "rivals": rivals}


def data(ours: Worker, theirs: dict[str, Worker], rounds: int) -> dict[str, Any]:
    """An epoch's batches of 128 grey pictures, shuffled and made floats; nothing is trained."""
    there = Path(FASHION).is_dir()
    settings = [] if there else ["data.name=digits", "data.image_size=28"]
    ours.ask(do="make", config="configs/fashion_mnist_cnn.py", settings=settings)
    asked = {"batch": 128, "count": 400 if there else 10}
    shape = [57_000 if there else 1293, 28, 28, 1]
    turns = {"ours": lambda: ours.ask(do="data", count=asked["count"])}
    for name, side in theirs.items():
        counts = (0, 2) if name == "PyTorch" else (0,)
        for workers in counts:
            label = f"{name}, {workers} workers" if len(counts) > 1 else name
            turns[label] = lambda side=side, workers=workers: side.ask(
                do="data", shape=shape, workers=workers, **asked
            )
    taken = in_turn(turns, rounds)
    count = asked["count"]
    each = {side: [{"ms": answer["ms"] / count} for answer in a] for side, a in taken.items()}
    return {
        "title": "Batches of 128 pictures",
        "figures": {"a batch made": figure(each, "ms", "ms")},
    }


def generation(theirs: str, work: Path, rounds: int) -> dict[str, Any]:
    """benchmarks/generation.py, its rates turned into ms a token."""
    out = work / "generation.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/generation.py", f"--torch={theirs}", "--ways=greedy"]
    ended([*command, f"--rounds={rounds}", f"--json={out}"], work / "generation.log", {})
    figures = {}
    for name, found in json.loads(out.read_text())["tokens_a_second"].items():
        low, high = found["ratio_range"]
        compared = {
            "theirs": 1e3 / found[found["best"]]["clock"],
            "ratio": 1 / found["ratio"],
            "range": [1 / high, 1 / low],
        }
        figures[f"a token, {name}"] = {
            "unit": "ms",
            "ours": 1e3 / found["ours"]["clock"],
            "rivals": {"transformers": compared},
            "most": 1.0,
        }
    return {"title": "Generation with a cache, Llama of 25 M parameters", "figures": figures}


def startup(work: Path, rounds: int) -> dict[str, Any]:
    """benchmarks/startup.py; nothing of theirs is beside it."""
    out = work / "startup.json"
    command = [sys.executable, "benchmarks/startup.py", f"--rounds={rounds}", f"--json={out}"]
    ended(command, work / "startup.log", {})
    points = [
        {"what": what, "seconds": found["median"], "least": found["range"][0]}
        for what, found in json.loads(out.read_text()).items()
    ]
    return {"title": "Start-up", "points": points}
