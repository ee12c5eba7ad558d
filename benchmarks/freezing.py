"""What a frozen trunk saves: FLOPs, time and optimizer memory of a train step, and PyTorch's time beside ours.

    python benchmarks/freezing.py [--torch=PYTHON] [--rounds=11] [--nets=efficientnet,resnet] [--json=FILE]

EfficientNet-Lite0 on pictures of 96x96 and ResNet-18 (small stem) on 64x64, batches of 32, AdamW; everything trained,
or the head alone. The steps are those of a run: config, `modes.build`, `make_program`, `compile_train`. Features are
not kept (that is benchmarks/probe.py): the trunk runs forward in each step. Nothing is dropped at random, on either
side.

Both sides take their steps in turn, in processes of their own on the same `--cores` cores. PYTHON is an interpreter
that has torch; benchmarks/freezing_torch.py says what it runs. PyTorch has both layouts of memory tried, and its
threads' waiting both as it comes and passive (OMP_WAIT_POLICY); the fastest for each step counts. A ratio is the median
of the rounds' ratios.
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import turns

SIDES = {"efficientnet": 96, "resnet": 64}
NAMES = {"efficientnet": "EfficientNet-Lite0, 96x96", "resnet": "ResNet-18, 64x64"}
STEPS = {"efficientnet": 3, "resnet": 1}  # in a turn
TRAINED = ("all", "head")
BATCH, CLASSES = 32, 10
ASKED = {"flops": 0.02, "ratio": 0.4}


class Times(NamedTuple):
    """Of a step: by the clock, and of the processor over all threads, which other programs disturb less."""

    ms: float
    processor_ms: float


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--torch", default="", help="an interpreter with torch; '' leaves it out")
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--nets", default="efficientnet,resnet")
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    cores = turns.pin(given.cores)
    before = os.getloadavg()[0]
    workers = [Worker(given.torch, cores, wait) for wait in ("", "PASSIVE") if given.torch]
    found = {net: measure(net, workers, given.rounds) for net in given.nets.split(",")}

    import jax

    result = {
        "jax": jax.__version__,
        "torch": workers[0].version if workers else None,
        "cores": cores,
        "rounds": given.rounds,
        "load_before": before,  # of the last minute; 0 on a machine that does nothing else
        "nets": found,
    }
    report(result)
    if given.json:
        Path(given.json).write_text(json.dumps(result, indent=1) + "\n")


def measure(net: str, workers: list["Worker"], rounds: int) -> dict[str, Any]:
    """Returns the figures of one network."""
    programs = {trained: build(net, trained) for trained in TRAINED}
    found = arithmetic(programs)
    ours = {trained: Step(*program) for trained, program in programs.items()}
    sides: dict[tuple[str, str], Callable[[], Times]] = {}
    for trained, step in ours.items():
        found[f"optimizer_bytes_{trained}"] = step.optimizer_bytes
        found[f"optimizer_bytes_of_frozen_{trained}"] = step.frozen_bytes
        found[f"gflop_{trained}"] = step.gflop
        sides["ours", trained] = functools.partial(step, STEPS[net])
    found["gflop_ratio"] = found["gflop_head"] / found["gflop_all"]
    found["gflop_frozen_over_parts"] = found["gflop_head"] / found["gflop_trunk_and_head"]
    if workers:
        for trained in TRAINED:
            turn, tried, counts = fastest(workers, net, trained)
            assert counts == ours[trained].counts, f"not the same network: {counts}"
            found[f"torch_{trained}_tried_ms"] = tried
            sides["torch", trained] = turn
    times = turns.in_turn(sides, rounds)
    for side in dict.fromkeys(side for side, _ in times):
        for unit in Times._fields:
            each = {t: [getattr(m, unit) for m in times[side, t]] for t in TRAINED}
            ratios = turns.ratios(each["head"], each["all"])
            found[f"{side}_{unit}"] = {
                **{trained: statistics.median(each[trained]) for trained in TRAINED},
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
            }
    return found


def build(net: str, trained: str) -> tuple[Any, Any, Any]:
    """Returns the layout, the task and the program of a run on scikit-learn's digits, made larger."""
    from research import modes
    from research.config import defaults, resolve
    from research.engine.program import durations, make_program
    from research.errors import UserErrors
    from research.groups import probe

    config = defaults()
    config.data.name = "digits"
    config.data.image_size, config.data.channels = SIDES[net], 3
    config.model.name = net
    config.train.batch_size = BATCH
    config.optimizer.name, config.optimizer.weight_decay = "adamw", 0.01
    config.optimizer.groups = probe() if trained == "head" else ()
    still = [("model.dropout", "0.0")]
    still += [("model.drop_path", "0.0")] if net == "efficientnet" else []
    config, mistakes = resolve(config, still)
    if mistakes:
        raise UserErrors(mistakes)
    layout, task = modes.build(config)
    return layout, task, make_program(config, task, layout, durations(config, task))


