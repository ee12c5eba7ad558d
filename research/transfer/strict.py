"""What does not fit between arrays and a model, told at once: what was expected, what was found, and the mend."""

import re
from typing import Any

import numpy as np

from research.errors import UserErrors, nearest
from research.transfer.tables import Entry, Naming, Shapes

MOST = 20  # lines
HEADS = ("head", "pooler", "mlm")
FEW = 5  # of one kind, where nearly everything is wrong in the same way


class Problems:
    """Collects while arrays are read; `check` raises what was found."""

    def __init__(
        self,
        source: str,
        naming: Naming,
        renamed: dict[str, str],
        model: str,
        options: dict[str, Any],
    ):
        self.source, self.naming, self.renamed = source, naming, renamed
        self.model, self.options = model, options
        self.rules: list[str] = []  # lines
        self.absent: list[str] = []  # paths
        self.missing: list[tuple[Entry, str]] = []  # and which name is missing
        self.narrow: list[tuple[str, str]] = []  # name, dtype
        self.infinite: list[tuple[Entry, np.ndarray]] = []  # and its value here
        # Shapes of the arrays found, and what they would be here (None: they don't even join).
        self.misshapen: list[tuple[Entry, list[tuple[int, ...]], tuple[int, ...] | None]] = []
        self.unresizable: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        self.untied: list[tuple[str, str]] = []  # names of two that should be one
        self.extra: list[str] = []  # names

    def check(self, shapes: Shapes) -> None:
        """Raises UserErrors if anything was noted; shapes are the model's own."""
        lines = [
            *self.rules,
            *self._narrow(),
            *self._infinite(),
            *self._misshapen(shapes),  # first, since a model of another size lacks names as well
            *(self._missing(entry, name, shapes) for entry, name in self.missing),
            *(self._absent(path) for path in self.absent),
            *(self._unresizable(*case) for case in self.unresizable),
            *(self._untied(*names) for names in self.untied),
            *self._extras(),
        ]
        if lines:
            more = [f"{self.source}: and {len(lines) - MOST} more"] if len(lines) > MOST + 1 else []
            raise UserErrors(lines[: MOST if more else None] + more)

    def _called(self, name: str) -> str:
        """As the user's file has it."""
        return f"'{self.renamed.get(name, name)}'"

    def _narrow(self) -> list[str]:
        if not self.narrow:
            return []
        name, dtype = self.narrow[0]
        mend = f"add the rule {('.*', 'cast')!r} to widen them to float32"
        if "float" not in dtype:
            mend = "convert the weights to float32 first"
        some = f"{len(self.narrow)} arrays are {dtype}, such as {self._called(name)}"
        return [f"{self.source}: {some}, where float32 or float64 was expected; {mend}"]

    def _infinite(self) -> list[str]:
        if not self.infinite:
            return []
        entry, value = self.infinite[0]
        count = np.count_nonzero(~np.isfinite(value))
        return [
            f"{self.source}: {len(self.infinite)} arrays hold NaN, infinity or more than float32 can, such as "
            f"{self._called(entry.theirs[0])} ({count} of {value.size}); the training that wrote them went astray"
        ]

    def _missing(self, entry: Entry, name: str, shapes: Shapes) -> str:
        expected = list(entry.shape(shapes[entry.ours]))
        near = nearest(name, [self.renamed.get(n, n) for n in self.extra])
        return (
            f"{self.source}: array '{name}' {expected} is missing, for '{entry.ours}'{near}; "
            f"add {_skip(entry.ours)} to keep the fresh value"
        )

    def _absent(self, path: str) -> str:
        return f"{self.source}: {self.naming.what} has no '{path}'; add {_skip(path)} to keep the fresh value"

    def _misshapen(self, shapes: Shapes) -> list[str]:
        lines = []
        cases = self.misshapen
        everywhere = len(cases) > max(FEW, len(shapes) // 4)
        for entry, found, here in cases[: FEW if everywhere else None]:
            names = ", ".join(self._called(name) for name in entry.theirs)
            listed = ", ".join(str(list(shape)) for shape in found)
            expected = list(entry.shape(shapes[entry.ours]))
            joined = " together" if len(found) > 1 else ""
            line = (
                f"{self.source}: {names} is {listed}, but '{entry.ours}' needs {expected}{joined}"
            )
            lines.append(line if everywhere else f"{line}; {self._mend(entry, here, shapes)}")
        if everywhere:
            given = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
            lines.append(
                f"{self.source}: and {len(cases) - FEW} more have other shapes: the weights are of another size than "
                f"model {self.model} ({given}); change config.model to theirs"
            )
        return lines

    def _mend(self, entry: Entry, found: tuple[int, ...] | None, shapes: Shapes) -> str:
        path, wanted = entry.ours, shapes[entry.ours]
        exact = f"^{re.escape(path)}$"
        if found and len(found) == len(wanted):
            differs = [i for i in range(len(found)) if found[i] != wanted[i]]
            table = len(wanted) == 3 and wanted[0] == 1 and differs == [1]
            if table or (len(wanted) == 4 and differs == [2]):
                return f"add (r'{exact}', 'resize')"
            if path == "position/embedding" and differs == [0]:
                return f"set config.model.context={found[0]}, the rows of its position table"
            if path == "embed/embedding" and differs == [0]:
                return (
                    f"take the tokenizer of these weights, which has {found[0]} tokens or fewer "
                    "(config.tokenizer.name='pretrained')"
                )
            if sorted(found) == sorted(wanted) and len(entry.theirs) == 1 and len(found) == 2:
                name = self.renamed.get(entry.theirs[0], entry.theirs[0])
                return f"add (r'^{re.escape(name)}$', 'transpose', (1, 0))"
        return f"add {_skip(path)} to keep the fresh value"

    def _unresizable(self, path: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
        return (
            f"{self.source}: '{path}' can't be resized from {list(found)} to {list(wanted)}: only position tables of "
            "square grids, with a class token in both or in neither, and the input channels of convolutions can; "
            f"add {_skip(path)} to keep the fresh value"
        )

    def _untied(self, name: str, original: str) -> str:
        return (
            f"{self.source}: {self._called(name)} differs from {self._called(original)}, but the model has one array "
            "for both; set config.model.tied=False"
        )

    def _extras(self) -> list[str]:
        """A part of another model in one line, such as a head; else a line for each array."""
        lines, left = [], self.extra
        for pattern, what in self.naming.parts:
            names = [name for name in left if re.search(pattern, name)]
            if names:
                left = [name for name in left if name not in names]
                rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(
                    f"{self.source}: nothing here takes {self._called(names[0])}{rest} of {what}; "
                    f"add (r'{pattern}', 'skip') to leave it out"
                )
        return lines + [self._extra(name) for name in left]

    def _extra(self, name: str) -> str:
        missing = [n for _, n in self.missing]
        exact = f"^{re.escape(self.renamed.get(name, name))}$"
        return (
            f"{self.source}: nothing here takes array {self._called(name)}{nearest(name, missing)}; "
            f"add (r'{exact}', 'skip') to leave it out"
        )


def _skip(path: str) -> str:
    """The rule that skips a path: the whole head where it is of the head, which is what people mean."""
    part = path.partition("/")[0]
    pattern = f"^{part}/" if part in HEADS else f"^{re.escape(path)}$"
    return f"(r'{pattern}', 'skip')"
