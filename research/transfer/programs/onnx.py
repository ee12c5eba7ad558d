"""ONNX, for ONNX Runtime and the many programs that read it.

jax2onnx 0.17 was tried first: it demands an Orbax that is older than this project's, and converts the ResNets wrongly.
What a prediction is made of is little, so research/transfer/programs/onnx_graph.py converts it itself.
"""

import operator
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from research.errors import UserError
from research.transfer.programs import INPUT, OUTPUTS, Program, need
from research.transfer.programs.onnx_graph import Graph, Unsupported

FILE = "model.onnx"
USE = """import onnxruntime
program = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
logits, probabilities = program.run(["logits", "probabilities"], {{"image": images}})"""
OPSET, IR = 18, 10  # of 2022 and 2024: what reads ONNX today reads these
MOST = 2**31 - 1  # bytes that one such file, a protocol buffer, may hold


def write(program: Program, path: Path) -> None:
    """Writes the program; what is computed in bfloat16 here is in float32 there, as many runtimes lack it.

    Raises:
      UserError: onnx is not installed, or the model holds an operation that has no translation.
    """
    onnx = need("onnx", "onnx")
    shape = export.symbolic_shape("b, " + ", ".join(map(str, program.shape)))
    predict = lambda image: operator.itemgetter(*OUTPUTS)(program.predict(image))  # noqa: E731
    traced = jax.make_jaxpr(predict)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    graph = Graph(onnx, INPUT, tuple(shape))
    try:
        outputs = graph.lower(traced)
    except Unsupported as error:
        raise UserError(
            f"--format=onnx: {error} of this model has no translation to ONNX; use --format=stablehlo or savedmodel"
        ) from error
    classes = traced.out_avals[0].shape[1]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                *graph.nodes,
                *(
                    onnx.helper.make_node("Identity", [value.name], [name])
                    for value, name in zip(outputs, OUTPUTS, strict=True)
                ),
            ],
            "model",
            [
                onnx.helper.make_tensor_value_info(
                    INPUT, onnx.TensorProto.UINT8, ["batch", *program.shape]
                )
            ],
            [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", classes])
                for name in OUTPUTS
            ],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="rootstock",
    )
    onnx.helper.set_model_props(model, program.metadata)
    if model.ByteSize() > MOST:
        raise UserError(
            f"--format=onnx: the model takes {model.ByteSize():,} bytes and one file holds 2 GB; use --format=stablehlo"
        )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> Callable | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images}), strict=True))

    return run
