"""Keras' side of benchmarks/bench.py, on TensorFlow: the small CNN, and pictures by tf.data; timed when asked to.

    {"do": "make", "subject": "cnn", "how": {"jit": true}, "folder": "runs/x", "vocabulary": 0, "threads": 2}

and then as torch_side.py. `jit` compiles the step by XLA. A step is what `fit` does for each batch, without callbacks.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.turns import answering, serve, timed


def main() -> None:
    def make(**asked: Any) -> tuple[Any, dict[str, Any]]:
        run = Run(**asked)
        return run, run.about

    serve(answering(make, data=data))


def network(keras: Any) -> Any:
    """The CNN of configs/fashion_mnist_cnn.py, not compiled."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )


class Run:
    def __init__(
        self, subject: str, how: dict[str, Any], folder: str, vocabulary: int, threads: int
    ):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        import keras

        keras.utils.set_random_seed(0)
        with np.load(Path(folder) / "batches.npz") as file:
            pairs = list(zip(file["image"], file["label"], strict=True))
        self._batches = [(tf.constant(x), tf.constant(y)) for x, y in pairs]
        self._model, self._done = network(keras), 0
        self._model.compile(
            optimizer=keras.optimizers.Adam(1e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=bool(how.get("jit")),
        )
        self._infer = tf.function(lambda x: self._model(x, training=False))
        version = f"{keras.__version__} on TensorFlow {tf.__version__}"
        self.about = {"version": version, "parameters": self._model.count_params()}

    def train(self, steps: int) -> dict[str, list[float]]:
        def step() -> None:
            x, y = self._batches[self._done % len(self._batches)]
            self._model.train_on_batch(x, y)
            self._done += 1

        return timed(step, steps)

    def infer(self, batch: int, steps: int) -> dict[str, list[float]]:
        x = self._batches[0][0][:batch]
        return timed(lambda: self._infer(x).numpy(), steps)


def data(batch: int, count: int, shape: list[int], workers: int) -> dict[str, float]:
    """Times tf.data over pictures in memory that makes floats of them."""
    import tensorflow as tf

    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, shape, dtype=np.uint8)
    made = tf.data.Dataset.from_tensor_slices((pictures, np.zeros(shape[0], np.int64)))
    made = made.shuffle(10_000).batch(batch, drop_remainder=True)
    made = made.map(lambda x, y: ((tf.cast(x, tf.float32) / 255 - 0.3) / 0.3, y))
    start = time.perf_counter()
    for _ in made.prefetch(tf.data.AUTOTUNE).take(count):
        pass
    return {"ms": (time.perf_counter() - start) * 1e3}


if __name__ == "__main__":
    main()
