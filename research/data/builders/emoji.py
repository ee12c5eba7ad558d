"""Emoji as four vendors draw them: 64x64 pictures in the 9 categories of Unicode, and a test by a vendor never seen.

The npm packages emoji-datasource-VENDOR 16.0.0 of C. Henderson's emoji-data (github.com/iamcal/emoji-data). `data.path`
holds them as `npm pack` or as `npm install` leaves them:

    PATH/emoji-datasource-VENDOR-16.0.0.tgz    read as it is, nothing is unpacked
    PATH/emoji-datasource-VENDOR/              or PATH/node_modules/emoji-datasource-VENDOR/

The pictures of `vendors` are 'train', of which validation and test are cut. All forms of an emoji (its vendors, skin
tones, genders, directions) are one group, so none of them lies on both sides of a cut. 'test_vendor' is every picture
of `unseen_vendor`: how it draws is new, but most of what it draws was seen as others draw it.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from research.data.emoji_groups import group_of
from research.data.source import Examples, Opened, Problem, Source, stamp, wanted_shape
from research.errors import UserError, UserErrors, nearest

VERSION = "1"
RELEASE = "16.0.0"  # of the packages
VENDORS = ("google", "twitter", "facebook", "apple")
CLASSES = (  # without 'Component': skin tones that stand alone
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
_SIDE = 64


class Package(NamedTuple):
    """A vendor's package that was found."""

    vendor: str
    place: Path  # a folder or a .tgz


class Picture(NamedTuple):
    """An entry of a package."""

    key: str  # google/1f600.png
    label: int
    group: str


def locate(
    data,
    *,
    vendors: tuple[str, ...] = ("google", "twitter", "facebook"),
    unseen_vendor: str = "apple",
    background: str = "white",
    variants: bool = False,
) -> Source:
    """Returns the source.

    Args:
      vendors: whose pictures are trained on.
      unseen_vendor: whose pictures are 'test_vendor'; '' for no such test.
      background: what the transparent pictures are laid on: white, black, grey or r,g,b from 0 to 255.
      variants: all skin tones of an emoji, instead of the one without.

    Raises:
      UserErrors: an option is wrong, or a package is missing or of another release; the message names the command.
    """
    errors = _vendor_errors(vendors, unseen_vendor)
    colour = _colour(background)
    if isinstance(colour, str):
        errors.append(colour)
    if errors:
        raise UserErrors(errors)
    asked = [*vendors, *([unseen_vendor] if unseen_vendor else [])]
    path = _path(data, asked)
    packages = {vendor: _find(path, vendor) for vendor in asked}
    if missing := [vendor for vendor, found in packages.items() if found is None]:
        names = ", ".join(f"emoji-datasource-{vendor}" for vendor in missing)
        raise UserError(f"config.data.path={path}: holds no {names}; {_command(path, missing)}")
    found = [package for package in packages.values() if package is not None]
    files = [file for package in found for file in _files(package)]
    parts = {"train": found[: len(vendors)], "test_vendor": found[len(vendors) :]}
    parts = {part: members for part, members in parts.items() if members}
    return Source(
        "emoji",
        VERSION,
        str(path),
        stamp(files, path),
        lambda: _open(data, parts, colour, variants),
    )


def _vendor_errors(vendors: tuple[str, ...], unseen: str) -> list[str]:
    errors = [
        f"config.data.{key}: there is no vendor '{vendor}'{nearest(vendor, VENDORS)}: {', '.join(VENDORS)}"
        for key, names in (("vendors", vendors), ("unseen_vendor", (unseen,) if unseen else ()))
        for vendor in names
        if vendor not in VENDORS
    ]
    if not vendors or len(set(vendors)) < len(vendors):
        errors.append(f"config.data.vendors is {vendors}: name one or more, each once")
    if unseen in vendors:
        errors.append(
            f"config.data.unseen_vendor: '{unseen}' is one of config.data.vendors, so it "
            "is seen; leave it out of one of them"
        )
    return errors


def _colour(text: str) -> tuple[int, ...] | str:
    """The background as r, g, b, or a line that says what is wrong with it."""
    if text in BACKGROUNDS:
        return BACKGROUNDS[text]
    values = [part.strip() for part in text.strip("()").split(",")]
    if len(values) == 3 and all(v.isdecimal() and int(v) < 256 for v in values):
        return tuple(map(int, values))
    return (
        f"config.data.background is '{text}'{nearest(text, BACKGROUNDS)}, but must be "
        f"{', '.join(BACKGROUNDS)} or r,g,b from 0 to 255, such as 255,200,0"
    )


def _path(data, vendors: list[str]) -> Path:
    if not data.path:
        raise UserError(
            f"config.data.name=emoji: where are the packages? {_command(Path('DIR'), vendors)}, "
            "and give --config.data.path=DIR"
        )
    path = Path(data.path).expanduser().absolute()
    if not path.is_dir():
        make = f"mkdir -p {path} && " if not path.exists() else ""
        raise UserError(
            f"config.data.path={path}: there is no such folder; {make}{_command(path, vendors)}"
        )
    return path


