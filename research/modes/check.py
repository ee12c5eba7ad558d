"""Shows what would run, without running it: every mistake of the config, else parameters, FLOPs, memory and data."""

import math
import re
from typing import Any

from research import modes
from research.config import find_module, resolve
from research.errors import UserError, UserErrors


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    found = [
        *mistakes,
        *modes.resume_problems(config, flags),
        *modes.teacher_problems(config, flags),
    ]
    layout, task = _build(config, found)

    import jax

    from research.engine import adapters, pretrained, table
    from research.engine.program import guessed, make_program, parameter_table
    from research.engine.step import make_train_step
    from research.engine.text import print_table
    from research.ops.platform import portable

    # Any pace will do where one would have to be measured: nothing that is shown depends on it.
    units = guessed(config, task)
    program = make_program(config, task, layout, units)
    state = jax.eval_shape(program.create)
    batch = task.data.train_batch(0, slice(None))
    part = {name: x[: len(x) // config.train.micro_batches] for name, x in batch.items()}
    # In one piece: XLA counts the body of a scan, over micro-batches or parts of a batch, once.
    whole = make_train_step(
        program.task, program.tx, seed=0, ema=config.train.ema, trainable=program.trainable
    )
    with portable():
        costs = jax.jit(whole).lower(state, batch).cost_analysis() or {}

    parameters = parameter_table(config, task, layout, units)
    print(table.format_table(parameters))
    print(*table.summarize(parameters)[:-1], sep="\n")  # the totals stand above
    imported = pretrained.read(config, state.params, state.model_state)
    print(*pretrained.remarks(config, task, program, imported), sep="\n")
    if adapter := adapters.read(config, state.params, imported):
        print(adapter.told(config.lora.adapter))
    print(*(f"{line}\n" for line in task.data.remarks), sep="")
    timed = config.train.duration.startswith("minutes")
    steps = config.train.duration if timed else f"{units.total_steps:,} steps"
    rows = [
        (
            "data",
            f"{config.data.name}: "
            + ", ".join(f"{split} {n:,}" for split, n in task.data.sizes.items()),
        ),
        (
            "a batch",
            ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items()) + f", {_size(batch)}",
        ),
        ("training", f"{steps}, {config.parallel.kind} over {layout.device_count} device(s)"),
        ("FLOPs a step", f"{costs.get('flops', math.nan):,.0f}"),
        ("memory, params", _size(state.params)),
        ("memory, EMA", _size(state.ema)),
        ("memory, model state", _size(state.model_state)),
        ("memory, optimizer", _size(state.opt_state)),
        ("memory, activations", f"{_size(_kept(program, state, part))} kept for the gradient"),
    ]
    if flags.compile:
        placed = layout.put_batch(batch)
        memory = layout.compile_train(
            program.step, layout.put_state(program.create()), placed
        ).memory_analysis()
        rows.append(
            (
                "memory, temporaries",
                f"{_bytes(memory.temp_size_in_bytes)} a device, as XLA compiled the step",
            )
        )
    print_table(("what", "how much"), rows)
    print("no mistake found")
    return 0


def _build(config: Any, mistakes: list[str]) -> tuple[Any, Any]:
    """Builds the layout and the task; with mistakes in the config, adds those in the data and tells all."""
    if not mistakes:
        # The arithmetic of both layouts is the same, and the mesh's can be looked at without a mapped axis.
        mesh, _ = resolve(config, [("parallel.kind", "mesh")])
        return modes.build(mesh)
    lines = list(mistakes)
    if not any(re.match(r"config\.(data|task)\b", line) for line in mistakes):
        try:
            find_module("tasks", config.task.name).prepare(config)
        except UserErrors as errors:
            lines += errors.lines
        except UserError as error:
            lines.append(str(error))
    raise UserErrors(dict.fromkeys(lines))


def _kept(program: Any, state: Any, batch: Any) -> list[Any]:
    """The shapes of what the forward pass keeps for the backward pass, parameters left out."""
    import jax

    from research.engine import rng
    from research.engine.state import join, split
    from research.engine.step import STREAMS

    def forward(params, model_state, batch):
        rngs = rng.step_keys(0, jax.numpy.int32(0), STREAMS)

        trained, frozen = split(params, program.trainable)

        def total(trained):
            out = program.task.loss(join(trained, frozen), model_state, batch, rngs)
            return (out.losses * out.weights).sum()

        _, backward = jax.vjp(total, trained)
        known = {id(leaf) for leaf in jax.tree.leaves((params, batch))}
        return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in known]

    return jax.eval_shape(forward, state.params, state.model_state, batch)


def _size(tree: Any) -> str:
    import jax
    import numpy as np

    return _bytes(
        sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
    )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"
