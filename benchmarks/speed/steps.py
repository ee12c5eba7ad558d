"""Train steps and inference of one subject, ours and theirs in turn, and the memory of each process."""

import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed import results
from benchmarks.speed.subjects import Rival, Subject
from benchmarks.turns import PAUSE, Ended, Worker, in_turn

TURN_MS = 600  # about what a turn of training takes
MEMORY = {"most": 1.3, "aim": 1.0}


def compare(name: str, subject: Subject, theirs: str, work: Path, rounds: int, threads: int) -> Any:
    """Returns the figures of a subject.

    Of a rival's ways the fastest takes part in the rounds. Its memory is that of the way that takes least. Ours is that
    of a process that finds the step compiled: 'first' has that of the one before, which compiled it if no one had.
    """
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    sides: list[Worker] = []
    try:
        ours, about = ours_made(subject, work, folder, threads, sides)
        asked = dict(do="make", subject=name, folder=str(folder), threads=threads)
        asked["vocabulary"] = about["vocabulary"]
        tried: dict[str, dict[str, dict]] = {}
        turns = {"ours": ours}
        for rival in dict.fromkeys(rival.name for rival in subject.rivals):
            ways = [way for way in subject.rivals if way.name == rival]
            turns[rival], tried[rival] = fastest(ways, theirs, asked, about["parameters"], sides)
        found = measure(turns, subject, rounds)
        product = max(ours.ask(do="product")["gflops"] for _ in range(3))
    finally:
        for side in sides:
            side.close()
    figures = {what: rivals_of(each) for what, each in found.items()}
    figures["train step"] |= {"most": subject.most, "aim": subject.aim}
    trained = found["train step"]
    memory = {"unit": "MB", "ours": trained["ours"]["peak_mb"], "rivals": {}, **MEMORY}
    for rival, ways in tried.items():
        least = min(way["peak_mb"] for way in ways.values() if "peak_mb" in way)
        memory["rivals"][rival] = {"theirs": least, "ratio": memory["ours"] / least}
    gflop = 3 * subject.forward / 1e9
    return {
        "title": subject.title,
        "figures": {**figures, "peak memory": memory},
        "gflop": gflop,
        "product_gflops": product,
        "share": results.share(gflop, trained["ours"]["ms"], product),
        "ours": about,
        "theirs": tried,
        "steps": found,
    }


def ours_made(
    subject: Subject, work: Path, folder: Path, threads: int, sides: list[Worker]
) -> tuple[Worker, dict[str, Any]]:
    """Returns our side and what it tells of itself; adds to `sides` what is to be closed."""
    settings = [setting.format(work=work) for setting in subject.settings]
    asked = dict(do="make", config=subject.config, settings=settings, folder=str(folder))
    first, ours = (Worker(sys.executable, "speed/ours.py", threads=threads) for _ in range(2))
    sides += [first, ours]
    seconds = first.ask(**asked)["compile_seconds"]
    before = {"compile_seconds": seconds, "peak_mb": first.ask(do="memory")["peak_mb"]}
    first.close()
    return ours, {**ours.ask(**asked), "first": before}


def fastest(
    ways: list[Rival], python: str, asked: dict[str, Any], parameters: int, sides: list[Worker]
) -> tuple[Worker, dict[str, dict[str, Any]]]:
    """Returns the fastest way of a rival, the others closed, and what was seen of each.

    Raises:
      SystemExit: none works.
    """
    tried: dict[str, dict[str, Any]] = {}
    working: dict[str, Worker] = {}
    for way in ways:
        side = Worker(python, way.script, threads=asked["threads"], wait=way.wait)
        sides.append(side)
        try:
            told = side.ask(how=way.how, **asked)
            demand_same_size(way.name, parameters, told["parameters"])
            ms = warmed(side)
            tried[shown(way)] = {**told, "ms": ms, "peak_mb": side.ask(do="memory")["peak_mb"]}
            working[shown(way)] = side
        except Ended as error:
            tried[shown(way)] = {"error": str(error)}
            print(f"{way.name}, {shown(way)}: failed", file=sys.stderr)
    if not working:
        raise SystemExit(f"error: {ways[0].name} failed in all ways; its words are above")
    best = min(working, key=lambda way: tried[way]["ms"])
    for way, side in working.items():
        if way != best:
            side.close()
    return working[best], tried


def demand_same_size(rival: str, ours: int, theirs: int) -> None:
    """PyTorch's recurrent layers have two biases where one would do; nothing else may differ."""
    if abs(theirs - ours) > 0.002 * ours:
        raise SystemExit(f"error: {rival} has {theirs:,} parameters, ours {ours:,}")


def shown(rival: Rival) -> str:
    how = [name for name in rival.how if name != "kept"] + ["waiting asleep"] * bool(rival.wait)
    return ", ".join(how) or "as it comes"


def warmed(side: Worker) -> float:
    """Takes steps until all is compiled; returns the ms of one."""
    time.sleep(PAUSE)
    ms = side.ask(do="train", steps=1)["ms"][0]
    count = max(1, min(10, round(TURN_MS / 2 / ms)))
    side.ask(do="train", steps=count)
    time.sleep(PAUSE)
    return statistics.median(side.ask(do="train", steps=count)["ms"])


def measure(sides: dict[str, Worker], subject: Subject, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns {'train step', 'inference, batch B': {side: summary}}."""
    found = {"train step": measure_one(sides, rounds, do="train")}
    for name, side in sides.items():
        found["train step"][name]["peak_mb"] = side.ask(do="memory")["peak_mb"]
    for batch in (1, subject.batch):
        found[f"inference, batch {batch}"] = measure_one(sides, rounds, do="infer", batch=batch)
    return found


def measure_one(sides: dict[str, Worker], rounds: int, **asked: Any) -> dict[str, Any]:
    slowest = 0.0
    for side in sides.values():
        side.ask(**asked, steps=1)
        time.sleep(PAUSE)
        slowest = max(slowest, *side.ask(**asked, steps=1)["ms"])
    steps = max(1, min(50, round(TURN_MS / slowest)))
    turns = {
        name: functools.partial(side.ask, **asked, steps=steps) for name, side in sides.items()
    }
    taken = in_turn(turns, rounds, warm=0)
    return {name: results.summary(answers) for name, answers in taken.items()}


def rivals_of(sides: dict[str, Any]) -> dict[str, Any]:
    """Returns a figure: ours, and each rival with the ratio to it."""
    rivals = {
        name: {"theirs": side["ms"], **results.ratio(sides["ours"], side)}
        for name, side in sides.items()
        if name != "ours"
    }
    return {"unit": "ms", "ours": sides["ours"]["ms"], "rivals": rivals}
