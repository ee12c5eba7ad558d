"""Batches of texts, each a pure function of (seed, n), as those of pictures are; see research/data/batches.py.

Rows that are made apart and joined equal the whole batch, bit for bit. The last batch of a split is filled up with rows
of zeros whose mask is 0 and whose id is -1.

B rows in a batch, T tokens of a row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.data.rows import batch_error, loader_error, masked, order, rows_of
from research.data.text.buckets import bucketed, fitting, gather
from research.data.text.encode import Encoded, closing, encode, with_specials
from research.data.text.masking import hide, masking
from research.data.text.packing import Packed, lay_out, pack
from research.errors import UserError, UserErrors
from research.task import Batch, Inputs


class ClassificationBatches(NamedTuple):
    """Batches of texts to classify, and what they are made of."""

    train_batch: Callable[..., Batch]  # (n, rows, inputs=True)
    eval_batch: Callable[..., Batch]  # (split, n, rows, inputs=True)
    # Of each split the documents, their tokens before any is cut, and of how many the end is cut off.
    counts: dict[str, dict[str, int]]


class LanguageBatches(NamedTuple):
    """Batches for a language model, and what they are made of."""

    train_batch: Callable[..., Batch]  # (n, rows, inputs=True)
    eval_batch: Callable[..., Batch]  # (split, n, rows, inputs=True)
    sizes: dict[str, int]  # rows of each split
    # Of each split the documents, tokens, rows, bytes and padding (the share of the rows that is empty); of
    # conversations also left_out (those that are too long) and answer_tokens (those that count).
    counts: dict[str, dict[str, int | float]]


def classification(
    store: Any, tokenizer: Any, data: Any, *, seed: int, batch_size: int, eval_batch_size: int
) -> ClassificationBatches:
    """Returns the batches of texts.

    A batch holds tokens int32 [B, T], segments int32 [B, T] (1 for a token, 0 for padding), label int32 [B],
    id int32 [B] (the number of the text in the store) and mask float32 [B]; without `inputs` no tokens and segments.
    T is the smallest of data.text.buckets and data.text.max_length that the longest text of the whole batch fits. A
    text longer than data.text.max_length is cut there, before the special tokens that close it.

    Where labels of two classes are not certain, a training batch has what a loss of mixed labels reads: mix float32
    [B], the share of the label, and label_b int32 [B], the other class.

    With buckets the examples of a training batch are of like length: see `bucketed`. An evaluation keeps the split's
    order.

    Raises:
      UserErrors: the batch is too large for the data, or a bucket for data.text.max_length.
    """
    splits, labels = dict(store.splits), np.asarray(store.labels, np.int32)
    buckets, longest, train = tuple(data.text.buckets), data.text.max_length, splits["train"]
    errors = batch_error(batch_size, len(train))
    if buckets and buckets[-1] > longest:
        errors.append(
            f"config.data.text.buckets holds {buckets[-1]} but "
            f"config.data.text.max_length is {longest}: no text is longer than "
            "that; leave it out, or raise config.data.text.max_length"
        )
    _raise(errors + loader_error(data))
    certainty = np.asarray(store.certainty, np.float32)
    mixed = bool((certainty < 1).any())
    encoded = encode(store, tokenizer, "classification")
    end, pad = closing(tokenizer), tokenizer.pad or 0
    full = np.diff(encoded.texts.offsets)
    counts = {
        split: {
            "documents": len(ids),
            "tokens": int(full[ids].sum()),
            "cut": int((full[ids] > longest).sum()),
        }
        for split, ids in splits.items()
    }
    lengths = np.minimum(full, longest)
    train_lengths = lengths[train]

    # Neither function may hold the store: Grain sends them to its workers, texts and all.
    def values(ids: np.ndarray, whole: np.ndarray, inputs: bool) -> dict[str, np.ndarray]:
        made = {"label": labels[ids]}
        if inputs:
            length = fitting(buckets, longest, lengths[whole])
            tokens, offsets = encoded.texts.ids, encoded.texts.offsets
            made |= gather(tokens, offsets, ids, length, end=end, pad=pad)
        return made

    def train_batch(n: int, rows: slice, inputs: bool = True) -> Batch:
        if buckets:
            whole = train[bucketed(seed, n, batch_size, train_lengths)]
        else:
            whole = train[order(seed, n, batch_size, len(train))[0]]
        ids = whole[rows]
        made = values(ids, whole, inputs)
        if mixed:
            made |= {"mix": certainty[ids], "label_b": 1 - made["label"]}
        return masked(made, ids, len(ids))

    def eval_batch(split: str, n: int, rows: slice, inputs: bool = True) -> Batch:
        ids, whole = (
            rows_of(splits[split], n, eval_batch_size, some) for some in (rows, slice(None))
        )
        return masked(values(ids, whole, inputs), ids, len(range(eval_batch_size)[rows]))

    return ClassificationBatches(train_batch, eval_batch, counts)


def inputs(
    texts: Sequence[str],
    names: Sequence[str],
    tokenizer: Any,
    data: Any,
    batch_size: int,
) -> Inputs:
    """Returns a user's texts as batches like those of an evaluation of a classification; every label is 0."""
    buckets, longest = tuple(data.text.buckets), data.text.max_length
    made = with_specials(tokenizer, list(texts))
    offsets = np.cumsum([0, *map(len, made)])
    ids = np.concatenate([np.zeros(0, np.int32), *made])
    end, pad = closing(tokenizer), tokenizer.pad or 0
    lengths, numbers = np.minimum(np.diff(offsets), longest), np.arange(len(made))

    def batch(n: int, rows: slice) -> Batch:
        here, whole = (rows_of(numbers, n, batch_size, some) for some in (rows, slice(None)))
        length = fitting(buckets, longest, lengths[whole])
        values = gather(ids, offsets, here, length, end=end, pad=pad)
        values["label"] = np.zeros(len(here), np.int32)
        return masked(values, here, len(range(batch_size)[rows]))

    return Inputs(list(names), batch)


