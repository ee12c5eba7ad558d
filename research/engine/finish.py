"""What follows the last step: the final figures with their intervals, the summary and the report."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.data.source import in_order, is_test
from research.engine import pretrained, table
from research.engine.checkpoint import Checkpoints, Restored, demand_same_data
from research.engine.evaluate import predict_split
from research.engine.parallel import Parallel
from research.engine.program import durations, make_program, parameter_table, state_shapes
from research.engine.report import write_report
from research.engine.state import TrainState, params_sha256
from research.engine.train import Trained
from research.engine.writer import Writer
from research.errors import UserError
from research.task import Section, Task


def restore_final(
    config: Any,
    workdir: Path,
    task: Task,
    parallel: Parallel,
    report: Callable[[str], None] = print,
) -> Restored:
    """Returns the checkpoint that `config.eval.final` names: the newest, or the best; the newest if that is damaged.

    Raises:
      UserError: there is none, it is of another model, or the data is not what it was.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    restored = None
    pace = checkpoints.newest_meta().get("steps_per_minute")
    units = durations(config, task, pace)
    shapes = state_shapes(config, task, parallel, units)
    try:
        if config.eval.final == "best" and (best := checkpoints.newest_meta().get("best")):
            restored = checkpoints.restore(shapes, step=best["step"], report=report)
        restored = restored or checkpoints.restore(shapes, report=report)
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir}: holds no whole checkpoint; train first")
    demand_same_data(restored, task.data.fingerprints)
    program = make_program(config, task, parallel, units, at=max(restored.step - 1, 0))
    state = pretrained.complete(config, task, program, restored.state, restored.meta)
    return restored._replace(state=state)


def final_figures(
    config: Any,
    task: Task,
    parallel: Parallel,
    state: TrainState,
    predict: Callable | None = None,
    validated: dict[str, Any] | None = None,
) -> tuple[dict[str, float], list[Section]]:
    """Measures a trained state, which is on devices, on the tests and the validation split.

    Args:
      predict: `task.predict` as it is compiled already, if it is.
      validated: what it says of the validation split, if that is known already.

    Returns:
      Figures as 'test/accuracy', and what the task has to say of its predictions on every test, or else on validation.
    """
    figures: dict[str, float] = {}
    sections: list[Section] = []
    predict = predict or parallel.map(task.predict)
    tests = [split for split in in_order(task.data.sizes) if is_test(split)]
    for split in [*tests, "validation"] if "validation" in task.data.sizes else tests:
        known = validated if split == "validation" else None
        outputs = known or predict_split(config, task, parallel, predict, state, split)
        figures |= {f"{split}/{name}": value for name, value in task.measure(outputs, True).items()}
        if is_test(split) or not tests:
            sections += task.describe(outputs, split)
    return figures, sections


def finish(
    config: Any, workdir: Path, task: Task, parallel: Parallel, writer: Writer, trained: Trained
) -> dict[str, Any]:
    """Measures a finished run, writes summary.json and report.html, and returns the summary."""
    state = trained.state
    assert state is not None
    last = parallel.take_state(state)
    step, validated = trained.step, trained.validated
    if config.eval.final == "best" and trained.best and trained.best["step"] != step:
        restored = restore_final(config, workdir, task, parallel, report=writer.say)
        state, step, validated = parallel.put_state(restored.state), restored.step, None
        writer.say(f"the final figures are of step {step:,}, the best by {config.checkpoint.best}")
    figures, sections = final_figures(config, task, parallel, state, trained.predict, validated)
    for split in filter(is_test, in_order(task.data.sizes)):
        head = f"{split}/"
        tested = {k.removeprefix(head): v for k, v in figures.items() if k.startswith(head)}
        writer.log(trained.step, split, tested)
    rows = parameter_table(config, task, parallel, trained.units)
    summary = {
        **figures,
        "steps": trained.step,
        "evaluated_step": step,
        **(
            {"best_step": trained.best["step"], "best": trained.best["value"]}
            if trained.best
            else {}
        ),
        **trained.clock.summary(config.train.batch_size),
        "peak_memory_bytes": peak_memory_bytes(),
        "params_total": sum(row.size for row in rows),
        "params_trainable": sum(row.size for row in rows if row.trainable),
        "params_sha256": params_sha256(last.params),
    }
    writer.write_summary(summary)
    header = ("group", "arrays", "parameters", "trained", "lr x")
    trained_groups = Section("What was trained", "table", (header, table.group_rows(rows)))
    write_report(workdir, [*sections, trained_groups, Section("Data", "facts", task.data.report)])
    writer.end_run(0)  # last: until then the same command comes back here
    return summary


def peak_memory_bytes() -> int:
    """The most memory held so far: on the first accelerator, or by this process where there is none."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
