"""What cleaning and splitting call the examples: pictures or texts."""

from typing import NamedTuple


class Words(NamedTuple):
    """How messages speak of the examples."""

    one: str
    many: str
    problems: tuple[str, ...]  # kinds of what could not be read
    kinds: dict[
        str, str
    ]  # kind of finding -> what is so of an example, or between it and its partner


_NEARLY = "is nearly the same as"
PICTURES = Words(
    "picture",
    "pictures",
    ("unreadable", "shape", "nan"),
    {
        "blank": "is blank: every pixel is the same",
        "label_conflict": "has the same pixels, but another label than",
        "duplicate": "has the same pixels as",
        "cross_split": "has the same pixels as",
        "near_duplicate": _NEARLY,
        "near_cross_split": _NEARLY,
    },
)
TEXTS = Words(
    "text",
    "texts",
    ("unreadable", "skipped"),
    {
        "blank": "is empty",
        "long": "has more characters than config.data.text.longest",
        "label_conflict": "is the same text, but has another label than",
        "duplicate": "is the same text as",
        "cross_split": "is the same text as",
        "near_duplicate": _NEARLY,
        "near_cross_split": _NEARLY,
    },
)
CHATS = TEXTS._replace(kinds=TEXTS.kinds | {"blank": "has no answer but empty ones"})