def language_model(
    store: Any,
    tokenizer: Any,
    data: Any,
    *,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
    objective: str,
    mask_rate: float = 0.15,
) -> LanguageBatches:
    """Returns the batches of rows of tokens.

    A row is made of whole documents and pieces of long ones, of data.text.max_length tokens together, packed once; the
    rows are in another order in every epoch. A batch holds tokens and targets int32 [B, T]; weights float32 [B, T],
    1 where a target counts; segments int32 [B, T], 1, 2, ... for the pieces of a row and 0 for padding; positions
    int32 [B, T], from 0 in each piece; bytes float32 [B], the UTF-8 bytes that the targets which count stand for;
    id int32 [B], the row's number in its split, and mask float32 [B]. Without `inputs` no tokens, segments, positions.

    objective 'causal': a document is `ends` around its tokens, and each of its tokens but the first is a target once,
    for pieces overlap by the token that is a target in one and an input in the next. So the bytes of a split's rows
    are exactly those of its texts. Of a conversation only what the assistant says counts; it is never cut, and left
    out if it is too long.
    objective 'masked': the tokens that are hidden count, drawn anew in every epoch and always the same in an
    evaluation; see research/data/text/masking.py.

    Raises:
      UserErrors: the batch is too large for the rows, no conversation fits, the tokenizer has not the tokens it needs.
    """
    if objective not in ("causal", "masked"):
        raise ValueError(f"objective is causal or masked, not {objective!r}")
    length, shift = data.text.max_length, int(objective == "causal")
    errors = loader_error(data)
    if len(data.text.buckets):
        errors.append(
            "config.data.text.buckets is for texts to classify, but a language model's rows are all of "
            "config.data.text.max_length: set it to ()"
        )
    if store.chat and not shift:
        errors.append(
            "config.data.name: conversations are for a causal language model, but the objective is masked"
        )
    _raise(errors)
    how = None if shift else masking(tokenizer, mask_rate)
    encoded, pad = encode(store, tokenizer, "language_model"), tokenizer.pad or 0
    packed: dict[str, Packed] = {}
    counts: dict[str, dict[str, int | float]] = {}
    for split, documents in store.splits.items():
        packed[split], counts[split] = _packed(
            encoded.texts, documents, length, shift, split, bool(store.chat)
        )
    sizes = {split: len(rows.offsets) - 1 for split, rows in packed.items()}
    mend = ", or config.data.text.max_length lower, for more rows"
    _raise(batch_error(batch_size, sizes["train"], f"rows of {length} tokens", mend))

    def values(split: str, numbers: np.ndarray, inputs: bool, draw: tuple) -> dict[str, np.ndarray]:
        texts, layout = encoded.texts, lay_out(packed[split], numbers, length)

        def placed(tokens: np.ndarray, empty: int = 0) -> np.ndarray:
            rows = np.full(len(numbers) * length, empty, np.int32)
            rows[layout.place] = tokens
            return rows.reshape(-1, length)

        told = layout.source + shift
        targets, segments, size = (
            placed(texts.ids[told], pad),
            placed(layout.segment),
            placed(texts.bytes[told]),
        )
        if how:
            tokens, counted = hide(targets, segments > 0, how, *draw)
        else:
            tokens = placed(texts.ids[layout.source], pad) if inputs else targets
            counted = placed(texts.weights[told]) > 0 if len(texts.weights) else segments > 0
        made = {
            "targets": targets,
            "weights": counted.astype(np.float32),
            "bytes": (size * counted).sum(1).astype(np.float32),
        }
        if inputs:
            made |= {"tokens": tokens, "segments": segments, "positions": placed(layout.position)}
        return made

    def train_batch(n: int, rows: slice, inputs: bool = True) -> Batch:
        numbers, epochs = (part[rows] for part in order(seed, n, batch_size, sizes["train"]))
        draw = seed, "mask", epochs, numbers
        return masked(values("train", numbers, inputs, draw), numbers, len(numbers))

    def eval_batch(split: str, n: int, rows: slice, inputs: bool = True) -> Batch:
        numbers = rows_of(np.arange(sizes[split]), n, eval_batch_size, rows)
        # Runs of any seed are measured on the same tokens.
        made = values(split, numbers, inputs, (0, f"mask/{split}", numbers))
        return masked(made, numbers, len(range(eval_batch_size)[rows]))

    return LanguageBatches(train_batch, eval_batch, sizes, counts)


