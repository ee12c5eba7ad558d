"""Whose arrays are these? By their names."""

import importlib
import pkgutil
import re
from typing import Any

from research.errors import UserError, nearest
from research.transfer import families
from research.transfer.tables import OWN, Arrays, Entry, Naming, Shapes, entries, ignorable

# Of the names expected or found, whichever are fewer: so many must be there.
ENOUGH = 0.5


def namings_of(model: str) -> tuple[Naming, ...]:
    """Returns this project's own naming and those of the model's family."""
    own = (OWN,)
    if model not in {module.name for module in pkgutil.iter_modules(families.__path__)}:
        return own
    return own + importlib.import_module(f"research.transfer.families.{model}").NAMINGS


def named(model: str, name: str) -> Naming:
    """Returns a naming of a model.

    Raises:
      UserError: there is none of that name.
    """
    there = {naming.name: naming for naming in namings_of(model)}
    if name not in there:
        raise UserError(
            f"config.pretrained.naming: model {model} has no naming '{name}'{nearest(name, there)}; "
            f"there are {', '.join(there)}"
        )
    return there[name]


def recognise(
    arrays: Arrays, model: str, options: dict[str, Any], shapes: Shapes, naming: str, source: str
) -> tuple[Naming, dict[str, str]]:
    """Finds the naming whose names the arrays have.

    Args:
      naming: the only one to consider; '' considers all of the model's.
      source: where the arrays come from, for messages.

    Returns:
      The naming, and {name in its table: name found} where the two differ.

    Raises:
      UserError: none fits: one line that says what the arrays are and what was expected.
    """
    candidates = (named(model, naming),) if naming else namings_of(model)
    best, share, renamed = _best(arrays, candidates, options, shapes)
    if share >= ENOUGH:
        return best, renamed
    raise UserError(_foreign(arrays, candidates, model, options, shapes, source))


def _best(arrays, candidates, options, shapes) -> tuple[Naming, float, dict[str, str]]:
    best: tuple[Naming, float, dict[str, str]] = (candidates[0], -1.0, {})
    for naming in candidates:
        table = _table(naming, shapes, options, strict=len(candidates) == 1)
        wanted = {name for entry in table.values() for name in entry.theirs}
        if not wanted:
            continue
        found = {n: a for n, a in arrays.items() if n in wanted or not ignorable(naming, n)}
        renamed: dict[str, str] = {}
        share = _share(wanted, set(found))
        if share < 1 and naming.match:
            renamed = naming.match(found, shapes)
            share = max(share, _share(wanted, set(renamed)) if renamed else 0)
            renamed = {new: old for new, old in renamed.items() if new != old}
        if share > best[1]:
            best = naming, share, renamed
    return best


def _table(naming, shapes, options, *, strict=False) -> dict[str, Entry]:
    """The entries of a naming; none where it has no name for one of the model's arrays."""
    try:
        return entries(naming, shapes, options)
    except UserError:
        if strict:
            raise
        return {}


def _share(wanted: set[str], found: set[str]) -> float:
    return len(wanted & found) / max(min(len(wanted), len(found)), 1)


def _foreign(arrays, candidates, model, options, shapes, source) -> str:
    expected = "; ".join(
        f"{naming.name}: {_some(e.theirs[0] for e in table.values())}"
        for naming in candidates
        if (table := _table(naming, shapes, options))
    )
    wants = f"model {model} expects {len(shapes)} arrays, in one of these namings ({expected})"
    prefix = _prefix(arrays)
    while prefix:
        inner = {name.removeprefix(prefix): array for name, array in arrays.items()}
        if _best(inner, candidates, options, shapes)[1] >= ENOUGH:
            rule = (rf"^{re.escape(prefix)}", "rename", "")
            return f"{source}: every name begins with '{prefix}': add the rule {rule!r} to config.pretrained.rules"
        more = _prefix(inner)
        prefix = prefix + more if more else ""
    if kind := _kind(arrays):
        return f"{source}: these are the {len(arrays)} arrays of {kind} ({_some(arrays)}); {wants}"
    return (
        f"{source}: these {len(arrays)} arrays ({_some(arrays)}) have the names of no known model; {wants}; "
        "rename them by config.pretrained.rules"
    )


def _kind(arrays: Arrays) -> str:
    """Whose arrays they are, of all that any model here knows; '' if none."""
    kinds: list[Naming] = []
    for family in (module.name for module in pkgutil.iter_modules(families.__path__)):
        for naming in importlib.import_module(f"research.transfer.families.{family}").NAMINGS:
            if all(any(re.search(p, name) for name in arrays) for p in naming.signature):
                kinds.append(naming)
            modules = [name.rpartition("/")[0] or name for name in arrays]
            rows = () if callable(naming.rows) else naming.rows
            if all(any(re.fullmatch(row[0], m) for row in rows) for m in modules):
                return f"model {family} of this project"
    # A family's later kinds have what earlier ones have, and more.
    return max(kinds, key=lambda kind: len(kind.signature)).what if kinds else ""


def _some(names) -> str:
    names = list(names)
    # From the middle as well: what comes first is often called the same everywhere.
    some = dict.fromkeys([names[0], names[len(names) // 2]]) if names else {}
    return ", ".join(f"'{name}'" for name in some)


def _prefix(arrays: Arrays) -> str:
    """What every name begins with, up to the first '.' or '/'; '' if there is nothing or only one array."""
    first = re.match(r"[^./]+[./]", next(iter(arrays), ""))
    if first and len(arrays) > 1 and all(name.startswith(first[0]) for name in arrays):
        return first[0]
    return ""
