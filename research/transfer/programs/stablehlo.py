"""StableHLO, as jax.export serializes it: for JAX itself, on CPU, GPU and TPU; read for years by newer versions.

https://docs.jax.dev/en/latest/export/export.html says for how long, and what else reads it.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from research.transfer.programs import Program

FILE = "model.stablehlo"
USE = """import jax.export
program = jax.export.deserialize(open({path!r}, "rb").read())
outputs = program.call(images)"""
PLATFORMS = ("cpu", "cuda", "tpu")


def exported(program: Program) -> export.Exported:
    """Traces and lowers a program for every platform, with the batch size left open."""
    shape = export.symbolic_shape("b, " + ", ".join(map(str, program.shape)))
    lower = export.export(jax.jit(program.predict), platforms=PLATFORMS)
    return lower(jax.ShapeDtypeStruct(shape, jnp.uint8))


def write(program: Program, path: Path) -> None:
    path.write_bytes(exported(program).serialize())


def load(path: Path) -> Callable:
    program = export.deserialize(bytearray(path.read_bytes()))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(x) for name, x in program.call(images).items()}

    return run
