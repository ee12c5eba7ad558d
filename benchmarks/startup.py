"""How long a user waits: for --help, for --mode=check, for the first train step, and for a short run's result.

    python benchmarks/startup.py [--rounds=5] [--json=FILE]

Each is a process of its own, timed from outside, five times; the median and the range are printed. The data is prepared
before; what JAX compiles is in its cache unless the line says 'nothing compiled'.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
DIGITS = ("--config=configs/digits_cnn.py", "--config.train.duration=epochs=2")
CONFIG = "--config=configs/fashion_mnist_cnn.py"


def seconds(*flags: str, until: str | None = None, cache: str | None = None) -> float:
    """Returns the time until the process ends, or until it prints a line that holds `until`.

    Args:
      cache: a folder for what is compiled, in place of the usual one.
    """
    from research.data.cache import home

    environment = dict(os.environ)
    if cache:
        flags = (*flags, f"--config.data.cache_dir={home() / 'data'}")
        environment["ROOTSTOCK_CACHE"] = cache
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "launch.py", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout
    seen = any(until and until in line for line in process.stdout)
    took = time.perf_counter() - began
    if until:
        process.kill()
    code = process.wait()
    if (until and not seen) or (not until and code):
        sys.exit(f"launch.py {' '.join(flags)}: failed")
    return took


def measured(
    name: str,
    rounds: int,
    *flags: str,
    until: str | None = None,
    fresh: bool = False,
    cold: bool = False,
) -> dict[str, object]:
    times = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as workdir:
            cache = f"{workdir}/cache" if cold else None
            run = [f"--workdir={workdir}/run"] if fresh else []
            times.append(seconds(*flags, *run, until=until, cache=cache))
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
    lines = (
        ("--help", ("--help",), {}),
        ("--mode=check", (CONFIG, "--mode=check"), {}),
        ("first train step", (CONFIG, often), {"until": "step 1/", "fresh": True}),
        ("digits, 2 epochs, to the result", DIGITS, {"fresh": True}),
        ("the same, nothing compiled", DIGITS, {"fresh": True, "cold": True}),
    )
    found: dict[str, dict[str, object]] = {
        name: measured(name, n, *flags, **how) for name, flags, how in lines
    }
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
