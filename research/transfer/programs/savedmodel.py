"""TensorFlow's SavedModel: the StableHLO program as one XlaCallModule operation, which is how jax2tf embeds it too.

TensorFlow compiles it with XLA for wherever it runs. TF Lite and TensorFlow.js have no such operation.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from research.transfer.programs import INPUT, OUTPUTS, Program, need
from research.transfer.programs.stablehlo import exported

FILE = "savedmodel"
USE = """import tensorflow as tf
program = tf.saved_model.load({path!r})
outputs = program.signatures["serving_default"](image=tf.constant(images))"""


def write(program: Program, path: Path) -> None:
    tf = _tensorflow()
    xla = need("tensorflow.compiler.tf2xla.python.xla", "savedmodel")
    module = exported(program)
    names = sorted(OUTPUTS)  # jax flattens a dict by its keys
    shapes = [tf.TensorShape([None, *aval.shape[1:]]) for aval in module.out_avals]

    def call(image):
        outputs = xla.call_module(
            [image],
            version=module.calling_convention_version,
            Tout=[tf.float32] * len(names),
            Sout=shapes,
            module=module.mlir_module_serialized,
            platforms=[platform.upper() for platform in module.platforms],
        )
        return dict(zip(names, outputs, strict=True))

    spec = tf.TensorSpec([None, *program.shape], tf.uint8, name=INPUT)
    holder = tf.Module()
    holder.predict = tf.function(call, input_signature=[spec], autograph=False)
    signature = holder.predict.get_concrete_function()
    tf.saved_model.save(holder, str(path), signatures={"serving_default": signature})


def load(path: Path) -> Callable:
    tf = _tensorflow()
    holder = tf.saved_model.load(str(path))
    predict = holder.signatures["serving_default"]

    def run(images: np.ndarray, _holder=holder) -> dict[str, np.ndarray]:
        return {name: x.numpy() for name, x in predict(image=tf.constant(images)).items()}

    return run


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return need("tensorflow", "savedmodel")
