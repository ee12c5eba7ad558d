"""What a builder of texts hands over: where they are, what marks their state, and how they are read.

A builder is a module of research/data/builders with a function `locate_text(data, *, option=default) -> TextSource`. It
is cheap (it looks at names, sizes and times of files), so that prepared texts are found again in milliseconds.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

Messages = list[dict[str, str]]  # of a chat: 'role' and 'content' each, the last the assistant's


class TextExample(NamedTuple):
    """A text, or a chat."""

    key: str  # its name, unique in the source: a relative path, or 'train/0000017'
    text: str | Messages  # as it was found; cleaning is not the builder's business
    label: str | None = None  # its class
    split: str = "train"  # train, validation, test or test_NAME
    group: str = ""  # texts of one group never lie in different splits; '' is none
    pinned: bool = False  # of train, and never cut from it
    certainty: float = 1.0  # of two classes: the odds that its class is right, from a half on


class TextProblem(NamedTuple):
    """A text that could not be read."""

    key: str
    detail: str  # one line that names the file and the place in it
    label: str | None = None
    kind: str = "unreadable"  # or skipped: of no use to anyone, so that no policy asks for an error
    split: str = "train"


class TextOpened(NamedTuple):
    """A source that is about to be read."""

    class_names: tuple[
        str, ...
    ]  # in the order of their numbers; () is those that are found, sorted
    total: int  # how many examples there are, for progress; 0 is not known
    read: Callable[[], Iterator[TextExample | TextProblem]]  # always in the same order


class TextSource(NamedTuple):
    """A source that has been found."""

    name: str
    version: str  # of the builder: another version reads the same files otherwise
    place: str  # where it is, for messages and the report
    fingerprint: str  # changes whenever the source's files do
    open: Callable[[bool], TextOpened]  # takes whether labels are wanted
