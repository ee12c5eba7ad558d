"""Fashion-MNIST: 60,000 + 10,000 pictures of 28x28, 10 classes, with a test split of its own.

Looked for in `data.path` (a directory with the four IDX files, gzipped or not), then where Debian's
package dataset-fashion-mnist puts them, then in the TFDS catalog.
H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms, 2017.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from research.data.builders import tfds
from research.data.source import Opened, Source, from_arrays, stamp, wanted_shape
from research.errors import UserError, UserErrors

VERSION = "1"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = {"train": "train", "test": "t10k"}


def locate(data) -> Source:
    """Returns the source.

    Raises:
      UserError: the files are nowhere.
    """
    if not data.path and not DEBIAN.is_dir():
        try:
            return tfds.locate_catalog(data, "fashion_mnist")
        except UserError as error:
            mend = "apt-get install dataset-fashion-mnist, or give the four IDX files' directory as config.data.path"
            raise UserError(
                f"config.data.name=fashion_mnist: not on this machine; {mend} ({error})"
            ) from error
    folder = Path(data.path).expanduser() if data.path else DEBIAN
    if not folder.is_dir():
        raise UserError(f"config.data.path={folder}: there is no such directory of IDX files")
    files, missing = {}, []
    for part, prefix in _FILES.items():
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{prefix}-{kind}-ubyte"
            found = [file for file in (folder / f"{name}.gz", folder / name) if file.is_file()]
            if found:
                files[part, kind] = found[0]
            else:
                missing.append(f"config.data.path={folder}: {name} or {name}.gz is missing")
    if missing:
        raise UserErrors(missing)
    return Source(
        "fashion_mnist",
        VERSION,
        str(folder),
        stamp(files.values(), folder),
        lambda: _open(files, data),
    )


def _open(files: dict[tuple[str, str], Path], data) -> Opened:
    parts, errors = {}, []
    for part in _FILES:
        try:
            images, labels = (
                read_idx(files[part, "images-idx3"], 3),
                read_idx(files[part, "labels-idx1"], 1),
            )
        except UserError as error:
            errors.append(str(error))
            continue
        if images.shape[1:] != (28, 28):
            size = f"{images.shape[1]}x{images.shape[2]}"
            errors.append(
                f"{files[part, 'images-idx3']}: pictures of {size}, but Fashion-MNIST's are 28x28"
            )
        if len(images) != len(labels):
            count = f"{len(images)} pictures, but {len(labels)} labels in {files[part, 'labels-idx1'].name}"
            errors.append(f"{files[part, 'images-idx3']}: {count}; take both files from one source")
        wrong = np.flatnonzero(labels >= len(CLASSES))
        if len(wrong):
            first = f"label {labels[wrong[0]]} at position {wrong[0]}"
            errors.append(
                f"{files[part, 'labels-idx1']}: {first} ({len(wrong)} such); labels run from 0 to 9"
            )
        parts[part] = (images[..., None], labels)
    if errors:
        raise UserErrors(errors)
    return from_arrays(CLASSES, wanted_shape(data, (28, 28, 1)), parts)


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Raises:
      UserError: it is cut short, or of another type or number of dimensions.
    """
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); copy it again") from error
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dimensions)):
        start = raw[:4].hex(" ")
        raise UserError(
            f"{file}: not an IDX file of bytes in {dimensions} dimensions (it starts with {start})"
        )
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != np.prod(shape, dtype=np.int64):
        held = f"its header promises {shape}, and {len(raw) - header:,} bytes follow"
        raise UserError(f"{file}: {held}; copy it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
