"""Trained models as programs that run without this project: one file a format, all with the same four names.

    FILE                          what the program is called in the directory that is written
    USE                           lines of Python that load it and call it on `images`
    write(program, path)          writes it
    load(path) -> run             run(images) -> {'logits', 'probabilities'}, to check what was written; or None where
                                  the package that runs it is not installed

Arithmetic that is specific to training, or to this project's speed on a CPU, does not matter to whoever runs them: they
hold the plain convolutions, products and sums of a prediction, weights included.

B pictures, H, W, K height, width and channels, C classes.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.ops.platform import portable

INPUT = "image"  # uint8 [B, H, W, K], 0 to 255, any B
OUTPUTS = ("logits", "probabilities")  # float32 [B, C] each


class Program(NamedTuple):
    """What is written: a function of pictures as they come, and what is said of it beside it."""

    predict: Callable[[jax.Array], dict[str, jax.Array]]  # uint8 [B, H, W, K] -> OUTPUTS
    shape: tuple[int, int, int]  # H, W, K
    metadata: dict[str, str]  # for formats that have a place for it


def make(
    logits: Callable[[jax.Array], jax.Array],
    *,
    shape: tuple[int, int, int],
    mean: list[float],
    std: list[float],
    metadata: dict[str, str],
) -> Program:
    """Returns the program of a classifier of pictures, (x / 255 - mean) / std and the softmax inside.

    Args:
      logits: normalised pictures float32 [B, H, W, K] -> float32 [B, C].
      shape: of a picture.
      mean, std: of each channel, of pictures from 0 to 1.
    """
    # One product and one sum, as the batches of training are normalised.
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32)
    offset = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32)

    def predict(image: jax.Array) -> dict[str, jax.Array]:
        with portable():
            scores = logits(image.astype(jnp.float32) * scale + offset).astype(jnp.float32)
        return {"logits": scores, "probabilities": jax.nn.softmax(scores)}

    return Program(predict, shape, metadata)


def need(module: str, format: str) -> Any:
    """Imports an optional package.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(
            f"--format={format}: needs the package {name}, which is not installed here: "
            "pip install -r requirements-export.txt"
        ) from error
