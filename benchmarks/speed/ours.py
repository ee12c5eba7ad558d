"""Our side of benchmarks/bench.py: the parts of a run, made and timed when asked to.

    {"do": "make", "config": "configs/python_lm.py", "settings": ["train.batch_size=4"], "folder": "runs/x"}
    {"do": "train", "steps": 3}              -> {"ms": [...], "processor_ms": [...]}
    {"do": "infer", "batch": 1, "steps": 3}  the same
    {"do": "memory"}                         -> {"peak_mb": ...} of the process until now
    {"do": "product"}                        -> {"gflops": ...} of a product of 2048 x 2048 matrices
    {"do": "data", "count": 100}             -> {"ms": ...} of making so many batches
    {"do": "compile", "config": ...}         -> {"seconds", "processor_seconds"} of tracing and compiling

It is the step that a run takes: config, `modes.build`, `make_program`, `compile_train`. Pretrained values are left out.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.turns import ROOT, answering, serve, timed

BATCHES = 8  # different ones, which the steps go round


def main() -> None:
    def make(config: str, settings: list[str], folder: str = "") -> tuple[Any, dict[str, Any]]:
        run = Run(config, settings)
        return run, run.make(folder)

    serve(answering(make, compile=compile_time, product=product))


class Run:
    """A run's parts, without running it: config, layout, task, program."""

    def __init__(self, config: str, settings: list[str]):
        from research import config as configs
        from research import modes
        from research.engine.program import durations, make_program
        from research.errors import UserErrors

        pairs = [tuple(setting.split("=", 1)) for setting in settings]
        self.config, mistakes = configs.load(str(ROOT / config), pairs)
        if mistakes:
            raise UserErrors(mistakes)
        self.layout, self.task = modes.build(self.config)
        self.program = make_program(
            self.config, self.task, self.layout, durations(self.config, self.task)
        )

    def make(self, folder: str) -> dict[str, Any]:
        """Compiles the step; writes into the folder what the other side is trained on."""
        import jax

        rows = self.layout.rows(self.config.train.batch_size)
        batches = [self.task.data.train_batch(n, rows) for n in range(BATCHES)]
        if folder:
            fields = {
                key: np.stack([batch[key] for batch in batches])
                for key in batches[0]
                if all(batch[key].shape == batches[0][key].shape for batch in batches)
            }
            np.savez(Path(folder) / "batches.npz", **fields)
        self.state = self.layout.put_state(jax.device_get(self.program.create()))
        self.batches, self.done = [self.layout.put_batch(batch) for batch in batches], 0
        start = time.perf_counter()
        self.step = self.layout.compile_train(self.program.step, self.state, self.batches[0])
        seconds = time.perf_counter() - start
        self.programs: dict[int, Any] = {}
        about = self.task.about
        return {
            "jax": jax.__version__,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "vocabulary": about.get("vocab_size", 0),
            "compile_seconds": seconds,
            "executed_gflop": self.step.cost_analysis().get("flops", 0.0) / 1e9,
            **needed_mb(self.step),
        }

    def train(self, steps: int) -> dict[str, list[float]]:
        import jax

        def step() -> None:
            self.state, metrics = self.step(self.state, self.batches[self.done % BATCHES])
            jax.block_until_ready((self.state, metrics))
            self.done += 1

        return timed(step, steps)

    def infer(self, batch: int, steps: int) -> dict[str, list[float]]:
        """As an evaluation does it."""
        import jax

        from research.engine.parallel import compiled

        if batch not in self.programs:
            given = self.task.data.eval_batch("validation", 0, slice(0, batch))
            assert len(given["mask"]) == batch, "the validation split is too small"
            given = self.layout.put_batch(given)
            predict = self.layout.map(self.task.predict)
            made = compiled(predict.lower(self.state.params, self.state.model_state, given))
            self.programs[batch] = made, given
        program, given = self.programs[batch]
        state = self.state
        return timed(
            lambda: jax.block_until_ready(program(state.params, state.model_state, given)), steps
        )

    def data(self, count: int) -> dict[str, float]:
        start = time.perf_counter()
        rows = self.layout.rows(self.config.train.batch_size)
        for n in range(count):
            self.task.data.train_batch(n, rows)
        return {"ms": (time.perf_counter() - start) * 1e3}


def needed_mb(step: Any) -> dict[str, float]:
    """What XLA says a compiled step needs: of its arguments, and of what it makes on its way."""
    analysis = step.memory_analysis()
    if analysis is None:
        return {}
    return {
        "argument_mb": analysis.argument_size_in_bytes / 2**20,
        "temporary_mb": analysis.temp_size_in_bytes / 2**20,
    }


def compile_time(config: str, settings: list[str]) -> dict[str, float]:
    import jax

    run = Run(config, settings)
    rows = run.layout.rows(run.config.train.batch_size)
    batch = run.layout.put_batch(run.task.data.train_batch(0, rows))
    state = jax.eval_shape(run.program.create)
    taken = timed(lambda: run.layout.compile_train(run.program.step, state, batch), 1)
    return {"seconds": taken["ms"][0] / 1e3, "processor_seconds": taken["processor_ms"][0] / 1e3}


def product(size: int = 2048, repeats: int = 5) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.dot)
    jax.block_until_ready(multiply(x, x))
    times = timed(lambda: jax.block_until_ready(multiply(x, x)), repeats)
    return {"gflops": 2 * size**3 / min(times["ms"]) / 1e6}


if __name__ == "__main__":
    main()
