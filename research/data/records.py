"""Pictures as tensorflow-datasets record files (ArrayRecord), and as the memory-mapped arrays made from them.

TFDS builds, describes and reads the records without TensorFlow, because pictures are plain uint8
tensors. This module is imported when something is built or read record by record, never to map arrays
that exist: importing TFDS takes half a second.
"""

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from research.data.pictures import fit
from research.data.source import Example, Opened, Problem, Progress, in_order
from research.errors import UserErrors

_AT_ONCE = 2**24  # bytes of pictures read by one request


def write_records(folder: Path, opened: Opened, what: str) -> list[Problem]:
    """Reads a source and writes what can be read as ArrayRecord files under `folder`/records.

    Returns:
      What could not be read.

    Raises:
      UserErrors: nothing of some part could be read.
    """
    problems: list[Problem] = []
    progress = Progress(f"reading {what}", sum(opened.sizes.values()))
    builder = Pictures(
        opened, problems, progress, data_dir=str(folder / "records"), file_format="array_record"
    )
    with _quiet():
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    progress.close()
    return problems


def write_arrays(folder: Path, opened: Opened, problems: list[Problem]) -> None:
    """Reads the records once and writes images.npy, labels.npy, keys.npy, groups.npy and meta.json."""
    info, source = _open(folder)
    total = len(source)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (total, *opened.shape)
    )
    labels, keys, groups = np.empty(total, np.int32), [], []
    progress = Progress("mapping", total)
    # Many in one request: each costs as much as reading a hundred small pictures.
    block = int(np.clip(_AT_ONCE // np.prod(opened.shape), 1, 1024))
    for start in range(0, total, block):
        numbers = range(start, min(start + block, total))
        for i, record in zip(numbers, source.__getitems__(list(numbers)), strict=True):
            images[i], labels[i] = record["image"], record["label"]
            keys.append(record["key"].decode())
            groups.append(record["group"].decode())
        progress.step(len(numbers))
    progress.close()
    images.flush()
    np.save(folder / "labels.npy", labels)
    np.save(folder / "keys.npy", np.array(keys))
    np.save(folder / "groups.npy", np.array(groups))
    meta = {
        "class_names": opened.class_names,
        "sizes": {part: info.splits[part].num_examples for part in in_order(info.splits)},
        "problems": [problem._asdict() for problem in problems],
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def open_records(folder: Path) -> Any:
    """Returns the records as a random-access source of dict(image uint8 [H, W, C], label int, key and group bytes).

    Record i is picture i of `Store.images`.
    """
    return _open(folder)[1]


def _open(folder: Path) -> tuple[Any, Any]:
    builder = tfds.builder_from_directory(
        str(folder / "records" / Pictures.name / str(Pictures.VERSION))
    )
    return builder.info, builder.as_data_source("+".join(in_order(builder.info.splits)))


with tfds.core.registered.skip_registration():  # it is no data set of the catalog

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """Any `Opened` source as a TFDS data set: image, label, key, group, in the source's order."""

        name = "pictures"
        VERSION = tfds.core.Version("1.1.0")
        code_path = None  # beside which TFDS would look for checksums of downloads; there are none

        def __init__(
            self, opened: Opened, problems: list[Problem], progress: Progress, **kwargs: Any
        ):
            self._opened, self._problems, self._progress = opened, problems, progress
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Tensor(
                    shape=self._opened.shape, dtype=np.uint8, encoding="bytes"
                ),
                "label": tfds.features.Scalar(np.int64),
                "key": tfds.features.Text(),
                "group": tfds.features.Text(),
            }
            # Shuffling is the batches' business; here the order must be the source's own.
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            return {
                part: self._generate_examples(part)
                for part in in_order(self._opened.sizes)
                if self._opened.sizes[part]
            }

        def _generate_examples(self, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
            written = 0
            for item in self._opened.read(part):
                self._progress.step()
                if isinstance(item, Example):
                    image = fit(item.picture, *self._opened.shape)
                    record = {"image": image, "label": item.label}
                    yield written, record | {"key": item.key, "group": item.group}
                    written += 1
                else:
                    self._problems.append(item)
            if not written:
                lines = [problem.detail for problem in self._problems]
                last = (
                    f"{len(lines)} pictures of the {part} part: none of them can be read; mend them"
                )
                raise UserErrors([*lines[:10], last])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS' own messages and bars back: `Progress` says what there is to say."""
    tfds.disable_progress_bar()
    level = logging.getLogger("absl").level
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("absl").setLevel(level)