def _packed(
    texts: Encoded, documents: np.ndarray, length: int, shift: int, split: str, chat: bool
) -> tuple[Packed, dict[str, int | float]]:
    starts = texts.offsets[documents]
    sizes = texts.offsets[documents + 1] - starts - shift  # inputs
    kept = (sizes > 0) & (sizes <= length if chat else True)
    if not kept.any():
        if not chat:
            raise UserError(f"data: the {split} split holds no text")
        raise UserError(
            f"config.data.text.max_length={length}: {len(sizes):,} of {len(sizes):,} conversations of the {split} "
            f"split are longer, and none is cut: the shortest needs {sizes.min(initial=2**31)}"
        )
    rows = pack(starts[kept], sizes[kept], length)
    size, tokens = len(rows.offsets) - 1, int(sizes[kept].sum())
    counts: dict[str, int | float] = {
        "documents": int(kept.sum()),
        "tokens": tokens,
        "rows": size,
        "padding": 1 - tokens / (size * length),
        "bytes": int(_sums(texts.bytes, texts.offsets)[documents[kept]].sum()),
    }
    if chat:
        answers = _sums(texts.weights, texts.offsets)[documents[kept]]
        first = texts.weights[starts[kept]]  # is no target
        counts["left_out"] = len(documents) - counts["documents"]
        counts["answer_tokens"] = int(answers.sum() - first.sum())
    return rows, counts


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of the values of each text, int64 [N]."""
    sums, some = np.zeros(len(offsets) - 1, np.int64), np.diff(offsets) > 0
    sums[some] = np.add.reduceat(values, offsets[:-1][some], dtype=np.int64)
    return sums


def _raise(errors: list[str]) -> None:
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else UserError(errors[0])
