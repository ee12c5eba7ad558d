"""Files of torch.save, without PyTorch: the zip format (since 1.6), the legacy one before it, and a writer of zips.

What is in them: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py. A pickle names what is to be
called when it is read. Here nothing is: research/transfer/formats/opcodes.py walks through it and knows state dicts.
"""

import io
import os
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from research.errors import UserError
from research.transfer.formats.files import existing, looks_like, one_line, plain, write_bytes
from research.transfer.formats.opcodes import Refused, Storage, Tensor, interpret, ordered_tensors

# Where a training checkpoint keeps its state dict, first found first taken.
STATE_KEYS = ("state_dict", "model_state_dict", "model")
DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAGIC = 0x1950A86A20F9469CFC6C
_ALIGN = 64  # bytes, as torch.save places tensors, so that torch.load(mmap=True) finds them aligned
# Of all tensors together: views may overlap and repeat elements, each becomes an array of its own.
_FREE, _EXPANSION = 2**28, 4  # bytes; or times the file, whichever is more


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the state dict in a .pth, .pt or .bin file, in the file's order; bfloat16 as `ml_dtypes.bfloat16`.

    The file holds a state dict, or a dict with one under 'state_dict', 'model_state_dict' or 'model' (taken in that
    order) beside an epoch, an optimizer's state and the like. Views, transposed and shared tensors are rebuilt.

    Raises:
      UserError: no such file, truncated, not of torch.save, big-endian, compressed, or it holds more than a state dict:
        the line names the first thing that torch.load would have had to import or call.
    """
    path = existing(path)
    try:
        with path.open("rb") as file:
            content = file.read()
        if content.startswith(b"PK\x03\x04"):
            value, bytes_of = _read_zip(content)
        elif content.startswith(b"\x80"):
            value, bytes_of = _read_legacy(content)
        else:
            raise Refused(f"is no file of torch.save but {looks_like(path)}")
        left = max(_FREE, _EXPANSION * len(content))
        arrays = {}
        for name, tensor in _state_dict(value).items():
            arrays[name] = _array(name, tensor, bytes_of, left)
            left -= arrays[name].nbytes
        return arrays
    except Refused as error:
        raise UserError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{path}: is truncated or damaged: {one_line(error)}") from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: is truncated or damaged: {one_line(error)}") from error


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Writes a state dict that torch.load(weights_only=True) reads; the same arrays give the same bytes.

    Args:
      path: the file; its folder is made if need be.
      arrays: name -> array, 0-d too, of float16/32/64, bfloat16, int8/16/32/64, uint8 or bool.

    Raises:
      UserError: an array of another dtype.
    """
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    tensors, contents = [], []
    for key, (name, array) in enumerate(arrays.items()):
        array = plain(name, array)
        if array.dtype not in kinds:
            known = ", ".join(str(dtype) for dtype in kinds)
            raise UserError(f"{path}: array '{name}' is {array.dtype}; PyTorch files take {known}")
        storage = Storage(kinds[array.dtype], str(key), array.size)
        strides = tuple(s // array.itemsize for s in _strides(array))
        tensors.append((name, Tensor(storage, 0, array.shape, strides)))
        contents.append((f"archive/data/{key}", array.tobytes()))
    entries = [("archive/data.pkl", ordered_tensors(tensors)), ("archive/byteorder", b"little")]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*entries, *contents, ("archive/version", b"3\n")]:
            entry = zipfile.ZipInfo(name)  # dated 1980
            # An extra field of PyTorch's own kind, 'FB', fills up to the alignment.
            fill = -(out.tell() + 30 + len(name) + 4) % _ALIGN
            entry.extra = b"FB" + struct.pack("<H", fill) + b"Z" * fill
            archive.writestr(entry, content)
    write_bytes(path, out.getbuffer())


def _read_zip(whole: bytes):
    archive = zipfile.ZipFile(io.BytesIO(whole))
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        kind = "a Keras file: keras:FILE" if "model.weights.h5" in entries else "not of torch.save"
        raise Refused(f"is a zip file without NAME/data.pkl in it ({kind})")
    top = pickles[0].removesuffix("data.pkl")
    if f"{top}constants.pkl" in entries:
        raise Refused("is TorchScript, a program; save its state_dict() with torch.save instead")

    def content(name: str) -> bytes:
        if name not in entries:
            raise Refused(f"lacks the entry '{name}'")
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"its entry '{name}' is compressed or encrypted; torch.save stores it")
        return archive.read(entry)

    if f"{top}byteorder" in entries and content(f"{top}byteorder") != b"little":
        raise Refused("was written on a big-endian machine; save it anew on a usual one")
    cache: dict[str, bytes] = {}

    def bytes_of(storage: Storage) -> bytes:
        if storage.key not in cache:
            cache[storage.key] = content(f"{top}data/{storage.key}")
        return cache[storage.key]

    return interpret(io.BytesIO(content(pickles[0]))), bytes_of


