"""How long a user waits: for --help, for --mode=check, and for the first train step, caches warm.

    python benchmarks/startup.py [--rounds=5] [--json=FILE]

Each is a process of its own, timed from outside, five times; the median and the range are printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/fashion_mnist_cnn.py"


def seconds(*flags: str, until: str | None = None) -> float:
    """Returns the time until the process ends, or until it prints a line that holds `until`."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "launch.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if until and until in line:
            break
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    return took


def measured(
    name: str, rounds: int, *flags: str, until: str | None = None, fresh: bool = False
) -> dict[str, object]:
    times = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as workdir:
            times.append(
                seconds(*flags, *([f"--workdir={workdir}/run"] if fresh else []), until=until)
            )
    times = times[1:]  # the first fills the caches
    median, low, high = statistics.median(times), min(times), max(times)
    print(f"{name:34s} {median:6.2f} s  ({low:.2f} to {high:.2f})", flush=True)
    return {"median": median, "range": [low, high]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    n, often = given.rounds, "--config.log.every=steps=1"
    found = {
        "--help": measured("--help", n, "--help"),
        "--mode=check": measured("--mode=check", n, CONFIG, "--mode=check"),
        "first train step": measured(
            "first train step", n, CONFIG, often, until="step 1/", fresh=True
        ),
    }
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
