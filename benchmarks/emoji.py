"""What pretrained weights are worth: configs/emoji_efficientnet.py in all its ways with several seeds, as one table.

    python benchmarks/emoji.py --data=data/emoji [--ways=scratch,probe,gradual,full,lora] [--seeds=0,1,2]
        [--runs=runs/benchmarks/emoji] [--set KEY=VALUE ...] [--json=FILE]

Each run is a process of its own in RUNS/WAY-SEED, its words in RUNS/WAY-SEED.log. What is finished there is not run
again, and what was interrupted goes on; a run with other settings than these is refused.

The table has, for 'test' (other emoji) and 'test_vendor' (another vendor's pictures), the mean over seeds with the
lowest and the highest, and two 95% intervals: 'seeds' is Student's t interval of the mean over training seeds, on the
same test pictures; 'pictures' is the mean of the runs' bootstrap intervals over test pictures. Differences are in
points, of runs with the same seed, with the t interval of their mean.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WAYS = ("scratch", "probe", "gradual", "full", "lora")
TESTS = ("test", "test_vendor")
PAIRS = tuple((way, "scratch") for way in WAYS[1:]) + (("lora", "full"),)
Summaries = dict[str, dict[int, dict[str, Any]]]  # way -> seed -> summary.json


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", default="data/emoji", help="config.data.path")
    options.add_argument("--runs", default="runs/benchmarks/emoji")
    options.add_argument("--ways", default=",".join(WAYS))
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    runs, settings = Path(given.runs).resolve(), [f"data.path={given.data}", *given.set]
    ways, seeds = given.ways.split(","), [int(seed) for seed in given.seeds.split(",")]
    found: Summaries = {way: {} for way in ways}
    for seed in seeds:  # seed by seed: an early look at the table compares all ways
        for way in ways:
            found[way][seed] = summary = run(way, seed, settings, runs)
            accuracies = ", ".join(f"{test} {summary[f'{test}/accuracy']:.4f}" for test in TESTS)
            took = f"{summary['seconds_total']:.0f} s"
            print(f"{way}, seed {seed}: {accuracies}, {took}", file=sys.stderr, flush=True)
    print(f"Seeds {', '.join(map(str, seeds))}" + "".join(f"; {text}" for text in given.set))
    print()
    print(results(found))
    if differences := compared(found):
        print()
        print(differences)
    if given.json:
        Path(given.json).write_text(json.dumps({"set": settings, "runs": found}, indent=1) + "\n")


def run(way: str, seed: int, settings: list[str], runs: Path) -> dict[str, Any]:
    """Trains one way with one seed, unless that is done, and returns its summary."""
    workdir = runs / f"{way}-{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch.py", f"--config=configs/emoji_efficientnet.py:{way}"]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings]
    with open(runs / f"{way}-{seed}.log", "a") as log:
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if ended.returncode:
        last = Path(log.name).read_text().strip().splitlines()[-1:]
        print(f"{way}, seed {seed}: {''.join(last)} ({log.name})", file=sys.stderr)
        sys.exit(ended.returncode)
    return json.loads((workdir / "summary.json").read_text())


def results(found: Summaries) -> str:
    """Returns a row for each way, in Markdown."""
    header = ["way", "trained of all parameters"]
    for test in TESTS:
        header += [f"{test}, % (lowest to highest)", "95%: seeds", "95%: pictures"]
    rows = [[*header, "seconds"]]
    for way, by_seed in found.items():
        runs = list(by_seed.values())
        cells = [way, f"{runs[0]['params_trainable']:,} of {runs[0]['params_total']:,}"]
        for test in TESTS:
            values, lows, highs = (
                [100 * summary[f"{test}/accuracy{end}"] for summary in runs]
                for end in ("", "_low", "_high")
            )
            mean, half = statistics.mean(values), half_width(values)
            cells.append(f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})")
            cells.append(interval(mean, half))
            cells.append(f"{statistics.mean(lows):.1f} to {statistics.mean(highs):.1f}")
        cells.append(f"{statistics.mean(summary['seconds_total'] for summary in runs):.0f}")
        rows.append(cells)
    return markdown(rows)


def compared(found: Summaries) -> str:
    """Returns the differences between ways in points, in Markdown; '' if there are none to take."""
    rows = [["difference, points", *(f"{test} (95%: seeds)" for test in TESTS)]]
    for one, other in PAIRS:
        if one not in found or other not in found:
            continue
        cells = [f"{one} - {other}"]
        for test in TESTS:
            name = f"{test}/accuracy"
            points = [
                100 * (summary[name] - found[other][seed][name])
                for seed, summary in found[one].items()
            ]
            mean, half = statistics.mean(points), half_width(points)
            cells.append(f"{mean:+.1f} ({interval(mean, half, '+.1f')})")
        rows.append(cells)
    return markdown(rows) if len(rows) > 1 else ""


def half_width(values: list[float]) -> float:
    """Half of the 95% interval of the mean, by Student's t; infinite for a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return math.inf
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def interval(mean: float, half: float, form: str = ".1f") -> str:
    return f"{mean - half:{form}} to {mean + half:{form}}" if math.isfinite(half) else "one seed"


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
