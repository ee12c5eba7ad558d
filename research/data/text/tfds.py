"""Texts out of a copy that tensorflow-datasets built: read without TensorFlow, which hands over UTF-8 as bytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.data.source import PARTS
from research.data.text.files import TextError, decoded
from research.data.text.source import TextExample, TextOpened, TextProblem
from research.errors import UserError, nearest


def read_copy(folder: Path, name: str, text: str, label: str, labelled: bool) -> TextOpened:
    """Opens a copy.

    Args:
      folder: of one version, with dataset_info.json; name: of the catalog, for messages.
      text, label: names of features; '' is what the data set says is its input and its label, or its only text.

    Raises:
      UserError: it has no such features, no split 'train', or a label that is no class.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    features, found = builder.info.features, builder.info.splits
    where = f"config.data.name=tfds:{name}"
    text, label = _features(tfds, builder.info, where, text, label)
    if labelled and label not in features:
        raise UserError(
            f"{where}: no feature '{label}'{nearest(label, features)} for classes; there: {', '.join(features)}"
        )
    if "train" not in found:
        raise UserError(f"{where}: has no split 'train', only {', '.join(found)}")
    names = tuple(getattr(features[label], "names", None) or ()) if labelled else ()
    sizes = {part: found[part].num_examples for part in PARTS if part in found}

    def read() -> Iterator[TextExample | TextProblem]:
        for part in sizes:
            for i, record in enumerate(builder.as_data_source(part)):
                key = f"{part}/{i:07d}"
                said = (
                    _class(record[label], names, f"{folder}: {part} record {i}")
                    if labelled
                    else None
                )
                try:
                    content = decoded(record[text], f"{folder}: {part} record {i}")
                except TextError as error:
                    yield TextProblem(key, str(error), said, split=part)
                    continue
                yield TextExample(key, content, said, part)

    return TextOpened(names, sum(sizes.values()), read)


def _features(tfds: Any, info: Any, where: str, text: str, label: str) -> tuple[str, str]:
    texts = [k for k, feature in info.features.items() if isinstance(feature, tfds.features.Text)]
    keys: tuple[str, ...] = tuple(info.supervised_keys or ())
    own = [k for k in keys[:1] if k in texts] or (texts if len(texts) == 1 else [])
    if not text and not own and len(texts) > 1:
        raise UserError(
            f"{where}: has several texts; name one as config.data.text_feature: {', '.join(texts)}"
        )
    text = text or next(iter(own), "")
    if text not in texts:
        what = f"no text '{text}'{nearest(text, texts)}" if text else "not texts"
        raise UserError(f"{where}: {what}; its features are {', '.join(info.features)}")
    return text, label or (keys[1] if len(keys) > 1 else "label")


def _class(value: Any, names: tuple[str, ...], where: str) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if names and not 0 <= int(value) < len(names):
        raise UserError(
            f"{where}: label {int(value)}, of {len(names)} classes; leave that split out, or repair the copy"
        )
    return names[int(value)] if names else str(int(value))