def _command(path: Path, vendors: list[str]) -> str:
    names = " ".join(f"emoji-datasource-{vendor}@{RELEASE}" for vendor in vendors)
    return f"npm pack --pack-destination {path} {names} (or npm install --prefix {path} with the same names)"


def _find(path: Path, vendor: str) -> Package | None:
    """The package of the right release.

    Raises:
      UserError: there are only others.
    """
    name = f"emoji-datasource-{vendor}"
    others = []
    for folder in (path / name, path / "node_modules" / name):
        if folder.is_dir():
            release = _release(_read(folder / "package.json"), folder)
            if release == RELEASE:
                return Package(vendor, folder)
            others.append((release, folder))
    for file in sorted(path.glob(f"{name}-*.tgz")):
        release = file.name.removeprefix(f"{name}-").removesuffix(".tgz")
        if release == RELEASE:
            return Package(vendor, file)
        others.append((release, file))
    if others:
        release, place = others[0]
        raise UserError(f"{place}: is {name} {release}, not {RELEASE}; {_command(path, [vendor])}")
    return None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); install it again") from error


def _release(text: bytes, place: Path) -> str:
    try:
        return str(json.loads(text)["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: its package.json names no version; get it again") from error


def _files(package: Package) -> list[Path]:
    if package.place.is_file():
        return [package.place]
    pictures = package.place.glob(f"img/{package.vendor}/64/*.png")
    return [
        f
        for f in (package.place / "package.json", package.place / "emoji.json", *pictures)
        if f.is_file()
    ]


def _content(package: Package) -> dict[str, bytes]:
    """Reads what is needed of a package: package.json, emoji.json and img/VENDOR/64/*.png, some 15 MB."""
    place, folder = package.place, f"img/{package.vendor}/64/"
    if place.is_dir():
        return {f.relative_to(place).as_posix(): _read(f) for f in _files(package)}
    content: dict[str, bytes] = {}
    try:
        with tarfile.open(place, "r|gz") as archive:  # one way: going back would unpack it again
            for member in archive:
                name = member.name.partition("/")[2]  # without 'package/'
                if name in ("package.json", "emoji.json") or name.startswith(folder):
                    file = archive.extractfile(member)
                    content |= {name: file.read()} if file else {}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        mend = f"get it again: {_command(place.parent, [package.vendor])}"
        raise UserError(f"{place}: cannot be read as a .tgz ({error}); {mend}") from error
    return content


def _open(data, parts: dict[str, list[Package]], colour, variants: bool) -> Opened:
    contents: dict[str, dict[str, bytes]] = {}
    pictures: dict[str, list[Picture]] = {}
    for part, packages in parts.items():
        pictures[part] = []
        for package in packages:
            content = contents[package.vendor] = _content(package)
            found = _release(content.get("package.json", b""), package.place)
            if found != RELEASE:
                again = _command(package.place.parent, [package.vendor])
                raise UserError(f"{package.place}: holds release {found}, not {RELEASE}; {again}")
            # Of 'test_vendor' nothing is cut; with groups, it could draw nothing that train draws.
            pictures[part] += _pictures(package, content, variants, grouped=part == "train")

    def read(part: str) -> Iterator[Examples | Problem]:
        for picture in pictures[part]:
            vendor, _, image = picture.key.partition("/")
            try:
                pixels = _laid_on(contents[vendor][f"img/{vendor}/64/{image}"], colour)
                yield Examples([picture.key], [picture.label], pixels[None], [picture.group])
            except (KeyError, OSError, ValueError, SyntaxError) as error:
                reason = "is missing" if isinstance(error, KeyError) else f"is no PNG ({error})"
                detail = f"{picture.key}: {reason}, though emoji.json names it"
                yield Problem("unreadable", picture.key, detail, picture.label)

    sizes = {part: len(members) for part, members in pictures.items()}
    return Opened(CLASSES, wanted_shape(data, (_SIDE, _SIDE, 3)), sizes, read)


def _pictures(package: Package, content, variants: bool, grouped: bool) -> list[Picture]:
    """What a vendor draws, by the name of the file."""
    vendor, found = package.vendor, {}
    try:
        for entry in json.loads(content["emoji.json"]):
            if entry["category"] not in CLASSES:
                continue
            group = group_of(entry["unified"]) if grouped else ""
            tones = entry.get("skin_variations", {}).values() if variants else ()
            for form in (entry, *tones):
                if form[f"has_img_{vendor}"]:
                    key = f"{vendor}/{form['image']}"
                    found[key] = Picture(key, CLASSES.index(entry["category"]), group)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (
            f"its emoji.json is not that of release {RELEASE} ({type(error).__name__}: {error})"
        )
        raise UserError(f"{package.place}: {reason}; get it again") from error
    return [found[key] for key in sorted(found)]


def _laid_on(png: bytes, colour: Any) -> np.ndarray:
    """Decodes a PNG and lays it on a colour: uint8 [64, 64, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        above = image.convert("RGBA")
    ground = Image.new("RGBA", above.size, (*colour, 255))
    return np.asarray(Image.alpha_composite(ground, above).convert("RGB"))
