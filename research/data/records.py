"""Pictures as tensorflow-datasets record files (ArrayRecord), for the loader that reads them one by one.

TFDS builds, describes and reads the records without TensorFlow, because pictures are plain uint8
tensors. This module is imported where records are read, never to map arrays: importing TFDS takes half a second.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from research.data import cache
from research.data.arrays import load_arrays
from research.data.source import Progress, in_order
from research.errors import UserError


def open_records(folder: Path) -> Any:
    """Returns the records as a random-access source of dict(image uint8 [H, W, C], label int, key and group bytes).

    Record i is picture i of the folder's arrays, from which the records are written the first time.
    """
    try:
        records = cache.built(folder / "records", lambda temporary: _write(temporary, folder))
    except (UserError, OSError) as error:
        raise UserError(
            f"{error}; config.data.loader=grain writes records there once: prepare the data with it where that can be "
            "written, or use config.data.loader=memory"
        ) from error
    builder = tfds.builder_from_directory(str(records / Pictures.name / str(Pictures.VERSION)))
    return builder.as_data_source("+".join(in_order(builder.info.splits)))


def _write(folder: Path, arrays: Path) -> None:
    builder = Pictures(arrays, data_dir=str(folder), file_format="array_record")
    with _quiet():
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    builder.progress.close()


with tfds.core.registered.skip_registration():  # it is no data set of the catalog

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """The arrays of a folder as a TFDS data set: image, label, key, group, in their order."""

        name = "pictures"
        VERSION = tfds.core.Version("1.1.0")
        code_path = None  # beside which TFDS would look for checksums of downloads; there are none

        def __init__(self, folder: Path, **kwargs: Any):
            self._meta, self._arrays = load_arrays(folder)
            self.progress = Progress("recording", len(self._arrays["labels"]))
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Tensor(
                    shape=self._arrays["images"].shape[1:], dtype=np.uint8, encoding="bytes"
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
            sizes, start, made = self._meta["sizes"], 0, {}
            for part in in_order(sizes):
                made[part] = self._generate_examples(start, start + sizes[part])
                start += sizes[part]
            return made

        def _generate_examples(self, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
            columns = {"image": "images", "label": "labels", "key": "keys", "group": "groups"}
            for i in range(start, stop):
                self.progress.step()
                yield i - start, {name: self._arrays[of][i] for name, of in columns.items()}


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
