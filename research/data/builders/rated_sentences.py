"""Sentences that twenty people each rated from -4 to 4: film reviews, product reviews, tweets, editorials.

C. Hutto and E. Gilbert, VADER: A parsimonious rule-based model for sentiment analysis of social media text, ICWSM 2014.
The source distribution of the package vaderSentiment 3.3.2 carries them:

    pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 -d data/

and `data.path` is that .tar.gz, the folder that it lies in or was unpacked into, or the hutto_ICWSM_2014.tar.gz within.
The class of a sentence is the sign of its mean rating.

| part | sentences | of them rated 0 |
| --- | --- | --- |
| reviews | 10,605 | 37 |
| products | 3,708 | 98 |
| tweets | 4,200 | 4 |
| editorials | 5,190 | 244 |

The numbers of products and editorials, such as 309_7, name the review and the sentence in it: sentences of one review
are a group, and never lie in different splits. Those of film reviews and tweets are only counted, so that a sentence
is a group of its own there.
"""

import io
import math
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from research.data.source import stamp
from research.data.text.source import TextExample, TextOpened, TextSource
from research.errors import UserError, nearest

VERSION = "2"
PARTS = {
    "reviews": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}
_GROUPED = ("products", "editorials")
_INNER = "hutto_ICWSM_2014"
_FETCH = (
    "pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 -d data/, "
    "then --config.data.path=data/vaderSentiment-3.3.2.tar.gz"
)


def locate_text(
    data,
    *,
    part: str = "reviews",
    drop_zero: bool = True,
    extra: tuple[str, ...] = (),
    certainty: float = 0.0,
) -> TextSource:
    """Returns the source.

    Args:
      part: reviews, products, tweets, editorials or all.
      drop_zero: whether sentences rated 0 are left out; else they are negative. Without classes all are read.
      extra: further parts, of which every sentence is trained on and none is held out.
      certainty: s > 0 trains on how strongly a sentence was rated, not only on the side: the label of one whose mean
        rating is r counts sigmoid(s |r|), the other class the rest. 0 trains on the sign alone.

    Raises:
      UserError: the files are not there, or an option names no part.
    """
    for key, names, known in (("part", (part,), (*PARTS, "all")), ("extra", extra, (*PARTS,))):
        for name in names:
            if name not in known:
                raise UserError(
                    f"config.data.{key}: '{name}' is not one of {', '.join(known)}{nearest(str(name), known)}"
                )
    if certainty < 0:
        raise UserError(f"config.data.certainty={certainty}: 0 or more is meant; 0 turns it off")
    main = tuple(PARTS) if part == "all" else (part,)
    if twice := [name for name in extra if name in main]:
        raise UserError(
            f"config.data.extra: '{twice[0]}' is already config.data.part; leave it out"
        )
    place = _find(data)
    files = [place] if place.is_file() else sorted(place.glob("*_GroundTruth.txt"))
    return TextSource(
        "rated_sentences",
        VERSION,
        str(place),
        stamp(files, place.parent),
        lambda labelled: _open(place, main, extra, drop_zero and labelled, certainty),
    )


def _find(data) -> Path:
    """The archive, or the folder in which the files lie."""
    path = Path(data.path).expanduser().absolute()
    if not data.path or not path.exists():
        where = f"config.data.path={path} is missing" if data.path else "config.data.path is empty"
        raise UserError(f"config.data.name=rated_sentences: {where}: {_FETCH}")
    if path.is_file():
        return path
    if any(path.glob("*_GroundTruth.txt")):
        return path
    patterns = (f"**/{_INNER}/", f"**/{_INNER}.tar.gz", "vaderSentiment-*.tar.gz")
    found = [p for pattern in patterns for p in sorted(path.glob(pattern))]
    if not found:
        raise UserError(
            f"config.data.path={path}: neither vaderSentiment-3.3.2.tar.gz nor {_INNER} in it: {_FETCH}"
        )
    return found[0]


def _open(
    place: Path,
    main: tuple[str, ...],
    extra: tuple[str, ...],
    drop_zero: bool,
    steepness: float,
) -> TextOpened:
    files = _contents(place, (*main, *extra))

    def read() -> Iterator[TextExample]:
        for part in (*main, *extra):
            for number, line in enumerate(files[part].splitlines(), 1):
                key, rating, text = _fields(
                    line, f"{place}: {PARTS[part]}_GroundTruth.txt line {number}"
                )
                if drop_zero and rating == 0:
                    continue
                group = f"{part} {key.split('_')[0]}" if part in _GROUPED else ""
                label = "positive" if rating > 0 else "negative"
                certain = 1 / (1 + math.exp(-steepness * abs(rating))) if steepness else 1.0
                yield TextExample(
                    f"{part}/{key}", text, label, "train", group, part in extra, certain
                )

    lines = sum(files[part].count(b"\n") + 1 for part in files)
    return TextOpened(("negative", "positive"), lines, read)


def _fields(line: bytes, where: str) -> tuple[str, float, str]:
    try:
        key, rating, text = line.decode("utf-8").split("\t")
        return key, float(rating), text.strip()
    except ValueError as error:  # of decoding, unpacking and converting alike
        raise UserError(
            f"{where}: not UTF-8 'id, rating, text' with tabs between; fetch it anew: {_FETCH}"
        ) from error


def _contents(place: Path, parts: tuple[str, ...]) -> dict[str, bytes]:
    """Reads the files of parts out of the archive, the archive in the archive, or the folder."""
    names = {part: f"{PARTS[part]}_GroundTruth.txt" for part in parts}
    if place.is_dir():
        found = {
            part: (place / name).read_bytes()
            for part, name in names.items()
            if (place / name).is_file()
        }
    else:
        try:
            found = _from_archive(place.read_bytes(), names)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise UserError(
                f"{place}: cannot be unpacked ({error}); fetch it anew: {_FETCH}"
            ) from error
    if missing := [name for part, name in names.items() if part not in found]:
        raise UserError(f"{place}: holds no {missing[0]}; fetch it anew: {_FETCH}")
    return found


def _from_archive(content: bytes, names: dict[str, str]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is None:
                continue
            if Path(member.name).name == f"{_INNER}.tar.gz":
                return _from_archive(file.read(), names)
            for part, name in names.items():
                if Path(member.name).name == name:
                    found[part] = file.read()
    return found
