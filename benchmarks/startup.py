"""How long a user waits: for --help, for --mode=check, for the first train step, and for a short run's result.

    python benchmarks/startup.py

Each is a process of its own, timed from outside, five times; the median and the range are printed. The data is prepared
before; what JAX compiles is in its cache unless the line says 'nothing compiled'.
"""

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
    for line in process.stdout:
        if until and until in line:
            break
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    return took


def report(
    name: str, *flags: str, until: str | None = None, fresh: bool = False, cold: bool = False
) -> None:
    times = []
    for _ in range(6):
        with tempfile.TemporaryDirectory() as workdir:
            cache = f"{workdir}/cache" if cold else None
            run = [f"--workdir={workdir}/run"] if fresh else []
            times.append(seconds(*flags, *run, until=until, cache=cache))
    times = times[1:]  # the first fills the caches
    print(
        f"{name:34s} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    report("--help", "--help")
    report("--mode=check", CONFIG, "--mode=check")
    report("first train step", CONFIG, "--config.log.every=steps=1", until="step 1/", fresh=True)
    report("digits, 2 epochs, to the result", *DIGITS, fresh=True)
    report("the same, nothing compiled", *DIGITS, fresh=True, cold=True)
