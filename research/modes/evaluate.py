"""Measures a trained model on its tests and validation data, with intervals."""

from typing import Any

from research import modes


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    layout, task, restored = modes.restore(config, path)
    from research.engine import files
    from research.engine.finish import final_figures
    from research.engine.text import figure_table, print_table

    figures, _ = final_figures(config, task, layout, layout.put_state(restored.state))
    files.write_json(path / "evaluation.json", {"step": restored.step, **figures})
    print_table(*figure_table(figures), title=f"{path}, step {restored.step:,}")
    return 0
