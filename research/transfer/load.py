"""Pretrained arrays into a model's trees and back: strict, by the tables of research/transfer/families.

    imported = load(arrays, model="resnet", options=options, params=shapes, model_state=state_shapes)
    arrays = dump(params, model_state, model="resnet", options=options, naming="torchvision")

`load` knows shapes only, so it needs no weights of the model's own; what a rule skips comes back as None.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError, UserErrors
from research.transfer import rules as user_rules
from research.transfer.recognise import named, namings_of, recognise
from research.transfer.resize import resized
from research.transfer.strict import Problems
from research.transfer.tables import (
    Arrays,
    Entry,
    Naming,
    Shapes,
    beside,
    entries,
    ignorable,
    written,
)

Tree = Any  # nested dicts of arrays, or of their shapes
WIDE = ("float32", "float64")


class Imported(NamedTuple):
    """What `load` returns. The trees have the given ones' structure, with NumPy leaves of their dtypes."""

    params: Tree  # None in place of a leaf whose fresh value stays
    model_state: Tree
    naming: str  # that the arrays were read by
    skipped: list[str]  # paths of the leaves that are None


def load(
    arrays: Arrays,
    *,
    model: str,
    options: dict[str, Any],
    params: Tree,
    model_state: Tree,
    naming: str = "",
    rules: user_rules.Rules = (),
    source: str = "",
) -> Imported:
    """Reads arrays of another library, or of this project, as a model's parameters and batch statistics.

    Args:
      arrays: name -> array, in the file's order.
      model: a module of research/models.
      options: the model's, as its config has them.
      params: a tree of shapes (arrays or ShapeDtypeStructs).
      model_state: the same, collection -> tree.
      naming: whose names the arrays have, one of `namings(model)`; '' recognises them.
      rules: the user's, see research/transfer/rules.py.
      source: where the arrays come from, for messages.

    Raises:
      UserErrors: rules that are wrong; arrays of another model; a missing, an extra or a misshapen array, or one with
        NaN or infinity in it. All of them are listed at once, each with what was expected and found and the rule that
        would mend it.
    """
    source = source or "the pretrained arrays"
    if lines := user_rules.mistakes(rules):
        raise UserErrors(lines)
    if not arrays:
        raise UserError(f"{source}: holds no arrays; model {model} expects some")
    leaves = _leaves(params, model_state)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    arrays = user_rules.apply(arrays, rules)
    chosen, renamed = recognise(arrays, model, options, shapes, naming, source)
    back = {old: new for new, old in renamed.items()}
    arrays = {back.get(name, name): array for name, array in arrays.items()}
    table = entries(chosen, shapes, options)
    _check_refused(chosen, arrays, model, source)
    used = {name for entry in table.values() for name in entry.theirs}
    left = [name for name in arrays if name not in used and not ignorable(chosen, name)]
    problems = Problems(source, chosen, renamed, model, options)
    left = _without_twins(left, used, chosen, arrays, problems)
    called = {name: renamed.get(name, name) for name in left}  # as the user's file has it
    _check_paths(rules, table, shapes, list(called.values()), problems)
    skipped = [path for path in shapes if _ruled(path, rules, "skip")]

    values: dict[str, np.ndarray | None] = dict.fromkeys(skipped)
    for path, leaf in leaves.items():
        if path not in values:
            value = _value(path, shapes[path], table, arrays, rules, problems)
            if value is not None:
                with np.errstate(over="ignore"):  # told below
                    value = np.asarray(value, leaf.dtype, order="C")
                if not np.isfinite(value).all():
                    problems.infinite.append((table[path], value))
            values[path] = value
    problems.extra = [name for name in left if not _ruled(called[name], rules, "skip")]
    problems.check(shapes)
    return Imported(
        _filled(params, values),
        {key: _filled(tree, values) for key, tree in model_state.items()},
        chosen.name,
        skipped,
    )


