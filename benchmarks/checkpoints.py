"""What a checkpoint every 100 steps costs the Fashion-MNIST run, as a share of its time.

    python benchmarks/checkpoints.py

The same steps with and without checkpoints, in turn, four times each; the run itself times its training, evaluation
left out. Machines are noisy, so the processor time that the run used is compared as well.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS, ROUNDS = 1000, 4


def run(every: int) -> tuple[float, float, float]:
    """Returns seconds of training, seconds in which the loop stood still to save, and processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [
                sys.executable,
                "launch.py",
                "--config=configs/fashion_mnist_cnn.py",
                f"--config.train.duration=steps={STEPS}",
                f"--config.eval.every=steps={STEPS}",
                f"--config.checkpoint.every=steps={every}",
                "--config.eval.bootstrap=0",
                f"--workdir={workdir}/run",
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ,
        )
        summary = json.loads((Path(workdir) / "run" / "summary.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return summary["seconds_training"], summary["seconds_checkpoint"], processor


if __name__ == "__main__":
    run(100)  # fills the caches
    rows = [(run(100), run(STEPS)) for _ in range(ROUNDS)]
    columns = [[[row[i][k] for row in rows] for i in range(2)] for k in range(3)]
    print(f"{STEPS} steps, {ROUNDS} rounds             every 100 steps   at the end alone")
    for k, name in ((0, "seconds of training"), (2, "processor seconds")):
        for how, pick in (("median", statistics.median), ("least", min)):
            saving, plain = map(pick, columns[k])
            print(
                f"{name + ', ' + how:28s} {saving:15.2f} {plain:18.2f}   {saving / plain - 1:+.2%}"
            )
    stood = (min(columns[1][0]) - min(columns[1][1])) / (STEPS // 100 - 1)  # both save at the end
    share = stood / (min(columns[0][0]) / STEPS * 100)
    print(f"the loop stands still for {1000 * stood:.1f} ms a checkpoint, {share:.2%} of 100 steps")
