"""Fashion-MNIST in Keras on TensorFlow, from command to result, as one writes it: prints the test accuracy.

python benchmarks/speed/fashion_keras.py [EPOCHS] [DIRECTORY of the four .gz files]
"""

import gzip
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
from keras_side import network

DIRECTORY = "/usr/share/datasets/fashion-mnist"


def read(directory: str, name: str, header: int) -> np.ndarray:
    with gzip.open(f"{directory}/{name}.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def main(epochs: int = 5, directory: str = DIRECTORY) -> None:
    keras.utils.set_random_seed(0)
    x, test_x = (
        read(directory, f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1) / np.float32(255)
        for part in ("train", "t10k")
    )
    y, test_y = (read(directory, f"{part}-labels-idx1-ubyte", 8) for part in ("train", "t10k"))
    model = network(keras)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=128, epochs=epochs, validation_split=0.05, verbose=2)
    print(f"test accuracy {model.evaluate(test_x, test_y, batch_size=512, verbose=0)[1]:.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
