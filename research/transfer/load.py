"""stub"""

from typing import Any, NamedTuple


class Imported(NamedTuple):
    params: Any
    model_state: Any
    naming: str
    skipped: list


def load(*a, **k):
    raise NotImplementedError
