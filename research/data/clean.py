"""Cleaning: what was found in the examples, what the config's policies do about it, and the splits that come out.

Examples are pictures or texts; `Words` says what they are called and what "the same" means. Kinds of finding, each
with a policy 'error', 'drop' or 'keep' in data.clean:

    unreadable, shape, nan   the builder could not read it (cannot be kept); of texts only unreadable: not UTF-8
    blank                    every pixel is the same; a text without a character to see
    long                     a text of more than data.text.longest characters
    duplicate                the same as another example of its split; the first by key stays
    cross_split              the same as an example of a more precious split: a test, then validation, then train
    near_duplicate           nearly the same as another example of its split
    near_cross_split         nearly the same as one of another split; goes by cross_split where near_duplicate is 'drop'
    label_conflict           the same as an example with another label; 'drop' leaves out all that are the same
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from research.data.duplicates import Findings, exact_groups
from research.data.source import PARTS, in_order
from research.data.words import PICTURES, Words

VERSION = "3"
LISTED = 200  # findings of a kind that the report lists
_SHOWN = 10  # findings of a kind that an error lists
_MEND = "mend it, or config.data.clean.{}=drop leaves it out"


class Pool(NamedTuple):
    """All examples of a source, by what is known of them."""

    place: str
    keys: np.ndarray  # str [N]
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]  # ('',) where there are no classes
    parts: dict[str, np.ndarray]  # the source's own splits -> indices
    findings: Findings
    problems: list[dict[str, Any]]  # kind, key, detail, label of what could not be read
    groups: np.ndarray | None = None  # str [N], '' for none; None for none at all
    words: Words = PICTURES
    pinned: np.ndarray | None = None  # bool [N] of train and never cut from it; None for none
    long: np.ndarray | None = None  # bool [N] longer than wanted; None where that means nothing


class Judged(NamedTuple):
    """The verdict."""

    splits: dict[str, np.ndarray]  # split -> indices, sorted
    found: dict[str, dict[str, Any]]  # kind -> policy, total, dropped, listed
    errors: list[str]  # a line for each finding whose policy is 'error'


class _Found(NamedTuple):
    """K findings of one kind."""

    numbers: np.ndarray  # int64 [K] of examples
    partners: np.ndarray  # int64 [K] of the examples that they are compared with; -1 for none
    distances: np.ndarray  # float32 [K], 0 for what is equal


Cut = Callable[[dict[str, np.ndarray]], tuple[dict[str, np.ndarray], list[str]]]


def judge(pool: Pool, policy: dict[str, str], cut: Cut) -> Judged:
    """Applies the policies and cuts the splits.

    Args:
      policy: kind -> error, drop or keep.
      cut: the source's parts as cleaned so far -> splits, and what is wrong with them.
    """
    case = _Case(pool, policy)
    case.note_problems()
    case.note("blank", _found([(i, -1) for i in np.flatnonzero(pool.findings.blank)]))
    if pool.long is not None:
        case.note("long", _found([(i, -1) for i in np.flatnonzero(pool.long & case.alive)]))
    groups = exact_groups(pool.findings.digests)
    case.note_conflicts(groups)
    if policy["duplicate"] == "drop":  # before the cut, so that fractions are of what is there
        case.note("duplicate", case.duplicates(groups))
    splits, errors = cut(
        {part: indices[case.alive[indices]] for part, indices in pool.parts.items()}
    )
    case.place(splits)
    if policy["duplicate"] != "drop":
        case.note("duplicate", case.duplicates(groups))
    case.note("cross_split", case.crossings(groups))
    setting = "cross_split" if policy["near_duplicate"] == "drop" else "near_duplicate"
    case.note("near_cross_split", case.near(crossing=True), setting)
    case.note("near_duplicate", case.near(crossing=False))
    splits = {name: indices[case.alive[indices]] for name, indices in splits.items()}
    return Judged({k: v for k, v in splits.items() if len(v)}, case.render(), case.errors + errors)


def _found(pairs: list[tuple[Any, Any]]) -> _Found:
    """Findings from (number, partner)."""
    numbers, partners = np.array(pairs, np.int64).reshape(-1, 2).T
    return _Found(numbers, partners, np.zeros(len(pairs), np.float32))


class _Case:
    """The findings so far, who is still alive, and in which split each example is."""

    def __init__(self, pool: Pool, policy: dict[str, str]):
        self._pool, self._policy = pool, policy
        self.alive = np.ones(len(pool.labels), bool)
        self.errors: list[str] = []
        self._notes: dict[str, tuple[str, _Found, set[int]]] = {}
        # Each example's split as a number of `_names`: the higher, the more precious, but no test more than another.
        self._names = in_order({*PARTS, *pool.parts})
        self._split = np.zeros(len(pool.labels), np.int16)
        self._by_key = _positions(np.argsort(pool.keys, kind="stable"))
        self.place(pool.parts)

    def place(self, splits: dict[str, np.ndarray]) -> None:
        for name, numbers in splits.items():
            self._split[numbers] = self._names.index(name)
        self._worth = np.minimum(self._split, PARTS.index("test"))
        # int64 [N]; the lower, the more precious
        self._rank = _positions(np.lexsort((self._by_key, -self._split)))

    def note(
        self, kind: str, found: _Found, setting: str = "", losers: set[int] | None = None
    ) -> None:
        """Writes findings down and does what the policy says, which is that of `setting`, or else of the kind.

        Args:
          losers: who goes where the policy is 'drop'; None is the less precious one of each finding.
        """
        setting = setting or kind
        policy = self._policy.get(setting, "keep")
        losers = (self._losers(found) if losers is None else losers) if policy == "drop" else set()
        self._notes[kind] = (policy, found, losers)
        self.alive[list(losers)] = False
        if policy == "error":
            shown = range(min(len(found.numbers), _SHOWN))
            self.errors += [f"{self._line(kind, found, k)}; {_MEND.format(setting)}" for k in shown]
            self.errors += _more(len(found.numbers), self._pool.place, kind)

    def note_conflicts(self, groups: list[np.ndarray]) -> None:
        """Equal examples with several labels, each with the first if that has another; nobody knows who is right."""
        labels = self._pool.labels
        torn = [g for g in self._living(groups) if (labels[g] != labels[g[0]]).any()]
        pairs = [(i, g[0]) for g in torn for i in g[1:] if labels[i] != labels[g[0]]]
        self.note("label_conflict", _found(pairs), losers={int(i) for g in torn for i in g})

    def note_problems(self) -> None:
        """Those that could not be read are no longer there: they can only be reported or refused."""
        for kind in self._pool.words.problems:
            details = [p["detail"] for p in self._pool.problems if p["kind"] == kind]
            if self._policy.get(kind) == "error":
                self.errors += [f"{detail}; " + _MEND.format(kind) for detail in details[:_SHOWN]]
                self.errors += _more(len(details), self._pool.place, kind)

    def duplicates(self, groups: list[np.ndarray]) -> _Found:
        """Equal examples of one split, each with the first of them."""
        pairs = []
        for group in self._living(groups):
            for split in np.unique(self._split[group]):
                first, *others = group[self._split[group] == split]
                pairs += [(i, first) for i in others]
        return _found(pairs)

    def crossings(self, groups: list[np.ndarray]) -> _Found:
        """Equal examples of several splits, each with the first of the most precious split."""
        living = self._living(groups)
        worth = self._worth
        return _found([(i, g[0]) for g in living for i in g if worth[i] < worth[g[0]]])

    def near(self, crossing: bool) -> _Found:
        """Near duplicates, the less precious (or later) one first; the nearest pairs first."""
        pairs, distances = self._pool.findings.pairs, self._pool.findings.distances
        kind = self._worth if crossing else self._split
        across = kind[pairs[:, 0]] != kind[pairs[:, 1]]
        chosen = self.alive[pairs].all(1) & (across == crossing)
        pairs, distances = pairs[chosen], distances[chosen]
        ranks = self._rank[pairs]
        loser = ranks.argmax(1)
        rows = np.arange(len(pairs))
        order = np.lexsort((ranks.max(1), distances))
        return _Found(pairs[rows, loser][order], pairs[rows, 1 - loser][order], distances[order])

    def render(self) -> dict[str, dict[str, Any]]:
        found = {}
        for kind in self._pool.words.problems:
            mine = [p for p in self._pool.problems if p["kind"] == kind]
            listed = [
                {"key": p["key"], "detail": p["detail"], "action": "dropped"} for p in mine[:LISTED]
            ]
            found[kind] = {
                "policy": self._policy.get(kind, "drop"),
                "total": len(mine),
                "dropped": len(mine),
                "listed": listed,
            }
        for kind, (policy, notes, losers) in self._notes.items():
            total = len(notes.numbers)
            listed = [self._entry(notes, k, losers) for k in range(min(total, LISTED))]
            found[kind] = {
                "policy": policy,
                "total": total,
                "dropped": len(losers),
                "listed": listed,
            }
        return found

    def _living(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """What is left of each group, the most precious first."""
        living = [group[self.alive[group]] for group in groups]
        return [group[np.argsort(self._rank[group])] for group in living if len(group) > 1]

    def _losers(self, found: _Found) -> set[int]:
        """Who goes, so that nobody goes on account of a partner who is gone."""
        gone: set[int] = set()
        order = np.argsort(self._rank[found.numbers], kind="stable")
        pairs = zip(found.numbers[order].tolist(), found.partners[order].tolist(), strict=True)
        for number, partner in pairs:
            if partner not in gone:
                gone.add(number)
        return gone

    def _describe(self, i: int) -> dict[str, str]:
        label = self._pool.class_names[self._pool.labels[i]]
        said = {"key": str(self._pool.keys[i]), "split": self._names[self._split[i]]}
        return said | {"label": label} if label else said

    def _entry(self, found: _Found, k: int, losers: set[int]) -> dict[str, Any]:
        entry: dict[str, Any] = self._describe(found.numbers[k])
        if found.partners[k] >= 0:
            partner = self._describe(found.partners[k])
            entry |= {f"partner_{name}": value for name, value in partner.items()}
        if found.distances[k]:
            entry["distance"] = round(float(found.distances[k]), 4)
        return entry | {"action": "dropped" if int(found.numbers[k]) in losers else "kept"}

    def _line(self, kind: str, found: _Found, k: int) -> str:
        whom = [i for i in (found.numbers[k], found.partners[k]) if i >= 0]
        first, *rest = [self._named(i) for i in whom]
        return " ".join([f"{self._pool.place}: {first}", self._pool.words.kinds[kind], *rest])

    def _named(self, i: int) -> str:
        said = self._describe(i)
        label = f", class {said['label']}" if "label" in said else ""
        return f"{said['key']} ({said['split']}{label})"


def _positions(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation."""
    positions = np.empty(len(order), np.int64)
    positions[order] = np.arange(len(order))
    return positions


def _more(total: int, place: str, kind: str) -> list[str]:
    return [f"{place}: {total - _SHOWN} more of kind '{kind}'"] if total > _SHOWN else []


def class_counts(
    splits: dict[str, np.ndarray], labels: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Returns split -> class name -> how many; nothing where the only class is ''."""
    if names == ("",):
        return {}
    counts = {split: Counter(labels[indices].tolist()) for split, indices in splits.items()}
    return {
        split: {name: count[c] for c, name in enumerate(names)} for split, count in counts.items()
    }