def arithmetic(programs: dict[str, Any]) -> dict[str, float]:
    """Returns the GFLOP of the trunk's forward pass, and of the head's own step on features of the trunk."""
    import jax

    from research.engine.state import join, split
    from research.transfer.features import cut_point

    layout, task, program = programs["head"]
    state = jax.device_get(program.create())
    batch = task.data.train_batch(0, slice(None))
    trained, frozen = split(state.params, program.trainable)
    name = cut_point(program.task, trained, frozen, state.model_state, batch, join=join)

    def trunk(params, model_state, batch):
        return task.features(params, model_state, batch)[name]

    given = {name: jax.eval_shape(trunk, state.params, state.model_state, batch)}
    alone = {**task.data.train_batch(0, slice(None), inputs=False), "given": given}
    forward = layout.map(trunk).lower(state.params, state.model_state, batch).compile()
    head = layout.compile_train(program.step, jax.eval_shape(program.create), alone)
    parts = {"gflop_trunk": gflop(forward), "gflop_head_alone": gflop(head)}
    return {"cut": name, **parts, "gflop_trunk_and_head": sum(parts.values())}


def gflop(program: Any) -> float:
    return program.cost_analysis()["flops"] / 1e9


def medians(times: dict[str, Any]) -> Times:
    return Times(*(statistics.median(times[unit]) for unit in Times._fields))


class Step:
    """A run's compiled step: called with a number of steps, it takes them and returns the medians."""

    def __init__(self, layout: Any, task: Any, program: Any):
        import jax

        from research.engine.state import named_leaves

        self._state = layout.put_state(jax.device_get(program.create()))
        self._batch = layout.put_batch(task.data.train_batch(0, layout.rows(BATCH)))
        sizes = {path: leaf.size for path, leaf in named_leaves(self._state.params).items()}
        trainable = sum(size for path, size in sizes.items() if program.trainable(path))
        self.counts = {"parameters": sum(sizes.values()), "trainable": trainable}
        held = named_leaves(self._state.opt_state)
        self.optimizer_bytes = sum(leaf.nbytes for leaf in held.values())
        frozen = tuple("/" + path for path in sizes if not program.trainable(path))
        self.frozen_bytes = sum(leaf.nbytes for p, leaf in held.items() if p.endswith(frozen))
        self._step = layout.compile_train(program.step, self._state, self._batch)
        self.gflop = gflop(self._step)

    def __call__(self, steps: int) -> Times:
        import jax

        def step() -> None:
            self._state, metrics = self._step(self._state, self._batch)
            jax.block_until_ready((self._state, metrics))

        return medians(turns.timed(step, steps))