def _read_legacy(whole: bytes):
    file = io.BytesIO(whole)
    if interpret(file) != _MAGIC:
        raise Refused("is a pickle, but none of torch.save")
    if interpret(file) != 1001:
        raise Refused("is of an unknown version of the format of torch.save")
    machine = interpret(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("was written on a big-endian machine; save it anew on a usual one")
    seen: dict[str, Storage] = {}
    value = interpret(file, seen)
    keys = interpret(file)
    contents: dict[str, memoryview] = {}
    for key in keys if isinstance(keys, list) else ():
        if key not in seen:
            raise Refused(f"holds a storage '{key}' of unknown type")
        count = struct.unpack("<q", file.read(8))[0]
        size = count * DTYPES[seen[key].kind].itemsize
        place = file.tell()
        if not 0 <= size <= len(whole) - place:
            raise Refused(
                f"truncated: storage '{key}' takes {size} bytes, {len(whole) - place} are left"
            )
        contents[key] = memoryview(whole)[place : place + size]
        file.seek(place + size)

    def bytes_of(storage: Storage) -> memoryview:
        if storage.key not in contents:
            raise Refused(f"lacks the storage '{storage.key}'")
        return contents[storage.key]

    return value, bytes_of


def _state_dict(value: Any) -> dict[str, Tensor]:
    """Finds the tensors in what the pickle held, and says what else there is."""
    if not isinstance(value, dict):
        raise Refused(f"holds a {type(value).__name__.lower()}; a state dict was expected")
    if not any(isinstance(v, Tensor) for v in value.values()):
        inner = next((k for k in STATE_KEYS if isinstance(value.get(k), dict)), None)
        if inner is None and value:
            some = ", ".join(repr(k) for k in list(value)[:8])
            expected = " or ".join(f"'{k}'" for k in STATE_KEYS)
            raise Refused(f"holds no tensors and no {expected}, but {some}")
        value = value[inner] if inner else value
    other = [k for k, v in value.items() if not (isinstance(v, Tensor) and isinstance(k, str))]
    if other:
        some = ", ".join(repr(k) for k in other[:8])
        raise Refused(f"its state dict holds what is no tensor under a name: {some}")
    return value


def _array(name: str, tensor: Tensor, bytes_of, left: int) -> np.ndarray:
    """Looks into a storage as a tensor does, never past its end; the result takes at most `left` bytes."""
    storage, offset, shape, strides = tensor
    dtype = DTYPES[storage.kind]
    content = bytes_of(storage)
    if len(content) != storage.size * dtype.itemsize:
        raise Refused(
            f"tensor '{name}': its storage takes {storage.size} x {dtype}, found {len(content)} bytes"
        )
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise Refused(f"tensor '{name}': shape {shape}, strides {strides}, offset {offset}")
    empty = 0 in shape
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if not empty and last >= storage.size:
        raise Refused(f"tensor '{name}' of shape {shape} reaches past its {storage.size} elements")
    size = 1
    for n in shape:
        size *= n
    if size * dtype.itemsize > left:
        raise Refused(
            f"tensor '{name}' of shape {shape} is made from {storage.size} elements: with it, the tensors would take "
            f"more than {_EXPANSION} times the file"
        )
    if empty:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype)[offset:]
    steps = tuple(s * dtype.itemsize for s in strides)
    # The copy belongs to nobody else: neither to the file's bytes nor to a tensor that shares them.
    return np.lib.stride_tricks.as_strided(flat, shape, steps).copy(order="C")


def _strides(array: np.ndarray) -> tuple[int, ...]:
    """Strides in bytes as PyTorch counts them for a contiguous array, also where a length is 0 or 1."""
    steps = [array.itemsize]
    for n in array.shape[:0:-1]:
        steps.append(steps[-1] * max(n, 1))
    return tuple(reversed(steps))[: array.ndim] if array.ndim else ()
