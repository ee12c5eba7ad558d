"""Names as data: one table, read from theirs to ours on import and from ours to theirs on export.

A parameter's path here, 'layer1_0/bn1/scale', is a module's path and a leaf's name; batch statistics stand among the
parameters ('layer1_0/bn1/mean'). A table turns the module's path by the first row whose pattern matches it whole, and
the leaf's name and layout by the convention of the library that the arrays come from.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]  # path of ours -> shape


class Row(NamedTuple):
    """Our modules whose path matches a pattern whole, and where their arrays are in theirs."""

    pattern: str
    names: tuple[str, ...]  # templates; the arrays of several are joined
    kernels: dict[int, tuple[int, ...]] | None = None  # in place of the convention's
    part: tuple[int, int] | None = None  # as Entry.part


Rows = tuple[Row | tuple[str, tuple[str, ...]], ...]


class Convention(NamedTuple):
    """How a library calls the arrays of a layer, and how it lays out kernels."""

    joint: str  # between a layer's name and an array's
    leaves: dict[str, str]  # our name -> theirs
    kernels: dict[
        int, tuple[int, ...]
    ]  # dimensions -> which of their axes each of our axes is; absent is as here
    norm: dict[str, str] = {}  # as `leaves`, of layers that have a scale


TORCH = Convention(
    ".",
    {
        "kernel": "weight",
        "bias": "bias",
        "embedding": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    },
    # Linear [out, in]. Conv2d [out, in / groups, height, width]: of a depthwise one [C, 1, K, K], here [K, K, 1, C].
    {2: (1, 0), 4: (2, 3, 1, 0)},
)
KERAS = Convention(
    "/",
    {
        "kernel": "kernel",
        "bias": "bias",
        "embedding": "embeddings",
        "scale": "gamma",
        "mean": "moving_mean",
        "var": "moving_variance",
    },
    {},
    {"bias": "beta"},
)


class Entry(NamedTuple):
    """One array of ours and where it is in theirs.

    Several of theirs are joined along their first axis; or ours is one of the equal parts of theirs along its last.
    Then axes are permuted.
    """

    ours: str
    theirs: tuple[str, ...]
    axes: tuple[int, ...] | None = None  # ours[i] is theirs[axes[i]]; None: the same layout
    part: tuple[int, int] | None = None  # (which, of how many); None: all of it

    def read(self, arrays: Arrays) -> np.ndarray:
        """Returns our array, made from theirs.

        Raises:
          ValueError: theirs can't be joined or divided so.
        """
        parts = [arrays[name] for name in self.theirs]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.part:
            which, count = self.part
            array = np.split(array, count, -1)[which]
        return array if self.axes is None else array.transpose(self.axes)

    def write(self, array: np.ndarray) -> Arrays:
        """Returns theirs, or our part of theirs, made from ours: the inverse of `read`."""
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        parts = [array] if len(self.theirs) == 1 else np.split(array, len(self.theirs))
        return {n: np.asarray(p, order="C") for n, p in zip(self.theirs, parts, strict=True)}

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of theirs (of all that are joined) for a shape of ours."""
        theirs = ours if self.axes is None else tuple(ours[i] for i in np.argsort(self.axes))
        return (*theirs[:-1], theirs[-1] * self.part[1]) if self.part else theirs


class Naming(NamedTuple):
    """Whose names the arrays have."""

    name: str  # as config.pretrained.naming spells it
    what: str  # in words, for messages
    convention: Convention
    rows: Rows | Callable[[dict[str, Any], Shapes], Rows]  # or from the model's options and shapes
    signature: tuple[
        str, ...
    ]  # patterns of their names; arrays that match all of them are of this kind
    # Theirs that carry nothing which the model uses, and what export writes for them: beside each array whose name
    # matches the pattern, one of that name (a template) with that value (None: the same one).
    ignored: tuple[str, ...] = ()
    beside: tuple[tuple[str, str, np.ndarray | None], ...] = ()
    # (name, name of the array that it must equal): what a file may hold twice, where the model holds it once.
    tied: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()  # (pattern of their names, what in words) one may skip
    absent: tuple[str, ...] = ()  # patterns of our paths that it has no array for
    refused: tuple[tuple[str, str], ...] = ()  # (pattern of their names, why they can't be taken)
    # For libraries whose users name layers freely: (arrays, shapes of ours) -> {name in the table: name found}.
    match: Callable[[Arrays, Shapes], dict[str, str]] | None = None


