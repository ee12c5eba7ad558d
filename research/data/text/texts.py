"""Texts in two files: their UTF-8 one after the other, memory-mapped, and where each begins."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from research.data.text.source import Messages


class Texts(Sequence[str]):
    """N texts; `texts[i]` reads one of them from the disk's cache."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray):
        """Takes content uint8 [bytes] and offsets int64 [N + 1], where each text begins and the last one ends."""
        self._content, self.offsets = content, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        i = i % len(self)
        return bytes(self._content[self.offsets[i] : self.offsets[i + 1]]).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def bytes(self, i: int) -> int:
        """Returns the length of text i as UTF-8."""
        i = range(len(self))[i]
        return int(self.offsets[i + 1] - self.offsets[i])


def write(folder: Path, texts: Iterable[str]) -> None:
    """Writes texts.bin and offsets.npy."""
    offsets = [0]
    with (folder / "texts.bin").open("wb") as file:
        for text in texts:
            offsets.append(offsets[-1] + file.write(text.encode()))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))


def load(folder: Path) -> Texts:
    """Maps what `write` wrote."""
    offsets = np.load(folder / "offsets.npy")
    file = folder / "texts.bin"
    if file.stat().st_size != offsets[-1]:
        raise ValueError(f"texts.bin has {file.stat().st_size} bytes instead of {offsets[-1]}")
    empty = np.zeros(0, np.uint8)  # which cannot be mapped
    return Texts(np.memmap(file, np.uint8, "r") if offsets[-1] else empty, offsets)


def chat_to_text(messages: Messages) -> str:
    """Returns a chat as one line of JSON, equal for equal chats."""
    return json.dumps(messages, ensure_ascii=False)


def spoken(text: str, chat: bool) -> str:
    """Returns what is said in a chat, a message a line; a text that is no chat as it is.

    A chat in which an answer is blank says nothing: of it silence would be learned.
    """
    if not chat:
        return text
    messages = json.loads(text)
    if not all(m["content"].strip() for m in messages if m["role"] == "assistant"):
        return ""
    return "\n".join(m["content"] for m in messages)
