"""Small files of a run directory, written so that a reader never sees half of one."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole file or nothing: a temporary neighbour is renamed onto `path`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """`write_text` for bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented JSON atomically; NumPy and JAX scalars become Python numbers."""
    write_text(path, json.dumps(value, indent=2, default=plain) + "\n")


def read_json(path: str | os.PathLike, default: Any = None) -> Any:
    """The JSON in a file, or `default` where there is no file, no JSON in it or JSON of another kind."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return default
    return value if default is None or isinstance(value, type(default)) else default


def read_lines(path: str | os.PathLike) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a JSON-lines file, as bytes and as read.

    What a killed process left half written - a line without its end, or without sense - is left
    out. No file reads as no lines.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in content.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(value, dict):
            lines.append((line, value))
    return lines


def plain(value: Any) -> Any:
    """What JSON has no word for: arrays become numbers or lists, everything else its name."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