def dump(
    params: Tree, model_state: Tree, *, model: str, options: dict[str, Any], naming: str
) -> Arrays:
    """Returns a model's arrays as another library calls and lays them out: the inverse of `load`.

    Args:
      params, model_state: trees of arrays, on the host or on devices.
      naming: one of `namings(model)`.

    Returns:
      Every array that the library's strict loading asks for; counters of batches, which nothing here keeps, are 0. What
      the naming has no array for (the head, of a bare backbone) is left out.

    Raises:
      UserError: no such naming, or a parameter that has no name in it.
    """
    chosen = named(model, naming)
    leaves = _leaves(params, model_state)
    table = entries(chosen, {path: leaf.shape for path, leaf in leaves.items()}, options)
    arrays = written(table, {path: np.asarray(leaves[path]) for path in table})
    return arrays | beside(chosen, arrays)


def namings(model: str) -> tuple[str, ...]:
    """Returns the names of the namings that a model's weights may come and go in; 'own' is this project's."""
    return tuple(naming.name for naming in namings_of(model))


def _leaves(params: Tree, model_state: Tree) -> dict[str, Any]:
    """'layer1_0/bn1/scale' -> leaf, parameters first; collections of the state are not in the path."""
    leaves: dict[str, Any] = {}
    for tree in (params, *model_state.values()):
        found = dict(_walk(tree, ""))
        if both := leaves.keys() & found.keys():
            raise ValueError(f"two collections hold {', '.join(sorted(both))}")
        leaves |= found
    return leaves


def _walk(tree: Tree, prefix: str):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def _filled(tree: Tree, values: dict[str, Any], prefix: str = "") -> Tree:
    return {
        key: _filled(value, values, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else values[prefix + key]
        for key, value in tree.items()
    }


def _value(
    path: str,
    shape: tuple[int, ...],
    table: dict[str, Entry],
    arrays: Arrays,
    rules: user_rules.Rules,
    problems: Problems,
) -> np.ndarray | None:
    """Our array; or None, and a problem noted."""
    entry = table.get(path)
    if entry is None:
        problems.absent.append(path)
        return None
    if missing := [name for name in entry.theirs if name not in arrays]:
        problems.missing.append((entry, missing[0]))
        return None
    narrow = [name for name in entry.theirs if arrays[name].dtype.name not in WIDE]
    if narrow:
        problems.narrow += [(name, arrays[name].dtype.name) for name in narrow]
        return None
    try:
        value = entry.read(arrays)
    except ValueError:  # parts that can't be joined, or too few dimensions
        problems.misshapen.append((entry, [arrays[name].shape for name in entry.theirs], None))
        return None
    if value.shape != shape and _ruled(path, rules, "resize"):
        made = resized(value, shape)
        if made is None:
            problems.unresizable.append((path, value.shape, shape))
            return None
        value = made
    if value.shape != shape:
        found = [arrays[name].shape for name in entry.theirs]
        problems.misshapen.append((entry, found, value.shape))
        return None
    return value


def _ruled(name: str, rules: user_rules.Rules, action: str) -> bool:
    return any(rule[1] == action and re.search(rule[0], name) for rule in rules)


def _check_paths(
    rules: user_rules.Rules,
    table: dict[str, Entry],
    shapes: Shapes,
    left: list[str],
    problems: Problems,
) -> None:
    """Every 'skip' and 'resize' must match something."""
    for number, (pattern, action, *_) in enumerate(rules):
        if action not in user_rules.ON_PATHS:
            continue
        names = [*shapes, *left] if action == "skip" else list(shapes)
        if any(re.search(pattern, name) for name in names):
            continue
        line = (
            f"{user_rules.where(number)} {user_rules.unmatched(pattern, shapes, 'parameter paths')}"
        )
        theirs = [(n, e.ours) for e in table.values() for n in e.theirs if re.search(pattern, n)]
        if theirs:
            line += (
                f"; '{theirs[0][0]}' is '{theirs[0][1]}' here, and that is what {action} looks at"
            )
        problems.rules.append(line)


def _without_twins(
    left: list[str], used: set[str], naming: Naming, arrays: Arrays, problems: Problems
) -> list[str]:
    """Leaves out what only repeats an array that is taken, and notes what should but doesn't."""
    for name, original in naming.tied:
        if name in left and original in used and original in arrays:
            if not np.array_equal(arrays[name], arrays[original]):
                problems.untied.append((name, original))
            left = [n for n in left if n != name]
    return left


def _check_refused(naming: Naming, arrays: Arrays, model: str, source: str) -> None:
    for pattern, why in naming.refused:
        for name in arrays:
            if re.search(pattern, name):
                raise UserError(f"{source}: holds '{name}', so it is of a model that {why}")
