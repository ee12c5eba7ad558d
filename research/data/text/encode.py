"""The tokens of all texts of a store, made once, kept below the store's folder and mapped into memory from then on.

N texts in a store, S tokens of all of them.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.data import cache
from research.data.source import Progress
from research.errors import UserError

_FORMAT = "2"  # of the folder's content
_CHUNK = 4_000_000  # bytes of text encoded at a time
_KINDS = {"ids": np.int32, "bytes": np.int32, "weights": np.uint8}  # of the arrays [S]


class Encoded(NamedTuple):
    """Texts as runs of one stream of tokens: text i is ids[offsets[i]:offsets[i + 1]].

    A text that is in no split has no tokens.
    """

    ids: np.ndarray  # int32 [S]
    offsets: np.ndarray  # int64 [N + 1]
    bytes: np.ndarray  # int32 [S], UTF-8 bytes that a token stands for; none of a text to classify
    weights: np.ndarray  # uint8 [S], 1 for what an assistant says; none but of conversations


class Mapped:
    """Encoded texts in a folder. A copy in another process maps the files again and moves no tokens."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.texts = _load(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, (self.folder,)


def encode(store: Any, tokenizer: Any, kind: str) -> Mapped:
    """Returns the tokens of a TextStore, which the first call makes and a later one maps.

    A 'classification' text is as the tokenizer's post-processor makes it, [CLS] ... [SEP], say.
    A 'language_model' text is `opening` + tokens + `closing`, see `ends`. The bytes of a text, spaces that a tokenizer
    leaves out included, are shared among its tokens and add up to exactly the text's; opening and closing have none,
    but for a text without tokens, whose bytes count with its closing.
    A conversation (store.chat, kind 'language_model') is as the tokenizer's chat template makes it; the bytes of all
    that the assistant says stand with the last token that has a weight.

    Raises:
      UserError: the tokenizer has no token to end a text with, or the files are damaged.
    """
    if kind == "language_model" and store.chat:
        kind = "chat"
    libraries = ["tokenizers", *(["Jinja2"] if kind == "chat" else [])]
    made_by = [metadata.version(name) for name in libraries]
    state = json.dumps([_FORMAT, kind, tokenizer.sha256, *made_by])
    folder = store.folder / f"tokens-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    make = {"classification": _classified, "language_model": _modelled, "chat": _chatted}[kind]
    if kind == "language_model":
        ends(tokenizer)  # a mistake is told before any work
    return Mapped(cache.built(folder, lambda temporary: _write(temporary, store, tokenizer, make)))


def ends(tokenizer: Any) -> tuple[int, int]:
    """Returns the tokens before and after a document of a language model.

    After it stands eos, or else sep; before it bos, or else cls. Without one for before, the one for after stands on
    both sides, so that every token has one before it that it can be predicted from.
    """
    after = _first(tokenizer.eos, tokenizer.sep, tokenizer.bos, tokenizer.cls)
    if after is None:
        raise UserError(
            "config.tokenizer: the tokenizer has none of the tokens eos, sep, bos and cls, one of which has to end a "
            "text: add eos_token to its special_tokens_map.json"
        )
    before = _first(tokenizer.bos, tokenizer.cls, after)
    assert before is not None
    return before, after


def with_specials(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Returns tokens to classify a text by, int32 [n] each, with the special ones and n at least 1."""
    empty = np.array([_first(tokenizer.unk, tokenizer.pad, 0)], np.int32)
    return [ids if len(ids) else empty for ids in tokenizer.encode(texts, special=True)]


def closing(tokenizer: Any) -> int:
    """Returns how many special tokens the post-processor puts after a text."""
    none, *some = tokenizer.encode(["", "a", "1", "."], special=True)

    def common(ids: np.ndarray) -> int:
        length = min(len(none), len(ids))
        unlike = np.nonzero(none[::-1][:length] != ids[::-1][:length])[0]
        return int(unlike[0]) if len(unlike) else length

    return min(common(ids) for ids in some)  # of several, as one may have no token of its own


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


_Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]  # of one text: ids, bytes, weights
_NONE = np.zeros(0, np.int32)


def _classified(tokenizer: Any, texts: list[str]) -> Iterator[_Tokens]:
    for ids in with_specials(tokenizer, texts):
        yield ids, _NONE, _NONE


def _modelled(tokenizer: Any, texts: list[str]) -> Iterator[_Tokens]:
    before, after = ends(tokenizer)
    for text, (ids, sizes) in zip(texts, tokenizer.encode_bytes(texts), strict=True):
        whole = np.concatenate([[0], sizes, [0]])
        whole[-2 if len(ids) else -1] += len(text.encode()) - sizes.sum()
        yield np.concatenate([[before], ids, [after]]), whole, _NONE


def _chatted(tokenizer: Any, texts: list[str]) -> Iterator[_Tokens]:
    for text in texts:
        messages = json.loads(text)
        ids, weights = tokenizer.chat(messages, answer=False)
        said = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        sizes = np.zeros(len(ids), np.int32)
        last = np.flatnonzero(weights)[-1:]
        sizes[last] = sum(len(content.encode()) for content in said)
        yield ids, sizes, weights > 0


def _write(folder: Path, store: Any, tokenizer: Any, make: Any) -> None:
    used = np.unique(np.concatenate(list(store.splits.values())))
    counts = np.zeros(len(store.texts), np.int64)
    progress = Progress("turning texts into tokens", len(used), "texts")
    files = {name: open(folder / f"{name}.bin", "wb") for name in _KINDS}  # noqa: SIM115
    try:
        for numbers in _chunks(store.texts, used.tolist()):
            made = list(make(tokenizer, [store.texts[i] for i in numbers]))
            counts[numbers] = [len(ids) for ids, *_ in made]
            for (name, kind), parts in zip(_KINDS.items(), zip(*made, strict=True), strict=True):
                np.concatenate(parts).astype(kind).tofile(files[name])
            progress.step(len(numbers))
    finally:
        for file in files.values():
            file.close()
        progress.close()
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))


def _chunks(texts: Any, numbers: list[int]) -> Iterator[list[int]]:
    chunk, size = [], 0
    for i in numbers:
        chunk.append(i)
        size += texts.bytes(i)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _load(folder: Path) -> Encoded:
    try:
        offsets = np.load(folder / "offsets.npy")
        arrays = {name: _map(folder / f"{name}.bin", kind) for name, kind in _KINDS.items()}
        if any(len(array) not in (0, offsets[-1]) for array in arrays.values()) or (
            len(arrays["ids"]) != offsets[-1]
        ):
            raise ValueError("a file is too short")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{folder}: the prepared tokens are damaged ({error}); delete this folder, it is built again"
        ) from error
    return Encoded(offsets=offsets, **arrays)


def _map(file: Path, kind: type) -> np.ndarray:
    # A plain array over the map: NumPy's own class for maps is slow to index.
    return np.asarray(np.memmap(file, kind, "r")) if file.stat().st_size else np.zeros(0, kind)
