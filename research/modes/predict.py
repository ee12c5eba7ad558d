"""Predicts what a user's own files show, or goes on with a user's own texts."""

import json
import sys
from pathlib import Path
from typing import Any

from research import modes


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    layout, task, restored = modes.restore(config, path)
    paths = [name.strip() for name in (flags.inputs or "").split(",") if name.strip()]
    state = layout.put_state(restored.state)
    if task.generate is not None:
        return _write(config, path, layout, task, state, paths, flags.prompt)
    from research.engine.evaluate import predictions
    from research.engine.state import evaluated_params
    from research.engine.text import print_table

    inputs = task.read_inputs(paths, flags.prompt)
    outputs = predictions(
        layout.map(task.predict),
        evaluated_params(state),
        state.model_state,
        inputs.batch,
        size=len(inputs.names),
        batch_size=config.eval.batch_size,
        parallel=layout,
    )
    rows = [
        {"input": name, **row} for name, row in zip(inputs.names, task.decode(outputs), strict=True)
    ]
    header = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    print_table(header, [[_word(row[key]) for key in header] for row in rows])
    _keep(path, rows)
    return 0


def _write(
    config: Any,
    path: Path,
    layout: Any,
    task: Any,
    state: Any,
    paths: list[str],
    prompt: str | None,
) -> int:
    """Goes on with each prompt; a single one is shown as it grows."""
    from research.engine.state import evaluated_params

    prompts = task.read_prompts(paths, prompt)
    alone = len(prompts) == 1
    shown = prompts[0].shown  # with the first piece, for a prompt that is too long is told instead

    def emit(i: int, piece: str) -> None:
        nonlocal shown
        if alone:
            print(shown + piece, end="", flush=True)
            shown = ""

    host = layout.take_state(state)
    given = [one.given for one in prompts]
    params = evaluated_params(host)
    written = task.generate(params, host.model_state, given, config.generate, emit)
    rows = [
        {"input": one.name, "prompt": one.given, "text": text}
        for one, text in zip(prompts, written, strict=True)
    ]
    if alone:
        print(shown)
    else:
        for one, text in zip(prompts, written, strict=True):
            print(f"--- {one.name}\n{one.shown}{text}")
    _keep(path, rows)
    return 0


def _keep(path: Path, rows: list[dict[str, Any]]) -> None:
    from research.engine.files import write_text

    write_text(path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"written to {path / 'predictions.jsonl'}", file=sys.stderr)


def _word(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
