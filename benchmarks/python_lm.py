"""configs/python_lm.py beside the same model in PyTorch: both curves, and the time of a step, taken in turn.

    python benchmarks/python_lm.py --torch=PYTHON [--steps=3000] [--every=25] [--evaluations=10] [--rounds=6]
        [--threads=2] [--runs=runs/benchmarks/python_lm] [--set KEY=VALUE ...] [--json=FILE] [--plot=FILE.png]

Both start from the same parameters and meet the same batches, learning rates, weight decay and clipping: what they
differ by is rounding and time. Ours is a run of launch.py in RUNS/ours; PYTHON, an interpreter that has torch, runs
benchmarks/python_lm_torch.py, which reads what is exported into RUNS/theirs. Both keep what they have done, and --json
the times of steps: a command that was stopped goes on when it is given again. `--steps` is also what
the schedule spans.

First, the gradients of the first batch are compared: of each parameter the largest difference, to its gradient's
largest entry. Then steps are timed, in two processes that take `--block` of them in turn (0 rounds: not at all), on
the same batches; where other programs run, OMP_WAIT_POLICY=PASSIVE in the environment keeps PyTorch's threads from
waiting busily. Then come the curves. --json has all of it: the loss over every `--every` steps in nats a token,
the bits per byte of the validation split, and the seconds.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed.ours import Run
from benchmarks.turns import ROOT, Worker, in_turn, median_ratio, pin, timed

CONFIG = "configs/python_lm.py"
FIELDS = ("tokens", "targets", "segments", "positions", "weights", "mask")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--torch", required=True, help="an interpreter with torch")
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--every", type=int, default=25, help="steps of a point of the loss")
    options.add_argument("--evaluations", type=int, default=10, help="of the validation split")
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--block", type=int, default=20, help="steps of a turn")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runs", default="runs/benchmarks/python_lm")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--json", default="", help="a file for the figures")
    options.add_argument("--plot", default="", help="a PNG for both curves")
    given = options.parse_args()
    cores = pin(given.threads)
    runs = Path(given.runs).resolve()
    settings = [
        f"train.duration=steps={given.steps}",
        f"log.every=steps={given.every}",
        f"eval.every=steps={max(given.steps // given.evaluations, 1)}",
        f"checkpoint.every=steps={max(given.steps // given.evaluations, 1)}",
        *given.set,
    ]
    found: dict[str, Any] = {"set": settings, "cores": cores}
    found["load_before"] = os.getloadavg()[0]  # of the last minute; 0 where nothing else runs
    kept = json.loads(Path(given.json).read_text()) if os.path.isfile(given.json) else {}
    if kept.get("step") and kept["set"] == settings and kept["cores"] == cores:
        found |= {key: kept[key] for key in ("load_before", "step")}

    def keep() -> None:
        if given.json:
            Path(given.json).write_text(json.dumps(found, indent=1) + "\n")

    mine = Ours(settings)
    mine.export(runs / "theirs", given.steps)
    theirs = Worker(given.torch, "python_lm_torch.py", runs / "theirs", cores, threads=cores)
    found |= compared(mine, theirs, runs / "theirs")
    print(f"jax {found['jax']}, torch {found['torch']}, {found['parameters']:,} parameters")
    print(f"gradients of the first batch differ by {found['gradient_difference']:.1e} at most")
    keep()
    if given.rounds and "step" not in found:
        found["step"] = steps_in_turn(mine, theirs, given.rounds, given.block)
        keep()
    if "step" in found:
        for unit, figures in found["step"].items():
            words = "a step, {}: ours {ours:.0f}, theirs {theirs:.0f}, ratio {ratio:.3f}"
            print(words.format(unit, **figures))
    mine.free()
    found["ours"] = run(runs / "ours", settings)
    keep()
    found["theirs"] = theirs.ask(do="train")
    found |= differences(found["ours"], found["theirs"])
    keep()
    report(found)
    if given.plot:
        plot(found, Path(given.plot))


class Ours(Run):
    """Its batches, its state before the first step, its compiled step."""

    def __init__(self, settings: list[str]):
        super().__init__(CONFIG, settings)
        self._step: Any = None
        self._done = 0

    def export(self, folder: Path, steps: int) -> None:
        """Writes what the other side starts from and is trained on."""
        import jax

        from research.engine.optim import decay_mask
        from research.engine.state import named_leaves

        folder.mkdir(parents=True, exist_ok=True)
        config, model = self.config, self.config.model
        params = jax.device_get(self.program.create()).params
        leaves = named_leaves(params)
        decayed = named_leaves(decay_mask(config.optimizer.decay_exclude)(params))
        said = {
            "steps": steps,
            "log_every": int(config.log.every.removeprefix("steps=")),
            "eval_every": int(config.eval.every.removeprefix("steps=")),
            "model": {
                "vocab_size": int(leaves["embed/embedding"].shape[0]),
                "context": model.context,
                "width": model.width,
                "depth": model.depth,
                "heads": model.heads,
                "hidden": int(leaves["block_0/mlp/up/kernel"].shape[1]),
            },
            "decayed": [path for path, is_decayed in decayed.items() if is_decayed],
            "weight_decay": config.optimizer.weight_decay,
            "clip_norm": config.optimizer.clip_norm,
            "rates": [float(self.program.schedule(n)) for n in range(steps)],
            "data": self.task.data.fingerprints,
        }
        np.savez(folder / "initial.npz", **leaves)
        train = [self.task.data.train_batch(n, slice(None)) for n in range(steps)]
        size = config.eval.batch_size
        count = -(-self.task.data.sizes["validation"] // size)
        validation = [
            self.task.data.eval_batch("validation", n, slice(0, size)) for n in range(count)
        ]
        for name, batches in (("train", train), ("validation", validation)):
            stacked = {
                key: np.stack([batch[key] for batch in batches]) for key in (*FIELDS, "bytes")
            }
            np.savez(folder / f"{name}.npz", **stacked)
        (folder / "settings.json").write_text(json.dumps(said) + "\n")

    def gradient(self) -> dict[str, np.ndarray]:
        """Of the mean loss over the tokens of the first batch, at the initial parameters."""
        import jax
        import jax.numpy as jnp

        from research.engine import rng
        from research.engine.state import named_leaves

        state = self.program.create()
        rngs = rng.step_keys(self.config.seed, state.step, ("dropout",))
        batch = self.task.data.train_batch(0, slice(None))

        def mean(params: Any) -> jax.Array:
            out = self.task.loss(params, state.model_state, batch, rngs)
            return jnp.sum(out.losses * out.weights) / jnp.sum(out.weights)

        return named_leaves(jax.device_get(jax.jit(jax.grad(mean))(state.params)))

    def time(self, steps: int) -> dict[str, list[float]]:
        """Takes steps of a run of its own; returns the ms of each, by the clock and of the processor."""
        import jax

        rows = self.layout.rows(self.config.train.batch_size)
        if self._step is None:
            self._state = self.layout.put_state(jax.device_get(self.program.create()))
            batch = self.layout.put_batch(self.task.data.train_batch(0, rows))
            self._step = self.layout.compile_train(self.program.step, self._state, batch)
        batches = [
            self.layout.put_batch(self.task.data.train_batch(self._done + i, rows))
            for i in range(steps)
        ]
        jax.block_until_ready(batches)
        self._done += steps
        following = iter(batches)

        def step() -> None:
            self._state, metrics = self._step(self._state, next(following))
            jax.block_until_ready((self._state, metrics))

        return timed(step, steps)

    def free(self) -> None:
        self._state = self._step = None


def compared(mine: Ours, theirs: Worker, folder: Path) -> dict[str, Any]:
    """Returns how far the gradients of the first batch are apart."""
    import jax

    answer = theirs.ask(do="gradient")
    apart = {}
    with np.load(folder / "gradient.npz") as file:
        for name, ours in mine.gradient().items():
            if name.endswith("key/bias"):  # 0 but for rounding: the softmax does not see it
                continue
            apart[name] = float(np.abs(ours - file[name]).max() / np.abs(file[name]).max())
    worst = max(apart, key=apart.__getitem__)
    return {
        "jax": jax.__version__,
        "torch": answer["version"],
        "parameters": answer["parameters"],
        "gradient_difference": apart[worst],
        "gradient_difference_of": worst,
    }


def steps_in_turn(mine: Ours, theirs: Worker, rounds: int, block: int) -> dict[str, Any]:
    """Returns for 'ms' by the clock, and 'processor_ms' over all threads, which other programs disturb less:

    the median of all steps of each side, the least, and the median of the rounds' ratios of medians.
    """
    sides = {"ours": mine.time, "theirs": lambda steps: theirs.ask(do="time", steps=steps)}
    for side in sides.values():
        side(2)  # compiles, warms up
    turns = {name: functools.partial(side, block) for name, side in sides.items()}
    taken = in_turn(turns, rounds, warm=0)
    found = {}
    for unit in ("ms", "processor_ms"):
        each = {side: [times[unit] for times in blocks] for side, blocks in taken.items()}
        medians = {side: [statistics.median(b) for b in blocks] for side, blocks in each.items()}
        flat = {side: list(itertools.chain(*blocks)) for side, blocks in each.items()}
        found[unit] = {
            **{side: statistics.median(steps) for side, steps in flat.items()},
            **{f"{side}_least": min(steps) for side, steps in flat.items()},
            "ratio": median_ratio(medians["ours"], medians["theirs"]),
            "rounds": medians,
        }
    return found


def run(workdir: Path, settings: list[str]) -> dict[str, Any]:
    """Trains ours, unless that is done, and returns its curves and its summary."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "launch.py", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in settings]
    with open(f"{workdir}.log", "a") as log:
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if ended.returncode:
        last = Path(log.name).read_text().strip().splitlines()[-1:]
        print(f"ours: {''.join(last)} ({log.name})", file=sys.stderr)
        sys.exit(ended.returncode)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curves = {
        split: [[line["step"], line[name]] for line in lines if line["split"] == split]
        for split, name in (("train", "loss"), ("validation", "bits_per_byte"))
    }
    return {**curves, "summary": json.loads((workdir / "summary.json").read_text())}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Returns how far the curves are apart at most, and at which step."""
    found = {}
    for split in ("train", "validation"):
        pairs = list(zip(ours[split], theirs[split], strict=True))
        assert all(a[0] == b[0] for a, b in pairs), "the curves have other steps"
        apart, at = max((abs(a[1] - b[1]), a[0]) for a, b in pairs)
        found[f"{split}_difference"] = {"largest": apart, "at": at}
    return found


def report(found: dict[str, Any]) -> None:
    print(f"{'step':>8s}{'ours':>10s}{'theirs':>10s}  bits per byte of the validation split")
    pairs = zip(found["ours"]["validation"], found["theirs"]["validation"], strict=True)
    for (step, ours), (_, theirs) in pairs:
        print(f"{step:8d}{ours:10.4f}{theirs:10.4f}")
    for split, unit in (("train", "nats a token"), ("validation", "bits per byte")):
        apart = found[f"{split}_difference"]
        print(f"{split}: {apart['largest']:.1e} {unit} apart at most, at step {apart['at']}")
    minutes = (
        found["ours"]["summary"]["seconds_training"] / 60,
        sum(found["theirs"]["seconds"]) / 60,
    )
    print("minutes of training: ours {:.1f}, theirs {:.1f}".format(*minutes))


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws the loss and the bits per byte of both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=100)
    styles = {
        "ours": dict(color="C0", lw=2.5, alpha=0.6),
        "theirs": dict(color="k", lw=0.8, ls="--"),
    }
    names = {"ours": "ours", "theirs": "PyTorch"}
    titles = {"train": "training loss, nats a token", "validation": "validation, bits per byte"}
    for axis, (split, title) in zip(axes, titles.items(), strict=True):
        for side, style in styles.items():
            axis.plot(*zip(*found[side][split], strict=True), label=names[side], **style)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
