"""What is mended in a text before anything else looks at it: Unicode forms, control characters, ends of lines.

A text that is kept has no control characters but line feed and tab. CRLF and CR become LF, as when Python opens a file
as text; that is not counted. What else changes is.
"""

import re
import unicodedata
from typing import Literal, NamedTuple, cast

from research.data.text.source import Messages

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # category Cc without \t and \n; no \r is left
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_Form = Literal["NFC", "NFKC"]


class Mended(NamedTuple):
    """A text, and what was done to it."""

    text: str
    normalised: bool
    controls: str  # the control characters that were taken out, in order


def mend(text: str, form: str) -> Mended:
    """Returns the text in the Unicode form NFC or NFKC ('' leaves it), without control characters."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = "".join(_CONTROL.findall(text))
    if controls:
        text = _CONTROL.sub("", text)
    # Python knows without looking whether a text is ASCII, and ASCII is normal in every form.
    normal = not form or text.isascii() or unicodedata.is_normalized(cast(_Form, form), text)
    return Mended(
        text if normal else unicodedata.normalize(cast(_Form, form), text), not normal, controls
    )


def mend_chat(messages: Messages, form: str) -> tuple[Messages, Mended]:
    """As `mend`, of each message; what was done to any of them."""
    done = [mend(message["content"], form) for message in messages]
    kept = [
        {"role": message["role"], "content": one.text}
        for message, one in zip(messages, done, strict=True)
    ]
    controls = "".join(one.controls for one in done)
    return kept, Mended("", any(one.normalised for one in done), controls)


def lone_surrogate(text: str) -> str:
    """Returns what half of a character a text holds and where, or ''; such a text has no UTF-8."""
    if text.isascii() or not (found := _SURROGATE.search(text)):
        return ""
    return f"half a character, U+{ord(found[0]):04X}, at character {found.start()}"


def shown(controls: str) -> str:
    """Returns 'U+0007 (2), U+000C' for control characters."""
    counts = {c: controls.count(c) for c in sorted(set(controls))}
    return ", ".join(f"U+{ord(c):04X}" + (f" ({n})" if n > 1 else "") for c, n in counts.items())
