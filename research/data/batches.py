"""Batches of pictures, each a pure function of (seed, n): no state is needed to go on, and nothing is ever dropped.

The examples of a run are one permutation of the training split after the other, one for each epoch. Batch n is the
n-th run of B of them, so it may reach from one epoch into the next.

B examples in a batch, N in the store, H, W, C height, width and channels of a picture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research.data.augment import augment
from research.data.mixing import draw_mix, mix_images
from research.data.rows import batch_error, loader_error, masked, order, rows_of
from research.data.store import Store, record_source
from research.errors import UserError, UserErrors
from research.task import Batch, Inputs

Read = Callable[[np.ndarray], np.ndarray]  # numbers [B] of examples -> uint8 [B, H, W, C]


def make_batches(
    store: Store,
    data: Any,
    *,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
    records: Any = None,
) -> tuple[Callable[[int, slice], Batch], Callable[[str, int, slice], Batch]]:
    """Returns train_batch(n, rows) and eval_batch(split, n, rows), which make those rows of batch n.

    A batch holds image float32 [B, H, W, C], normalised, label int32 [B], id int32 [B] (the number of the example in
    the store) and mask float32 [B]; a training batch under mixup or cutmix also label_b int32 [B] and mix
    float32 [B], the weight of `label`. Rows that are made apart and joined equal the whole batch, bit for bit. The
    last batch of a split is filled up with rows whose mask is 0 and whose id is -1.

    Args:
      data: reads loader, workers and augment, and for Grain what `record_source` needs.
      records: where the grain loader reads: record i is dict(image=uint8 [H, W, C], ...) of the store's picture i.

    Raises:
      UserErrors: the batch or an augmentation is too large for the data.
    """
    height, width = store.images.shape[1:3]
    train, labels = store.splits["train"], np.asarray(store.labels, np.int32)
    _check(data, batch_size, len(train), min(height, width))
    options = {key: data.augment[key] for key in data.augment}
    mixes = {key: options[key] for key in ("mixup", "cutmix")}
    if data.loader == "grain":
        read = _record_reader(
            record_source(data) if records is None else records, store.images.shape[1:]
        )
    else:
        read = _array_reader(store.images)
    normalise = _normaliser(store)

    # Neither function may hold the store: Grain sends them to its workers, pictures and all.
    def train_batch(n: int, rows: slice, inputs: bool = True) -> Batch:
        indices, epochs = order(seed, n, batch_size, len(train))
        ids = train[indices]
        wanted = np.arange(batch_size)[rows]
        batch = {
            "label": labels[ids[wanted]],
            "id": ids[wanted].astype(np.int32),
            "mask": np.ones(len(wanted), np.float32),
        }
        if not inputs:
            return batch
        mix = draw_mix(seed, n, batch_size, height, width, **mixes) if any(mixes.values()) else None
        needed = np.union1d(wanted, mix.partners[wanted]) if mix else wanted
        images = normalise(
            augment(
                read(ids[needed]), options, seed=seed, epochs=epochs[needed], examples=ids[needed]
            )
        )
        batch["image"] = images
        if mix:
            partners = mix.partners[wanted]
            own, others = (images[np.searchsorted(needed, who)] for who in (wanted, partners))
            batch["image"] = mix_images(own, others, mix)
            batch["label_b"] = labels[ids[partners]]
            batch["mix"] = np.full(len(wanted), mix.weight, np.float32)
        return batch

    splits = store.splits

    def eval_batch(split: str, n: int, rows: slice, inputs: bool = True) -> Batch:
        ids = rows_of(splits[split], n, eval_batch_size, rows)
        values = {"image": normalise(read(ids))} if inputs else {}
        return masked(values | {"label": labels[ids]}, ids, len(range(eval_batch_size)[rows]))

    return train_batch, eval_batch


def inputs(images: np.ndarray, names: Sequence[str], store: Store, batch_size: int) -> Inputs:
    """Returns a user's pictures, uint8 [M, H, W, C], as batches normalised like the store's; every label is 0."""
    normalise, numbers = _normaliser(store), np.arange(len(images))

    def batch(n: int, rows: slice) -> Batch:
        ids = rows_of(numbers, n, batch_size, rows)
        values = {"image": normalise(images[ids]), "label": np.zeros(len(ids), np.int32)}
        return masked(values, ids, len(range(batch_size)[rows]))

    return Inputs(list(names), batch)


def _check(data: Any, batch_size: int, size: int, side: int) -> None:
    errors = batch_error(batch_size, size)
    for key in ("shift", "crop", "cutout"):
        if (pixels := data.augment[key]) >= side:
            errors.append(
                f"config.data.augment.{key} is {pixels} but the pictures have {side} pixels a side: set it below {side}"
            )
    errors += loader_error(data)
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else UserError(errors[0])


def _array_reader(images: np.ndarray) -> Read:
    return lambda ids: images[ids]


def _record_reader(records: Any, shape: tuple[int, ...]) -> Read:
    def read(ids: np.ndarray) -> np.ndarray:
        many = getattr(records, "__getitems__", None)  # one request for all, where the source can
        numbers = ids.tolist()
        found = many(numbers) if many else [records[i] for i in numbers]
        images = np.empty(
            (len(found), *shape), np.uint8
        )  # none at all, where rows lie beyond the end
        for i, record in enumerate(found):
            images[i] = record["image"]
        return images

    return read


def _normaliser(store: Store) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from uint8 [B, H, W, C] to float32 (x / 255 - mean) / std, as one product and one sum."""
    height, width = store.images.shape[1:3]
    mean, std = np.asarray(store.mean, np.float64), np.asarray(store.std, np.float64)
    # A value for every pixel, because NumPy is slow at repeating rows as short as C.
    scale = np.tile((1 / (255 * std)).astype(np.float32), height * width)
    offset = np.tile((-mean / std).astype(np.float32), height * width)

    def normalise(images: np.ndarray) -> np.ndarray:
        flat = np.multiply(images.reshape(len(images), len(scale)), scale, dtype=np.float32)
        flat += offset
        return flat.reshape(images.shape)

    return normalise
