"""Text files, strictly as UTF-8: what is broken is named with its place."""

from pathlib import Path


class TextError(Exception):
    """A file that cannot be read as text; one line that names it."""


def read(path: Path) -> str:
    """Returns what a UTF-8 file holds, without a byte order mark; ends of lines as they are.

    Raises:
      TextError: it is not UTF-8, or cannot be read.
    """
    try:
        return decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise TextError(f"{path}: cannot be read ({error.strerror or error})") from error


def decoded(content: bytes, where: str, start: int = 0) -> str:
    """Returns bytes as text, without a byte order mark.

    Args:
      start: of the bytes in their file, for messages.

    Raises:
      TextError: they are not UTF-8.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        wrong, place = content[error.start], start + error.start
        raise TextError(f"{where}: not UTF-8: byte 0x{wrong:02X} at position {place}") from error
