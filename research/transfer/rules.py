r"""What a user says about names, in order: config.pretrained.rules.

    (pattern, "rename", new)      the arrays' names, by re.sub: (r"^module\.", "rename", "")
    (pattern, "transpose", axes)  as np.transpose: (r"^fc\.weight$", "transpose", (1, 0))
    (pattern, "reshape", shape)   as np.reshape
    (pattern, "stack", new, axis) all that match, in natural order, as one array of another name
    (pattern, "cast")             widens float16 and bfloat16 (and rounds float64) to float32
    (pattern, "skip")             parameters here keep their fresh values; arrays that nothing takes are left out
    (pattern, "resize")           position tables and first convolutions, see research/transfer/resize.py

The first five look at the arrays as they came, each at what the one before left. Then the names of the model's family
are read. `skip` and `resize` look at parameters' paths here. Patterns are searched for, so anchor them with ^ and $.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from research.errors import UserErrors, nearest
from research.transfer.tables import Arrays, natural

# What follows pattern and action: (in words, test).
_INTEGERS = ("a tuple of integers", lambda v: _all_integers(v))
_TEXT = ("a string", lambda v: isinstance(v, str))
_AXIS = ("an integer", lambda v: type(v) is int)
ACTIONS: dict[str, tuple[tuple[str, Callable[[Any], bool]], ...]] = {
    "rename": (_TEXT,),
    "transpose": (_INTEGERS,),
    "reshape": (_INTEGERS,),
    "stack": (_TEXT, _AXIS),
    "cast": (),
    "skip": (),
    "resize": (),
}
ON_PATHS = ("skip", "resize")
Rules = Sequence[Sequence[Any]]


def mistakes(rules: Rules) -> list[str]:
    """Returns one line for each rule that can't be: wrong form, unknown action, wrong arguments, bad regex."""
    lines = []
    for number, rule in enumerate(rules):
        if problem := _mistake(rule):
            lines.append(f"{where(number)} {problem}")
    return lines


def apply(arrays: Arrays, rules: Rules) -> Arrays:
    """Applies the rules about the arrays as they came.

    Raises:
      UserErrors: a rule matches nothing, gives a name twice or can't be done with an array it matches.
    """
    lines: list[str] = []
    for number, (pattern, action, *arguments) in enumerate(rules):
        if action in ON_PATHS:
            continue
        matched = [name for name in arrays if re.search(pattern, name)]
        if not matched:
            lines.append(f"{where(number)} {unmatched(pattern, arrays, 'arrays')}")
            continue
        try:
            arrays = _DOES[action](arrays, matched, pattern, *arguments)
        except _CannotBe as error:
            lines.append(f"{where(number)} ({pattern!r}, {action!r}): {error}")
    if lines:
        raise UserErrors(lines)
    return arrays


def where(number: int) -> str:
    """Returns how a message calls a rule."""
    return f"config.pretrained.rules[{number}]"


def unmatched(pattern: str, names: Any, what: str) -> str:
    """Returns what to say of a pattern that matches none of the names."""
    plain = re.sub(r"[\\^$()?*+|]", "", pattern)
    ends = {name[: len(plain)]: name for name in names} | {name: name for name in names}
    near = nearest(plain, ends)
    return f"pattern {pattern!r} matches none of the {len(list(names))} {what}{near}"


class _CannotBe(Exception):
    """Why a rule can't be carried out."""


def _mistake(rule: Any) -> str:
    form = "must be (pattern, action, ...), such as (r'^head/', 'skip')"
    if not isinstance(rule, tuple | list) or len(rule) < 2 or not isinstance(rule[0], str):
        return f"is {rule!r}, but {form}"
    pattern, action, *arguments = rule
    if action not in ACTIONS:
        near = nearest(action, ACTIONS) if isinstance(action, str) else ""
        return f"{action!r}: no such action{near}; there are {', '.join(ACTIONS)}"
    wanted = ACTIONS[action]
    if len(arguments) != len(wanted) or not all(
        test(v) for (_, test), v in zip(wanted, arguments, strict=True)
    ):
        words = " and ".join(words for words, _ in wanted) or "nothing"
        return f"{action!r} takes {words} after it, not {tuple(arguments)!r}"
    try:
        compiled = re.compile(pattern)
        if action == "rename":  # a group that is not there is found only where something matches
            groups = compiled.groups
            used = [int(n) for n in re.findall(r"\\(?:g<)?(\d+)", arguments[0])]
            if any(n > groups for n in used):
                return f"the replacement {arguments[0]!r} uses a group that {pattern!r} lacks"
    except re.error as error:
        return f"pattern {pattern!r} is no regular expression: {error}"
    return ""


def _all_integers(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(v) is int for v in value)


def _rename(arrays: Arrays, matched: list[str], pattern: str, new: str) -> Arrays:
    renamed: Arrays = {}
    came: dict[str, str] = {}
    for name, array in arrays.items():
        try:
            after = re.sub(pattern, new, name) if name in matched else name
        except (re.error, IndexError) as error:
            raise _CannotBe(f"the replacement {new!r} is wrong: {error}") from error
        if after in renamed:
            raise _CannotBe(f"'{came[after]}' and '{name}' would both be '{after}'")
        renamed[after], came[after] = array, name
    return renamed


def _transpose(arrays: Arrays, matched: list[str], pattern: str, axes: Sequence[int]) -> Arrays:
    for name in matched:
        if sorted(axes) != list(range(arrays[name].ndim)):
            found = list(arrays[name].shape)
            raise _CannotBe(f"{tuple(axes)} doesn't name each axis of '{name}' {found} once")
    return {n: a.transpose(axes) if n in matched else a for n, a in arrays.items()}


def _reshape(arrays: Arrays, matched: list[str], pattern: str, shape: Sequence[int]) -> Arrays:
    changed = dict(arrays)
    for name in matched:
        try:
            changed[name] = arrays[name].reshape(shape)
        except ValueError as error:
            found = list(arrays[name].shape)
            raise _CannotBe(f"'{name}' {found} can't become {list(shape)}") from error
    return changed


def _stack(arrays: Arrays, matched: list[str], pattern: str, new: str, axis: int) -> Arrays:
    shapes = {arrays[name].shape for name in matched}
    if len(shapes) > 1:
        found = ", ".join(f"'{name}' {list(arrays[name].shape)}" for name in matched[:3])
        raise _CannotBe(f"the arrays differ in shape: {found}")
    rest = {name: array for name, array in arrays.items() if name not in matched}
    if new in rest:
        raise _CannotBe(f"there is an array '{new}' already")
    dims = len(shapes.pop()) + 1
    if not -dims <= axis < dims:
        raise _CannotBe(f"axis {axis} is none of the {dims} of what is stacked")
    return rest | {new: np.stack([arrays[name] for name in sorted(matched, key=natural)], axis)}


def _cast(arrays: Arrays, matched: list[str], pattern: str) -> Arrays:
    return {
        n: a.astype(np.float32) if n in matched and "float" in a.dtype.name else a
        for n, a in arrays.items()
    }


_DOES: dict[str, Callable[..., Arrays]] = {
    "rename": _rename,
    "transpose": _transpose,
    "reshape": _reshape,
    "stack": _stack,
    "cast": _cast,
}