# PyTorch's batch norms count batches, which nothing here reads.
IGNORED_COUNTERS = (r"\.num_batches_tracked$",)
COUNTERS = ((r"\.running_var$", ".num_batches_tracked", np.zeros((), np.int64)),)
OWN = Naming("own", "this project", Convention("/", {}, {}), (), ())


def entries(naming: Naming, shapes: Shapes, options: dict[str, Any]) -> dict[str, Entry]:
    """Returns the entry of each path of ours, except of those that the naming has no array for.

    Args:
      shapes: path -> shape of every parameter and batch statistic.
      options: the model's, as its config has them.

    Raises:
      UserError: a path that no row speaks of.
    """
    if naming.name == OWN.name:
        return {path: Entry(path, (path,)) for path in shapes}
    rows = naming.rows(options, shapes) if callable(naming.rows) else naming.rows
    compiled = [(re.compile(row[0]), Row(*row)) for row in rows]
    found = {}
    for path, shape in shapes.items():
        if not any(re.search(pattern, path) for pattern in naming.absent):
            found[path] = _entry(naming, compiled, path, shape, shapes)
    return found


def _entry(naming: Naming, rows: list, path: str, shape: tuple[int, ...], shapes: Shapes) -> Entry:
    module, slash, leaf = path.rpartition("/")
    if not slash:  # a parameter of the model itself
        module, leaf = leaf, ""
    library = naming.convention
    if leaf in library.leaves or not leaf:
        named = library.leaves.get(leaf, "")
        if f"{module}/scale" in shapes:
            named = library.norm.get(leaf, named)
        end = library.joint + named if leaf else ""
        for pattern, row in rows:
            if match := pattern.fullmatch(module):
                kernels = library.kernels if row.kernels is None else row.kernels
                axes = kernels.get(len(shape)) if leaf == "kernel" else None
                theirs = tuple(match.expand(name) + end for name in row.names)
                return Entry(path, theirs, axes, row.part)
    raise UserError(f"'{path}' has no name in the naming {naming.name} ({naming.what})")


def written(table: dict[str, Entry], arrays: Arrays) -> Arrays:
    """Returns theirs, made from ours (path -> array): the inverse of reading every entry of a table.

    Raises:
      ValueError: a part of one of theirs is nowhere in the table.
    """
    theirs: Arrays = {}
    divided: dict[str, list[np.ndarray | None]] = {}
    for path, entry in table.items():
        made = entry.write(arrays[path])
        if entry.part is None:
            theirs |= made
            continue
        which, count = entry.part
        for name, array in made.items():
            theirs.setdefault(name, array)  # keeps its place
            divided.setdefault(name, [None] * count)[which] = array
    for name, parts in divided.items():
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            raise ValueError(f"'{name}' has {len(parts)} parts, of which {len(there)} are given")
        theirs[name] = np.concatenate(there, -1)
    return theirs


def ignorable(naming: Naming, name: str) -> bool:
    """Returns whether one of their arrays carries nothing that the model uses."""
    return any(re.search(pattern, name) for pattern in naming.ignored)


def beside(naming: Naming, names: Arrays) -> Arrays:
    """Returns what their library also asks for, beside the arrays that the model has."""
    return {
        re.sub(pattern, template, name): names[name] if value is None else value
        for name in names
        for pattern, template, value in naming.beside
        if re.search(pattern, name)
    }


def natural(name: str) -> list:
    """A key for sorting in which block_10 comes after block_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
