"""HDF5 files of others: only plain arrays that lie in the file itself."""

from typing import Any

import numpy as np

from research.errors import UserError
from research.transfer.formats.files import plain

EXPANSION = (
    100  # what arrays may take, all together, times the file; much more is no weights but a trap
)
_FREE = 2**26  # bytes that need no such proof: zeros pack well


def datasets(parent, name: str) -> dict[str, Any]:
    """Returns the datasets below a group, path within it -> h5py.Dataset, numbers in their order.

    Raises:
      UserError: there is no such group, or a link leads elsewhere (out of the file, even).
    """
    import h5py

    group = parent
    for part in name.split("/"):
        group = _member(group, part)
    if not isinstance(group, h5py.Group):
        raise UserError(f"'{name}' is no group")
    return dict(_below(group, "", set()))


def values(found: dict[str, Any], size: int) -> dict[str, np.ndarray]:
    """Returns the arrays of datasets, by the same names; bfloat16 as Keras marks it.

    Args:
      found: name -> h5py.Dataset.
      size: of the file that they lie in, in bytes.

    Raises:
      UserError: one lies in another file or holds no numbers, or together they claim to be far larger than the file.
    """
    # Before any is read: datasets that were never written, and several that are one, cost a file nothing.
    claimed = sum(d.nbytes for d in found.values() if d.shape is not None)
    if claimed > max(_FREE, EXPANSION * size):
        raise UserError(f"its arrays claim {claimed} bytes, in a file of {size}")
    return {name: _value(dataset) for name, dataset in found.items()}


def _value(dataset) -> np.ndarray:
    import ml_dtypes

    name = dataset.name
    if dataset.is_virtual or dataset.external:
        raise UserError(f"'{name}' lies in another file")
    if dataset.dtype.hasobject or dataset.shape is None:
        raise UserError(f"'{name}' holds no numbers")
    array = np.asarray(dataset[()])
    if dataset.attrs.get("dtype") == "bfloat16":
        bits = array.dtype.kind == "V" and array.dtype.itemsize == 2
        array = array.view(ml_dtypes.bfloat16) if bits else array.astype(ml_dtypes.bfloat16)
    return plain(name, array)


def strings(group, name: str) -> list[str] | None:
    """Returns an attribute that is a list of texts (in pieces 'name0', 'name1' where it was long), or None."""
    if name in group.attrs:
        pieces = [group.attrs[name]]
    else:
        pieces = []
        while f"{name}{len(pieces)}" in group.attrs:
            pieces.append(group.attrs[f"{name}{len(pieces)}"])
        if not pieces:
            return None
    return [t.decode() if isinstance(t, bytes) else str(t) for piece in pieces for t in piece]


def _member(group, name: str):
    import h5py

    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
    if not isinstance(link, h5py.HardLink):
        raise UserError(f"'{name}' is missing, or a link to another place")
    return group[name]


def _below(group, path: str, seen: set[int]):
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:  # or a group that contains itself would never end
        raise UserError(f"'{path}' is a group that also lies elsewhere")
    seen.add(address)
    for name in sorted(group, key=lambda n: (len(n), n) if n.isdigit() else (0, n)):
        member = _member(group, name)
        place = f"{path}{name}"
        if isinstance(member, h5py.Group):
            yield from _below(member, f"{place}/", seen)
        elif isinstance(member, h5py.Dataset):
            yield place, member
