"""Handwritten digits of scikit-learn: 1,797 pictures of 8x8, 10 classes; nothing to download.

The source's values 0..16 become round(value * 255 / 16), so 16 is full white (255) and 8 is 128.
E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from importlib import metadata

import numpy as np

from research.data.source import Opened, Source, from_arrays, wanted_shape

VERSION = "1"


def locate(data) -> Source:
    """Returns the source; its files are part of scikit-learn, so that package's version marks their state."""
    installed = f"scikit-learn {metadata.version('scikit-learn')}"
    return Source("digits", VERSION, installed, installed, lambda: _open(data))


def _open(data) -> Opened:
    from sklearn.datasets import load_digits  # a second to import: only while building

    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [1797, 8, 8, 1]

    names = tuple(str(digit) for digit in range(10))
    return from_arrays(names, wanted_shape(data, (8, 8, 1)), {"train": (pictures, digits.target)})
