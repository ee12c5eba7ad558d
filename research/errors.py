"""How work that cannot go on is told: in one line, with the mend."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's mistake: one clear line that says what, where and the mend. Exit code 2."""


class UserErrors(UserError):
    """Several mistakes, listed together."""

    def __init__(self, lines: Iterable[str]):
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


class Failure(Exception):
    """Work that had to stop for a reason that one line can tell. Exit code 1."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the option nearest in spelling, or ""."""
    found = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""
