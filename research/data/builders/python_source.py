"""Python source: the standard library of the running Python, or the tree that `data.path` names. A file is a text.

Versions of Python differ in their library, and so do the fingerprints of what is prepared. Files are decoded as Python
itself does it, by a coding line or a byte order mark. The few that are broken on purpose, which test that, are
counted as 'skipped'.
"""

import io
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from research.data.layout import given_path
from research.data.source import stamp
from research.data.text.source import TextExample, TextOpened, TextProblem, TextSource
from research.errors import UserError

VERSION = "1"
_LEFT_OUT = ("site-packages", "dist-packages", "__pycache__")
_TESTS = ("test", "tests", "idle_test")


def locate_text(data, *, tests: bool = False) -> TextSource:
    """Returns the source.

    The files of a package, or a module alone, are a group and never lie in different splits. A package is what lies
    side by side where the tree first branches.

    Args:
      tests: whether folders called test, tests or idle_test are read too.

    Raises:
      UserError: there is no such directory, or it holds no Python files.
    """
    if data.path:
        base = given_path(data, "")
    else:
        base = Path(sysconfig.get_paths()["stdlib"])
    files = _files(base, tests) if base.is_dir() else []
    if not files:
        raise UserError(
            f"config.data.name=python_source: {base} holds no .py files; name a directory"
        )
    name = (
        "python_source"
        if data.path
        else f"python_source-{sys.version_info[0]}.{sys.version_info[1]}"
    )
    return TextSource(
        name, VERSION, str(base), stamp(files, base), lambda labelled: _open(base, files, labelled)
    )


def _open(base: Path, files: list[Path], labelled: bool) -> TextOpened:
    if labelled:
        raise UserError(
            "config.data.name=python_source has no classes, but config.task.name asks "
            "for them; name a task without classes"
        )
    keys = [file.relative_to(base).as_posix() for file in files]
    depth = _branching(keys)

    def read() -> Iterator[TextExample | TextProblem]:
        for file, key in zip(files, keys, strict=True):
            content = file.read_bytes()
            try:
                coding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
                text = content.decode(coding)
            except (SyntaxError, UnicodeDecodeError) as error:
                yield TextProblem(key, f"{file}: cannot be decoded ({error})", kind="skipped")
                continue
            yield TextExample(key, text, group=key.split("/")[depth].removesuffix(".py"))

    return TextOpened((), len(files), read)


def _files(base: Path, tests: bool) -> list[Path]:
    left_out = _LEFT_OUT if tests else (*_LEFT_OUT, *_TESTS)
    found = []
    for folder, folders, names in os.walk(base):
        folders[:] = [n for n in folders if n not in left_out and not n.startswith(".")]
        found += [Path(folder, n) for n in names if n.endswith(".py")]
    return sorted(found)


def _branching(keys: list[str]) -> int:
    """How many folders all keys have in common at their beginning."""
    shared = os.path.commonpath(keys) if len(keys) > 1 else ""
    return len(shared.split("/")) if shared else 0
