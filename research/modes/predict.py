"""Predicts what a user's own files show."""

import json
from typing import Any

from research import modes


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    layout, task, restored = modes.restore(config, path)
    from research.engine.evaluate import predictions
    from research.engine.files import write_text
    from research.engine.state import evaluated_params
    from research.engine.text import print_table

    inputs = task.read_inputs([name.strip() for name in flags.inputs.split(",") if name.strip()])
    state = layout.put_state(restored.state)
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
    write_text(path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    header = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    print_table(header, [[_word(row[key]) for key in header] for row in rows])
    print(f"written to {path / 'predictions.jsonl'}")
    return 0


def _word(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
