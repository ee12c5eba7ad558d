"""What kept features save: the first epoch of a probe, which computes them, and the later ones, which read them.

    python benchmarks/probe.py --set data.path=data/emoji [--rounds=3] [--epochs=12] [--json=FILE]

Runs configs/emoji_efficientnet.py:probe, or `--config`, with one evaluation an epoch and no checkpoint before the end.
A run is a process of its own (launch.py), timed from outside by the lines that it prints. An epoch is its train steps
and the evaluation of the validation split; the first one is that too, and the features of both splits, and loading the
compiled step. Compilations and prepared data are kept over the runs, features are not; a first run fills the caches.

Where there are no emoji the trunk is the CNN of configs/digits_from_mnist5k.py, with random values (time does not
depend on them), on mnist_5k.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

EMOJI = "configs/emoji_efficientnet.py:probe"
CNN = (
    "configs/digits_from_mnist5k.py",
    ("data.name=mnist_5k", "pretrained.source=", "pretrained.rules=()", "model.dropout=0.0"),
)
ASKED = 20


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--config", default="")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--epochs", type=int, default=12)
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    config, settings = given.config or EMOJI, tuple(given.set)
    if not given.config and (problem := trouble(config, settings)):
        print(f"{problem}\nso the CNN on mnist_5k is taken instead", flush=True)
        config, settings = CNN
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        home = make_home(Path(place))
        runs = [epochs(config, settings, given.epochs, home) for _ in range(given.rounds + 1)][1:]

    first = statistics.median(run["first"] for run in runs)
    later = statistics.median(run["later"] for run in runs)
    ratios = [run["first"] / run["later"] for run in runs]
    ratio = statistics.median(ratios)
    print(f"{config} {' '.join(settings)}")
    print(
        f"features '{runs[0]['features']}', {runs[0]['steps']} train steps and a validation an ",
        end="",
    )
    print(f"epoch; {given.rounds} rounds of {given.epochs} epochs, load before {before:.2f}")
    for name, seconds in (
        ("first epoch: computes features", first),
        ("  of it until they are kept", statistics.median(run["computing"] for run in runs)),
        ("later epoch: reads features", later),
    ):
        print(f"{name:34s}{seconds:9.3f} s")
    print(f"{'first / later':34s}{ratio:9.1f}    ({min(ratios):.1f} to {max(ratios):.1f}) ", end="")
    print(f"asked: at least {ASKED}{'' if ratio >= ASKED else ': MISSED'}")
    if given.json:
        figures = {"config": config, "set": settings, "load_before": before, "epochs": given.epochs}
        figures |= {"first": first, "later": later, "ratio": ratio, "runs": runs}
        Path(given.json).write_text(json.dumps(figures, indent=1) + "\n")


def trouble(config: str, settings: tuple[str, ...]) -> str:
    """Returns the first reason why the config's data or weights cannot be had; '' if they can."""
    command = [sys.executable, "launch.py", f"--config={config}", "--mode=check"]
    command += [f"--config.{setting}" for setting in settings]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = checked.stderr.strip().splitlines()
    return lines[0] if checked.returncode and lines else ""


def make_home(place: Path) -> Path:
    """Returns a cache with the user's own prepared data and compilations, and no features."""
    from research.data import cache

    for name in ("data", "xla"):
        (cache.home() / name).mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to((cache.home() / name).resolve())
    return place


def epochs(config: str, settings: tuple[str, ...], count: int, home: Path) -> dict[str, Any]:
    """Trains with no features kept before, and returns the seconds of the epochs."""
    shutil.rmtree(home / "features", ignore_errors=True)
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "launch.py", f"--config={config}", f"--workdir={workdir}/run"]
        every = (
            f"train.duration=epochs={count}",
            "log.every=epochs=1",
            "eval.every=epochs=1",
            "eval.bootstrap=0",
            f"checkpoint.every=epochs={count}",
            "checkpoint.best=",
        )
        command += [f"--config.{setting}" for setting in (*every, *settings)]
        lines = timed(command, {**os.environ, "ROOTSTOCK_CACHE": str(home)})
    # The loop says what is trained, then enters the first epoch.
    began = next(at for at, line in lines if line.startswith("total: "))
    kept = [(at, line) for at, line in lines if line.startswith("features of the frozen trunk")]
    if not kept or "computed once" not in kept[-1][1]:
        sys.exit(f"error: {config}: no features were kept, or they were there before")
    ends = [
        (at, int(match[1].replace(",", "")))
        for at, line in lines
        if (match := re.match(r"step ([\d,]+)/[\d,]+  validation", line))
    ]
    between = [b - a for (a, _), (b, _) in itertools.pairwise(ends)]
    return {
        "features": kept[0][1].partition("(")[2].partition(")")[0],
        "steps": ends[0][1],
        "first": ends[0][0] - began,
        "computing": kept[-1][0] - began,
        "later": statistics.median(between),
        "all": between,
    }


def timed(command: list[str], env: dict[str, str]) -> list[tuple[float, str]]:
    """Runs a command and returns what it printed, with the second of each line."""
    lines = []
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        lines.append((time.perf_counter(), line.rstrip()))
    if process.wait():
        sys.exit(process.returncode)
    return lines


if __name__ == "__main__":
    main()
