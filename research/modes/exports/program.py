"""A trained model as a program, compared with the model before it is handed out."""

import importlib
import json
from pathlib import Path
from typing import Any

from research.errors import Failure, UserError

CHECKED = 8  # pictures on which a program is compared with the model
# Of the largest logit. Another compiler sums in another order: some 1e-6. ONNX has float32 for bfloat16: some 1e-2.
ALLOWED = {"float32": 1e-3, "bfloat16": 1e-1}


def write(
    target: Path,
    format: str,
    config: Any,
    model: Any,
    about: dict[str, Any],
    task: Any,
    state: Any,
) -> str:
    """Writes the program and returns what its comparison with the model, as it was trained, says.

    Raises:
      UserError: the model is no classifier of pictures.
      Failure: they differ by more than rounding.
    """
    module = importlib.import_module(f"research.transfer.programs.{format}")
    module.write(_program(model, about), target)
    return _check(module, target, config, task, state)


def texts(about: dict[str, Any]) -> dict[str, str]:
    """Returns a description as the metadata that files of weights and programs take."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}


def _program(model: Any, about: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    from research.transfer import programs

    if list(about["inputs"]) != ["image"]:
        raise UserError(
            "--format: programs are written of classifiers of pictures only; use safetensors"
        )

    def logits(images):
        zeros = jnp.zeros(images.shape[0], jnp.int32)  # nothing that is returned depends on them
        batch = {"image": images, "label": zeros, "id": zeros, "mask": zeros.astype(jnp.float32)}
        return model.task.predict(model.params, model.model_state, batch)["logits"]

    return programs.make(
        logits,
        shape=tuple(about["inputs"]["image"]),
        mean=about["mean"],
        std=about["std"],
        metadata=texts(about),
    )


def _check(module: Any, path: Path, config: Any, task: Any, state: Any) -> str:
    """Compares a written program with the model as it was trained, on pictures of the data.

    Raises:
      Failure: they differ by more than rounding.
    """
    import jax
    import numpy as np

    from research.engine.state import evaluated_params

    program = module.load(path)
    if program is None:
        return "not checked, for want of the package that runs it: pip install -r requirements-export.txt"
    split = next(s for s in ("test", "validation", "train") if s in task.data.sizes)
    count = min(CHECKED, task.data.sizes[split])
    batch = task.data.eval_batch(split, 0, slice(0, count))
    mean, std = (np.asarray(task.about[key], np.float64) for key in ("mean", "std"))
    images = np.rint((batch["image"] * std + mean) * 255).clip(0, 255).astype(np.uint8)
    wanted = jax.jit(task.predict)(evaluated_params(state), state.model_state, batch)["logits"]
    found = program(images)["logits"]
    difference = float(np.abs(np.asarray(wanted) - found).max())
    largest = float(np.abs(wanted).max())
    if not difference <= ALLOWED[config.train.precision] * max(1.0, largest):
        raise Failure(
            f"{path.name}: its logits differ from the model's by {difference:.3g} (the largest is {largest:.3g}); "
            "nothing was written"
        )
    by = f"{difference:.2g} of {largest:.3g}"
    return f"on {count} {split} pictures its logits differ from the model's by at most {by}"
