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
    settings = [setting.format(work=work) for setting in subject.settings]
    made = dict(do="make", config=subject.config, settings=settings, folder=str(folder))
    first, ours = (Worker(sys.executable, "speed/ours.py", threads=threads) for _ in range(2))
    sides: list[Worker] = [first, ours]
    try:
        seconds = first.ask(**made)["compile_seconds"]
        before = {"compile_seconds": seconds, "peak_mb": first.ask(do="memory")["peak_mb"]}
        first.close()
        about = {**ours.ask(**made), "first": before}
        tried: dict[str, dict[str, Any]] = {}
        ways: dict[str, dict[str, Worker]] = {}
        asked = dict(do="make", subject=name, folder=str(folder), threads=threads)
        for rival in subject.rivals:
            way = shown(rival)
            side = Worker(theirs, rival.script, threads=threads, wait=rival.wait)
            sides.append(side)
            try:
                told = side.ask(how=rival.how, vocabulary=about["vocabulary"], **asked)
                demand_same_size(rival.name, about["parameters"], told["parameters"])
                tried.setdefault(rival.name, {})[way] = {**told, "ms": warmed(side)}
                ways.setdefault(rival.name, {})[way] = side
            except Ended as error:
                tried.setdefault(rival.name, {})[way] = {"error": str(error)}
        for rival_name in tried:
            if rival_name not in ways:
                raise SystemExit(f"error: {rival_name} failed in all ways; its words are above")
        turns = {"ours": ours}
        for rival_name, each in ways.items():
            best = min(each, key=lambda way: tried[rival_name][way]["ms"])
            turns[rival_name] = each[best]
            for way, side in each.items():
                tried[rival_name][way]["peak_mb"] = side.ask(do="memory")["peak_mb"]
                if way != best:
                    side.close()
        found = measure(turns, subject, rounds)
        products = [ours.ask(do="product")["gflops"] for _ in range(3)]
    finally:
        for side in sides:
            side.close()
    peaks = {
        rival: min(each["peak_mb"] for each in all_ways.values() if "peak_mb" in each)
        for rival, all_ways in tried.items()
        if rival in turns
    }
    gflop, ms = 3 * subject.forward / 1e9, found["train"]["ours"]["ms"]
    figures = {what: rivals_of(sides_of) for what, sides_of in found.items()}
    figures["train step"] = figures.pop("train") | {"most": subject.most, "aim": subject.aim}
    memory = {"unit": "MB", "ours": found["train"]["ours"]["peak_mb"], **MEMORY}
    memory["rivals"] = {
        rival: {"theirs": mb, "ratio": memory["ours"] / mb} for rival, mb in peaks.items()
    }
    return {
        "title": subject.title,
        "figures": {"train step": figures.pop("train step"), **figures, "peak memory": memory},
        "gflop": gflop,
        "product_gflops": max(products),
        "share": results.share(gflop, ms, max(products)),
        "ours": about,
        "theirs": tried,
        "steps": found,
    }


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
    """Returns {'train', 'inference, batch B': {side: summary}}."""
    found = {"train": measure_one(sides, rounds, do="train")}
    for name, side in sides.items():
        found["train"][name]["peak_mb"] = side.ask(do="memory")["peak_mb"]
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
