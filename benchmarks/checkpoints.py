"""What a checkpoint every 100 steps costs the Fashion-MNIST run, as a share of its time.

    python benchmarks/checkpoints.py

The same steps with and without checkpoints, in turn, three times each; the run itself times its training, evaluation
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
STEPS = 600


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
    rows = [(run(100), run(STEPS)) for _ in range(3)]
    saving, plain = (
        [statistics.median(row[i][k] for row in rows) for k in range(3)] for i in range(2)
    )
    extra = STEPS // 100 - 1  # both save at the end
    print(f"{STEPS} steps, medians of 3     every 100 steps   at the end alone")
    print(
        f"seconds of training        {saving[0]:15.2f} {plain[0]:18.2f}   {saving[0] / plain[0] - 1:+.2%}"
    )
    print(
        f"processor seconds          {saving[2]:15.2f} {plain[2]:18.2f}   {saving[2] / plain[2] - 1:+.2%}"
    )
    stood = (saving[1] - plain[1]) / extra
    print(
        f"the loop stands still for {1000 * stood:.1f} ms a checkpoint: "
        f"{stood / (saving[0] / STEPS * 100):.2%} of 100 steps"
    )
