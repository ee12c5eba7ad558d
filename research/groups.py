"""Which parameters are trained, how fast and from when: ordered patterns, the first match decides.

    config.optimizer.groups = (
        (r"head/", dict(lr=1.0)),
        (r"layer4_", dict(lr=0.1, unfreeze_at="30%")),
        (r".*", None),  # frozen
    )
    config.optimizer.groups = layerwise(decay=0.8)  # all layers, the lower the slower
    config.optimizer.groups = probe()  # the head alone

A pattern is matched from the start of a parameter's path, as `re.match` does. Options of a group: `lr`, a factor of the
learning rate; `layerwise`, another one for each layer between a parameter's and the top; `unfreeze_at`, the duration
after which it begins to be trained, frozen until then. `config.optimizer.groups = ()` trains everything.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from research.errors import UserError, UserErrors, nearest

OPTIONS = {"lr": 1.0, "layerwise": 1.0, "unfreeze_at": "steps=0"}
ALL = ((r".*", ()),)
_KEY = "config.optimizer.groups"


class Treatment(NamedTuple):
    """What becomes of a parameter."""

    group: str  # the pattern that decided
    lr: float  # factor of the learning rate
    start: int | None  # the step at which it begins to be trained; None: frozen


def layerwise(decay: float, lr: float = 1.0) -> tuple:
    """Returns groups that train everything, each layer `decay` times as fast as the one above (Clark et al. 2020)."""
    return ((r".*", {"lr": lr, "layerwise": decay}),)


def probe(head: str = r"head/") -> tuple:
    """Returns groups that train the head and freeze the rest."""
    return ((head, {}), (r".*", None))


def treatments(
    groups: Iterable[Any],
    paths: Sequence[str],
    layers: Sequence[str],
    to_steps: Callable[[str], int],
    total_steps: int | None = None,
) -> dict[str, Treatment]:
    """Returns what becomes of each parameter, in the order of `paths`.

    Args:
      groups: pairs of a pattern and its options (None: frozen), as in a config; () trains everything.
      paths: of all parameters.
      layers: patterns of paths from input to output, for `layerwise`; see `depths`.
      to_steps: turns a duration into steps.
      total_steps: of the run, if it is known.

    Raises:
      UserErrors: everything that is wrong with the groups: no pair, no regular expression, unknown options, values out
        of range, a pattern that decides over no parameter, a parameter that no pattern matches, nothing trained.
    """
    errors: list[str] = []
    parsed = [_parse(group, errors) for group in groups or ALL]
    if errors:
        raise UserErrors(errors)
    found: dict[str, Treatment] = {}
    decided = [0] * len(parsed)
    depth = depths(paths, layers)
    for path in paths:
        for i, (pattern, options) in enumerate(parsed):
            if not re.match(pattern, path):
                continue
            decided[i] += 1
            if options is None:
                found[path] = Treatment(pattern, 0.0, None)
            else:
                above = max(depth.values()) - depth[path]
                factor = options["lr"] * options["layerwise"] ** above
                found[path] = Treatment(pattern, factor, to_steps(options["unfreeze_at"]))
            break
    lost = [path for path in paths if path not in found]
    if lost:
        errors.append(
            f"{_KEY}: no pattern matches {_some(lost)}; end with (r'.*', None) to freeze the rest, "
            "or with (r'.*', dict()) to train it"
        )
    for count, (pattern, _) in zip(decided, parsed, strict=True):
        if not count:
            errors.append(_idle(pattern, paths))
    if not errors and not any(t.start == 0 for t in found.values()):
        never = all(t.start is None for t in found.values())
        what = "everything is frozen" if never else "nothing is trained from the first step on"
        errors.append(f"{_KEY}: {what}; give a group such as (r'head/', dict(lr=1.0))")
    late = [t.group for t in found.values() if total_steps and (t.start or 0) >= total_steps]
    for pattern in dict.fromkeys(late):
        errors.append(
            f"{_KEY}: {pattern!r} would begin to be trained after the last of {total_steps:,} steps"
        )
    if errors:
        raise UserErrors(errors)
    return found


def depths(paths: Sequence[str], layers: Sequence[str]) -> dict[str, int]:
    """Returns the layer of each parameter, counted from the input.

    A layer is what matches the same pattern of `layers` with the same numbers in its groups; paths that match none
    count to the first layer.
    """
    places: dict[str, tuple[int, ...]] = {}
    for path in paths:
        for i, pattern in enumerate(layers):
            if match := re.match(pattern, path):
                places[path] = (i, *(int(number) for number in match.groups() if number))
                break
        else:
            places[path] = (0,)
    order = {place: i for i, place in enumerate(sorted(set(places.values())))}
    return {path: order[place] for path, place in places.items()}


def unfreezing(groups: Iterable[Any]) -> list[str]:
    """Returns the durations after which groups begin to be trained; what is wrong with groups `treatments` tells."""
    parsed = [_parse(group, []) for group in groups]
    return [options["unfreeze_at"] for _, options in parsed if options]


def starts(table: dict[str, Treatment]) -> list[int]:
    """Returns the steps at which something begins to be trained, sorted."""
    return sorted({t.start for t in table.values() if t.start is not None})


def _parse(group: Any, errors: list[str]) -> tuple[str, dict[str, Any] | None]:
    """Returns (pattern, options with their defaults, or None), or puts lines into `errors`."""
    bad = ("", None)
    if not isinstance(group, tuple | list) or len(group) != 2 or not isinstance(group[0], str):
        errors.append(f"{_KEY}: {group!r} is no pair of a pattern and its options")
        return bad
    pattern, given = group
    try:
        re.compile(pattern)
    except re.error as error:
        errors.append(f"{_KEY}: {pattern!r} is no regular expression: {error}")
        return bad
    if given is None:
        return pattern, None
    try:
        options = dict(given)
    except (TypeError, ValueError):
        errors.append(f"{_KEY}: {pattern!r}: {given!r} is neither dict(...) nor None")
        return bad
    for key, value in options.items():
        if key not in OPTIONS:
            errors.append(
                f"{_KEY}: {pattern!r}: there is no option {key!r}{nearest(str(key), OPTIONS)}: {', '.join(OPTIONS)}"
            )
        elif key != "unfreeze_at":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                errors.append(f"{_KEY}: {pattern!r}: {key} is {value!r}, but must be more than 0")
        else:
            from research.durations import parse_duration

            try:
                parse_duration(value)
            except UserError as error:
                errors.append(f"{_KEY}: {pattern!r}: unfreeze_at: {error}")
    return pattern, OPTIONS | options


def _idle(pattern: str, paths: Sequence[str]) -> str:
    taken = any(re.match(pattern, path) for path in paths)
    if taken:
        return f"{_KEY}: {pattern!r} matches only parameters that patterns before it match; move it up or leave it out"
    if any(re.search(pattern, path) for path in paths):
        return f"{_KEY}: {pattern!r} matches no parameter from its start; write {'.*' + pattern!r} to find it anywhere"
    plain = re.sub(r"[\\^$.*+?()|\[\]]", "", pattern)
    return (
        f"{_KEY}: {pattern!r} matches no parameter{nearest(plain, paths)}; there are {_some(paths)}"
    )


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
