"""Any data set of pictures or texts of the tensorflow-datasets catalog: data.name='tfds:cifar10', 'tfds:NAME/CONFIG'.

Building a catalog data set mostly needs TensorFlow, and downloads it; reading a copy that exists needs
neither. Copies are looked for in `data.path`, else in the cache's folder `tfds`.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from research.data import cache
from research.data.source import PARTS, Examples, Opened, Source, stamp, wanted_shape
from research.data.text.source import TextSource
from research.data.text.tfds import read_copy
from research.errors import UserError, nearest

VERSION = "1"
_SIZE = 64  # of pictures that differ in size, where data.image_size does not say


def locate(data) -> Source:
    """Returns the source that `data.name`, 'tfds:NAME', names, and builds it first if there is no copy."""
    return locate_catalog(data, _name(data))


def locate_text(data, *, text_feature: str = "", label_feature: str = "") -> TextSource:
    """As `locate`, of texts.

    Args:
      text_feature, label_feature: which of its features are read; '' is what the data set itself says is its input and
        its label, or its only text.
    """
    name = _name(data)
    folder, mark = _copy(data, name)
    return TextSource(
        f"tfds:{name}",
        VERSION,
        str(folder),
        mark,
        lambda labelled: read_copy(folder, name, text_feature, label_feature, labelled),
    )


def locate_catalog(data, name: str) -> Source:
    """As `locate`, by a name of the catalog."""
    folder, mark = _copy(data, name)
    return Source(f"tfds:{name}", VERSION, str(folder), mark, lambda: _open(folder, name, data))


def _name(data) -> str:
    name = data.name.partition(":")[2]
    if not name:
        raise UserError(f"config.data.name={data.name}: which data set? Name it as in tfds:cifar10")
    return name


def _copy(data, name: str) -> tuple[Path, str]:
    """Returns the folder of a copy, built if there is none, and a mark of its state.

    Raises:
      UserError: there is no such data set, no copy and no TensorFlow to make one, or a copy that only TensorFlow reads.
    """
    base = Path(data.path).expanduser() if data.path else cache.root(data.cache_dir) / "tfds"
    if data.path and not base.is_dir():
        raise UserError(
            f"config.data.path={base}: there is no such directory; leave it empty to use the cache"
        )
    folder = _find(base, name)
    if folder is None:
        _build(base, name)
        folder = _find(base, name)
        assert folder is not None, f"TFDS built {name}, but not under {base}"
    written = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if written != "array_record":
        mend = "build it with file_format='array_record', or name another config.data.path"
        raise UserError(f"{folder}: holds {written} files, which only TensorFlow reads; {mend}")
    files = [file for file in folder.iterdir() if file.is_file()]
    return folder, stamp(files, folder)


def _find(base: Path, name: str) -> Path | None:
    """The newest version of a copy: base/NAME[/CONFIG]/VERSION, or `base` itself if it is such a folder."""
    if (base / "dataset_info.json").is_file():
        return base
    found = sorted((base / name).glob("*/dataset_info.json"), key=lambda p: _version(p.parent.name))
    found = found or sorted((base / name).glob("*/*/dataset_info.json"))
    return found[-1].parent if found else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def _build(base: Path, name: str) -> None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0] not in known:
        more = nearest(name, known) or " (see tensorflow.org/datasets/catalog)"
        raise UserError(
            f"config.data.name=tfds:{name}: no copy under {base}, and TFDS knows no such data set{more}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        mend = f"pip install tensorflow importlib_resources, or put a copy built elsewhere under {base}"
        raise UserError(
            f"config.data.name=tfds:{name}: building it needs TensorFlow this once (reading does not): {mend}"
        )
    try:
        tfds.builder(name, data_dir=str(base), file_format="array_record").download_and_prepare()
    except (
        Exception
    ) as error:  # the network, the source's server or TFDS itself: the user can only try again
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"config.data.name=tfds:{name}: TFDS could not build it: {type(error).__name__}: {reason}"
        ) from error


def _open(folder: Path, name: str, data) -> Opened:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    features, found = builder.info.features, builder.info.splits
    sizes = {part: found[part].num_examples for part in PARTS if part in found}
    image, label = builder.info.supervised_keys or ("image", "label")
    if image not in features or label not in features or len(features[image].shape) not in (2, 3):
        raise UserError(
            f"config.data.name=tfds:{name}: not pictures with labels; its features are {', '.join(features)}"
        )
    if "train" not in sizes:
        raise UserError(
            f"config.data.name=tfds:{name}: has no split 'train', only {', '.join(found)}"
        )
    height, width, channels = (*features[image].shape, 1)[:3]
    own = (height or _SIZE, width or _SIZE, min(channels or 3, 3))
    classes = _class_names(builder, features[label], label, sizes)

    def read(part: str) -> Iterator[Examples]:
        for i, record in enumerate(builder.as_data_source(part)):
            number = int(record[label])
            if not 0 <= number < len(classes):
                mend = "leave that split out, or repair the copy"
                raise UserError(
                    f"{folder}: label {number} in {part} record {i}, of {len(classes)} classes; {mend}"
                )
            pixels = _pixels(record[image], f"{folder}: {part} record {i}")
            yield Examples([f"{part}/{i:05d}"], [number], pixels[None], [""])

    return Opened(classes, wanted_shape(data, own), sizes, read)


def _class_names(builder: Any, feature: Any, label: str, sizes: dict[str, int]) -> tuple[str, ...]:
    if getattr(feature, "names", None):
        return tuple(feature.names)
    highest = max(int(record[label]) for part in sizes for record in builder.as_data_source(part))
    return tuple(str(number) for number in range(highest + 1))


def _pixels(image: Any, where: str) -> np.ndarray:
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{where}: pictures of type {pixels.dtype}; only uint8 pictures are read from the catalog"
        )
    return pixels
