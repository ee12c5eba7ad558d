"""How long a user waits: for --help, for --mode=check, and for the first train step, caches warm.

    python benchmarks/startup.py

Each is a process of its own, timed from outside, five times; the median and the range are printed.
"""

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


def report(name: str, *flags: str, until: str | None = None, fresh: bool = False) -> None:
    times = []
    for _ in range(6):
        with tempfile.TemporaryDirectory() as workdir:
            times.append(
                seconds(*flags, *([f"--workdir={workdir}/run"] if fresh else []), until=until)
            )
    times = times[1:]  # the first fills the caches
    print(
        f"{name:34s} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})",
        flush=True,
    )


if __name__ == "__main__":
    report("--help", "--help")
    report("--mode=check", CONFIG, "--mode=check")
    report("first train step", CONFIG, "--config.log.every=steps=1", until="step 1/", fresh=True)
