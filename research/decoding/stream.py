"""The text of tokens as they come: whole characters only, and nothing that may turn out to begin a stop text."""

from collections.abc import Callable, Sequence

import numpy as np

BROKEN = "\ufffd"  # what decoders give for bytes that are no character, or not yet
BEFORE = 5  # tokens of the prompt that are decoded along: some decoders treat a text's first token differently


class Stream:
    """What follows one prompt. `ids`, `text` and `reason` ('' while it goes on) are as in generate.Generated.

    Tokens are looked at one by one, so their text does not depend on how many come at a time. Of all tokens only those
    since the last whole character are decoded again, beside the few before them.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        decode: Callable[[np.ndarray], str],
        eos: Sequence[int],
        stop: tuple[str, ...],
        limit: int,
        number: int,
        emit: Callable[[int, str], None] | None,
    ):
        self.ids: list[int] = []
        self.text = ""
        self.reason = "" if limit > 0 else "length"
        self._decode, self._eos, self._emit = decode, frozenset(eos), emit
        self._stop = tuple(text for text in stop if text)
        self._limit, self._number = limit, number
        self._window = [
            int(i) for i in prompt[-BEFORE:]
        ]  # the last tokens; the first `_read` are done with
        self._read = len(self._window)
        self._given = len(self._whole())  # characters of the window's text that are done with
        self._held = ""  # text that is not emitted yet

    def feed(self, tokens: Sequence[int]) -> None:
        """Takes further tokens, until one of them ends the text."""
        pieces = ""
        for token in tokens:
            if self.reason:
                break
            pieces += self._take(int(token))
        self.text += pieces
        if pieces and self._emit:
            self._emit(self._number, pieces)

    def _take(self, token: int) -> str:
        """Returns what can be emitted with one more token."""
        if token in self._eos:
            self.reason = "eos"
            return self._held
        self.ids.append(token)
        self._held += self._further(token)
        found = [self._held.find(text) for text in self._stop if text in self._held]
        if found:
            self.reason = "stop"
            return self._held[: min(found)]
        if len(self.ids) >= self._limit:
            self.reason = "length"
            return self._held
        ready = len(self._held) - self._beginning()
        piece, self._held = self._held[:ready], self._held[ready:]
        return piece

    def _further(self, token: int) -> str:
        """Returns the characters that the token completes."""
        self._window.append(token)
        text = self._decode(np.array(self._window, np.int32))
        whole = text.rstrip(BROKEN)
        piece = whole[self._given :]
        self._given = max(self._given, len(whole))
        if piece and whole == text:
            self._window, self._read = self._window[self._read :], len(self._window) - self._read
            self._given = len(self._whole())
        return piece

    def _whole(self) -> str:
        return self._decode(np.array(self._window, np.int32)).rstrip(BROKEN)

    def _beginning(self) -> int:
        """Returns how many characters at the end of the held text may be the beginning of a stop text."""
        most = max((len(text) - 1 for text in self._stop), default=0)
        for n in range(min(most, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-n:]) for text in self._stop):
                return n
        return 0
