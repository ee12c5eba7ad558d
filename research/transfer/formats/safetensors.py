"""safetensors files, also in shards as Hugging Face publishes them.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header, the arrays' bytes.
"""

import json
import os
import struct
from pathlib import Path

import numpy as np

from research.errors import UserError, UserErrors
from research.transfer.formats.files import existing, looks_like, one_line, plain, write_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST = 100_000_000  # bytes of header; the library's own bound


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a file, or of a folder that holds model.safetensors or its shards and their index.

    Returns:
      Name -> array, in the order of the file's bytes (of shards: in the order of their names). bfloat16 comes as
      `ml_dtypes.bfloat16`.

    Raises:
      UserError: no such file, not safetensors, truncated, a shard missing or an array that the index promises.
    """
    path = Path(path)
    if path.is_dir():
        if (path / SINGLE).is_file():
            return _read_file(path / SINGLE)
        if not (path / INDEX).is_file():
            raise UserError(f"{path}: holds neither {SINGLE} nor {INDEX}")
        return _read_shards(path / INDEX)
    if path.name.endswith(".index.json"):
        return _read_shards(existing(path))
    return _read_file(existing(path))


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes arrays as one safetensors file; the same arrays and metadata give the same bytes.

    Args:
      path: the file; its folder is made if need be.
      arrays: name -> array of numbers. The file's order is the library's: wide dtypes first, then by name.
      metadata: texts for the header, such as {'format': 'pt'}, which Hugging Face's tools ask for.

    Raises:
      UserError: an array that the format can't hold.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        content = save({name: plain(name, array) for name, array in arrays.items()}, metadata)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be written as safetensors: {one_line(error)}") from error
    # The library writes the metadata in an order that changes from call to call.
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that arrays begin where eight-byte numbers may
    write_bytes(path, struct.pack("<Q", len(text)) + text + content[8 + length :])


def _read_file(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  makes bfloat16 a NumPy dtype
    from safetensors import SafetensorError, safe_open

    _check_size(path)
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.offset_keys()}
    except AttributeError as error:  # the library asks NumPy for a dtype of this name
        raise UserError(
            f"{path}: holds a dtype that is not read here: {one_line(error)}"
        ) from error
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is no whole safetensors file: {one_line(error)}") from error


def _check_size(path: Path) -> None:
    """Says more than the library does: what was expected and what is there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else _MOST
        if length >= _MOST or start[8:] != b"{":
            raise UserError(f"{path}: is no safetensors file but {looks_like(path)}")
        if 8 + length > size:
            raise UserError(
                f"{path}: truncated: its header takes {length} bytes, found {size - 8}; get it anew"
            )
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"{path}: its safetensors header is damaged: {one_line(e)}") from e
    if size < expected:
        raise UserError(
            f"{path}: truncated: {expected} bytes were expected, found {size}; get it anew"
        )


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(places.values()))
        wrong = [s for s in shards if Path(s).name != s]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index}: must hold {{'weight_map': {{name: file}}}}: {one_line(error)}"
        ) from error
    if wrong:
        raise UserError(f"{index}: names a shard outside its own folder: {', '.join(wrong)}")
    missing = [s for s in shards if not (index.parent / s).is_file()]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}; "
            "put them beside it"
        )
    arrays: dict[str, np.ndarray] = {}
    problems = []
    for shard in shards:
        inside = _read_file(index.parent / shard)
        promised = {name for name, place in places.items() if place == shard}
        for name in sorted(promised - set(inside)):
            problems.append(f"{index}: '{name}' should be in {shard}, but is not")
        arrays |= {name: array for name, array in inside.items() if name in promised}
    if problems:
        raise UserErrors(problems)
    return arrays