class Worker:
    """PyTorch in another interpreter."""

    def __init__(self, python: str, threads: int, wait: str):
        self.version = ""
        self._worker = turns.Worker(
            python, "freezing_torch.py", threads, threads=threads, wait=wait
        )
        self.wait = self._worker.wait

    def steps(self, net: str, trained: str, layout: str, count: int) -> tuple[Times, dict]:
        """Takes train steps; returns the medians of their times, and the counts of parameters."""
        asked = {"net": net, "trained": trained, "layout": layout, "batch": BATCH, "steps": count}
        answer = self._worker.ask(**asked)
        self.version = answer["version"]
        return medians(answer), {key: answer[key] for key in ("parameters", "trainable")}


def fastest(workers: list[Worker], net: str, trained: str):
    """Returns a turn of PyTorch's fastest step, the ms of all ways of taking it, and the network's counts."""
    ways: dict[str, Callable[[], Times]] = {}
    for worker in workers:
        for layout in ("default", "channels_last"):
            how = f"{layout}, waiting {worker.wait}"
            counts = worker.steps(net, trained, layout, 1)[1]  # makes it, and warms up
            ways[how] = lambda w=worker, form=layout: w.steps(net, trained, form, STEPS[net])[0]
    taken = turns.in_turn(ways, 2, warm=0)
    tried = {how: statistics.median(times.ms for times in each) for how, each in taken.items()}
    best = min(tried, key=tried.__getitem__)
    return ways[best], {best: tried.pop(best), **tried}, counts


def report(result: dict[str, Any]) -> None:
    versions = f"jax {result['jax']}" + (f", torch {result['torch']}" if result["torch"] else "")
    print(
        f"{versions}, {result['cores']} cores, batch {BATCH}, {result['rounds']} rounds, ", end=""
    )
    print(f"load before {result['load_before']:.2f}")
    print(f"{'':58s}{'all':>10s}{'frozen':>10s}{'ratio':>8s}  asked")
    for net, f in result["nets"].items():
        row(f"{NAMES[net]}: GFLOP a step", f["gflop_all"], f["gflop_head"], f["gflop_ratio"])
        near = abs(f["gflop_frozen_over_parts"] - 1) <= ASKED["flops"]
        parts = f["gflop_trunk_and_head"], f["gflop_head"], f["gflop_frozen_over_parts"]
        row("  frozen, to the trunk's forward pass + the head's step", *parts, "1 +- 0.02", near)
        ratio = f["ours_ms"]["ratio"]
        row("  ms a step, ours", *three(f["ours_ms"]), "<= 0.40", ratio <= ASKED["ratio"])
        if "torch_ms" in f:
            holds = ratio <= f["torch_ms"]["ratio"]
            row("  ms a step, PyTorch", *three(f["torch_ms"]), ">= ours", holds)
            best = {trained: next(iter(f[f"torch_{trained}_tried_ms"])) for trained in TRAINED}
            print(f"    all: {best['all']}; frozen: {best['head']}")
        row("  processor ms a step, ours", *three(f["ours_processor_ms"]))
        if "torch_ms" in f:
            row("  processor ms a step, PyTorch", *three(f["torch_processor_ms"]))
        sizes = f["optimizer_bytes_all"] / 1e3, f["optimizer_bytes_head"] / 1e3
        row("  optimizer kB", *sizes, sizes[1] / sizes[0])
        held = f["optimizer_bytes_of_frozen_head"]
        print(f"{'  optimizer bytes of frozen parameters':58s}{'':10s}{held:10d}", end="")
        print(f"{'':8s}  0{'' if held == 0 else ': MISSED'}")


def three(figures: dict[str, Any]) -> tuple[float, float, float]:
    return figures["all"], figures["head"], figures["ratio"]


def row(
    name: str, first: float, second: float, ratio: float, asked: str = "", holds: bool = True
) -> None:
    print(f"{name:58s}{first:10.2f}{second:10.2f}{ratio:8.3f}", end="")
    print(f"  {asked}{'' if holds else ': MISSED'}")


if __name__ == "__main__":
    main()
