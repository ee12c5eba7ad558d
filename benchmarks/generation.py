"""Tokens a second that are generated with a cache, and transformers' `generate` beside ours.

    python benchmarks/generation.py [--torch=PYTHON] [--rounds=7] [--batches=1,8] [--ways=greedy,drawn] [--json=FILE]

A Llama of 25 M parameters with random weights, prompts of 32 tokens, 128 new ones; greedy, and drawn with every filter
on. Both sides are timed with all a caller waits for: reading the prompt, the steps, and on ours the text, in pieces.

They take turns, in processes of their own on the same `--cores` cores. PYTHON is an interpreter that has torch and
transformers; benchmarks/generation_torch.py says what it runs. Its threads' waiting is tried both as it comes and
passive (OMP_WAIT_POLICY); the faster counts. A ratio is the median of the rounds' ratios.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import turns

SHAPE = {"vocab_size": 8192, "width": 512, "depth": 8, "heads": 8, "hidden": 1024, "context": 1024}
LLAMA = {
    "norm": "rms",
    "position": "rotary",
    "activation": "silu",
    "gated": True,
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "tied": True,
}
PROMPT, NEW = 32, 128
FILTERS = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.02,
    "repetition_penalty": 1.1,
}
PLAIN = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
OURS = {"greedy": PLAIN, "drawn": FILTERS}
THEIRS = {"greedy": {"do_sample": False}, "drawn": {"do_sample": True, **FILTERS}}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--torch", default="", help="an interpreter with transformers; '' is none")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--batches", default="1,8")
    options.add_argument("--ways", default="greedy,drawn")
    options.add_argument(
        "--steps", type=int, default=0, help="tokens at a time; 0: as generate has it"
    )
    options.add_argument("--waits", default=",PASSIVE", help="OMP_WAIT_POLICY of the other side")
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    cores = turns.pin(given.cores)
    before = os.getloadavg()[0]
    waits = given.waits.split(",") if given.torch else []
    workers = [Worker(given.torch, cores, wait) for wait in waits]
    ours = Ours(given.steps)
    found = {
        f"{how}, batch {batch}": measure(ours, workers, how, batch, given.rounds)
        for how in given.ways.split(",")
        for batch in map(int, given.batches.split(","))
    }

    import jax

    result = {
        "jax": jax.__version__,
        "torch": workers[0].about["versions"] if workers else None,
        "parameters": ours.parameters,
        "cores": cores,
        "rounds": given.rounds,
        "load_before": before,  # of the last minute; 0 on a machine that does nothing else
        "tokens_a_second": found,
    }
    report(result)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


def measure(ours: "Ours", workers: list["Worker"], how: str, batch: int, rounds: int) -> dict:
    """Returns tokens a second of both sides, by the clock and of the processor's seconds over all threads."""
    sides = {"ours": ours, **{f"theirs, waiting {worker.wait}": worker for worker in workers}}
    calls = {key: functools.partial(side, how, batch) for key, side in sides.items()}
    times = turns.in_turn(calls, rounds)
    tokens = batch * NEW
    found: dict[str, Any] = {}
    for key, each in times.items():
        clock, processor = (statistics.median(t) for t in zip(*each, strict=True))
        found[key] = {"clock": tokens / clock, "processor": tokens / processor}
    if workers:
        best = max((key for key in times if key != "ours"), key=lambda key: found[key]["clock"])
        pairs = list(zip(times["ours"], times[best], strict=True))
        ratios = [theirs[0] / mine[0] for mine, theirs in pairs]
        found["best"] = best
        found["ratio"] = statistics.median(ratios)
        found["ratio_range"] = [min(ratios), max(ratios)]
        found["ratio_processor"] = statistics.median(b[1] / a[1] for a, b in pairs)
    return found


class Ours:
    """Called with a way and a batch size: goes on with random prompts; returns the seconds."""

    def __init__(self, steps: int):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from research.models.transformer import Model

        shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
        model = Model(SHAPE["vocab_size"], 0, "lm", jnp.float32, None, **shape, **LLAMA)
        tokens = jnp.zeros((1, 4), jnp.int32)
        init = jax.jit(lambda key: model.init(key, tokens, train=False)["params"])
        self._params = init(jax.random.key(0))
        self._apply = lambda params, *a, **k: model.apply({"params": params}, *a, train=False, **k)
        self._cache_of, self._steps, self._rng = model.empty_cache, steps, np.random.default_rng(0)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))

    def __call__(self, how: str, batch: int) -> tuple[float, float]:
        from research.decoding.generate import generate

        prompts = [
            self._rng.integers(1, SHAPE["vocab_size"], PROMPT).astype("int32") for _ in range(batch)
        ]
        pieces: list[str] = []
        start = time.perf_counter(), time.process_time()
        made = generate(
            self._apply,
            self._params,
            self._cache_of,
            prompts,
            options=SimpleNamespace(max_tokens=NEW, stop=(), seed=0, **OURS[how]),
            decode=lambda ids: "".join(map(chr, ids)),
            context=SHAPE["context"],
            emit=lambda i, piece: pieces.append(piece),
            steps=self._steps,
        )
        seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        assert all(len(text.ids) == NEW for text in made) and pieces
        return seconds


class Worker:
    """transformers in another interpreter."""

    def __init__(self, python: str, threads: int, wait: str):
        self.about: dict[str, Any] = {}
        given = threads, json.dumps(SHAPE), json.dumps(THEIRS)
        self._worker = turns.Worker(
            python, "generation_torch.py", *given, threads=threads, wait=wait
        )
        self.wait = self._worker.wait

    def __call__(self, how: str, batch: int) -> tuple[float, float]:
        self.about = self._worker.ask(how=how, batch=batch, prompt=PROMPT, new=NEW)
        return self.about["seconds"], self.about["processor_seconds"]


def report(result: dict[str, Any]) -> None:
    versions = f"jax {result['jax']}" + (f", {result['torch']}" if result["torch"] else "")
    print(f"{versions}; {result['parameters']:,} parameters, {result['cores']} cores, ", end="")
    print(f"{result['rounds']} rounds, load before {result['load_before']:.2f}")
    print(f"{'tokens a second':40s}{'clock':>10s}{'processor':>11s}")
    for name, found in result["tokens_a_second"].items():
        print(name)
        for side, rate in found.items():
            if isinstance(rate, dict):
                print(f"  {side:38s}{rate['clock']:10.0f}{rate['processor']:11.0f}")
        if "ratio" in found:
            low, high = found["ratio_range"]
            missed = "" if found["ratio"] >= 1 else "  MISSED"
            print(f"  {'ratio, asked >= 1':38s}{found['ratio']:10.2f}", end="")
            print(f"{found['ratio_processor']:11.2f}  clock from {low:.2f} to {high:.2f}{missed}")


if __name__ == "__main__":
    main()
