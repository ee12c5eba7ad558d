"""The README's accuracies: trains shipped configs with several seeds and prints the test accuracy of each.

    python benchmarks/accuracy.py digits_cnn mnist5k_cnn fashion_mnist_cnn --seeds=0,1,2
    python benchmarks/accuracy.py fashion_mnist_best --seeds=0

Runs lie in runs/benchmarks/; what is finished there is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(name: str, seed: int) -> dict[str, float]:
    """Trains one config with one seed, in a process of its own, and returns its summary."""
    workdir = ROOT / "runs" / "benchmarks" / f"{name}-{seed}"
    subprocess.run(
        [
            sys.executable,
            "launch.py",
            f"--config=configs/{name}.py",
            f"--config.seed={seed}",
            f"--workdir={workdir}",
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((workdir / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="configs/NAME.py")
    parser.add_argument("--seeds", default="0,1,2")
    flags = parser.parse_args()
    seeds = [int(seed) for seed in flags.seeds.split(",")]
    print(
        f"{'config':20s} {'seed':>4s} {'test accuracy':>14s} {'95% interval':>20s} {'seconds':>8s} {'wait':>8s}"
    )
    for name in flags.names:
        accuracies = []
        for seed in seeds:
            s = run(name, seed)
            accuracies.append(s["test/accuracy"])
            interval = f"{s['test/accuracy_low']:.4f} to {s['test/accuracy_high']:.4f}"
            print(
                f"{name:20s} {seed:4d} {s['test/accuracy']:14.4f} {interval:>20s} {s['seconds_total']:8.1f} "
                f"{s['data_wait_fraction']:8.5f}",
                flush=True,
            )
        if len(seeds) > 1:
            print(f"{name:20s} mean {statistics.mean(accuracies):14.4f}", flush=True)


if __name__ == "__main__":
    main()
