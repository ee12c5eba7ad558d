"""The texts of a run: found, cleaned and split once, then only mapped into memory.

    store = prepare(config.data, labelled=True)
    [store.texts[i] for i in store.splits["train"][:10]]

The folder SOURCE-<hash> of the cache (see ../prepared.py) holds the texts as they are kept, in one Unicode form
and without control characters, their digests and near duplicates. Below it lie the splits.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.data import clean, prepared
from research.data.duplicates import Findings
from research.data.source import PARTS_WORDS, Progress, in_order, is_part
from research.data.text import duplicates, texts
from research.data.text.clean import Mended, lone_surrogate, mend, mend_chat, shown
from research.data.text.source import TextExample, TextOpened, TextProblem, TextSource
from research.data.text.texts import Texts, chat_to_text, learnt, spoken
from research.data.words import CHATS, TEXTS
from research.errors import UserError, UserErrors, nearest

_FORMAT = "3"  # of the folders' content
_LISTED = 10  # mistakes that an error lists
_QUANTILES = {"min": 0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1}


class TextStore(NamedTuple):
    """N texts and what is known of them."""

    texts: Texts  # N of them, memory-mapped; what was dropped is there too, but in no split
    chat: bool  # each text is the JSON of a list of {"role", "content"}, the assistant's the last
    labels: np.ndarray  # int32 [N]; 0 where there are no classes
    certainty: np.ndarray  # float32 [N]: the odds that a label is right
    keys: np.ndarray  # str [N] relative path, or 'train/0000017'
    class_names: tuple[str, ...]  # () where there are no classes
    splits: dict[
        str, np.ndarray
    ]  # 'train', 'validation', 'test', 'test_NAME' -> int64 indices into texts, sorted
    fingerprints: dict[str, str]  # 'data' and each split -> sha256
    report: dict[str, Any]  # what data_report.json holds
    folder: (
        Path  # of the splits, in the cache: what is made of these very texts may be kept below it
    )


def prepare(data, *, labelled: bool) -> TextStore:
    """Returns the texts that `config.data` describes; the second call maps what the first one built.

    Args:
      labelled: whether each text must have a class. If not, classes are not looked at, and splits are not stratified.

    Raises:
      UserError: a mistake in the config or in the user's files, or several of them.
    """
    source, options = prepared.locate(data, "locate_text")
    form = data.text.normalise
    # What mends the texts and what finds those that are nearly the same: other versions find other things.
    made_by = [unicodedata.unidata_version, metadata.version("datasketch")]
    read = [source.name, source.version, source.fingerprint, form, labelled, options]
    state = [_FORMAT, *made_by, *read]
    folder = prepared.source_folder(
        data, source, state, lambda temporary: _write_source(temporary, source, form, labelled)
    )
    with prepared.reading(folder):
        meta = json.loads((folder / "meta.json").read_text())
        with np.load(folder / "arrays.npz") as saved:
            arrays = dict(saved)
        kept = texts.load(folder)
    pool = _pool(source, meta, arrays, data.text.longest)
    longest = {"longest": data.text.longest}
    cut = prepared.splits_folder(
        folder, data, longest, lambda temporary: _write_splits(temporary, data, pool, meta, arrays)
    )
    with prepared.reading(cut):
        report = json.loads((cut / "report.json").read_text())
        with np.load(cut / "splits.npz") as saved:
            splits = dict(saved)
    names, prints = tuple(meta["class_names"]), report["fingerprints"]
    chat, keys, certainty = meta["chat"], pool.keys, arrays["certainty"]
    return TextStore(kept, chat, pool.labels, certainty, keys, names, splits, prints, report, cut)


def _pool(
    source: TextSource, meta: dict[str, Any], arrays: dict[str, np.ndarray], longest: int
) -> clean.Pool:
    parts = {name: np.flatnonzero(arrays["part"] == i) for i, name in enumerate(meta["parts"])}
    return clean.Pool(
        source.place,
        arrays["keys"],
        arrays["labels"],
        tuple(meta["class_names"]) or ("",),
        parts,
        Findings(*(arrays[name] for name in Findings._fields)),
        meta["problems"],
        arrays["groups"],
        CHATS if meta["chat"] else TEXTS,
        arrays["pinned"],
        arrays["characters"] > longest,
    )


class _Reading:
    """What has been read of a source so far; iterating over `kept` reads it and fills the rest."""

    def __init__(self, source: TextSource, opened: TextOpened, form: str):
        self._source, self._opened, self._form = source, opened, form
        self.examples: list[TextExample] = []  # without their texts
        self.characters: list[int] = []
        self.problems: list[TextProblem] = []
        self.chat: bool | None = None
        self.mended: dict[str, list[dict[str, str]]] = {"normalised": [], "control": []}
        self.totals = {"normalised": 0, "control": 0}

    def kept(self) -> Iterator[str]:
        progress = Progress(f"reading {self._source.name}", self._opened.total, "texts")
        for item in self._opened.read():
            progress.step()
            if isinstance(item, TextProblem):
                self.problems.append(item)
                continue
            text = chat_to_text(item.text) if isinstance(item.text, list) else item.text
            if broken := lone_surrogate(text):
                detail = f"{self._source.place}: {item.key} holds {broken}"
                self.problems.append(TextProblem(item.key, detail, item.label, split=item.split))
                continue
            yield self._mend(item)
        progress.close()

    def _mend(self, item: TextExample) -> str:
        chat = isinstance(item.text, list)
        if self.chat not in (None, chat):
            raise UserError(
                f"{self._source.place}: {item.key}: some are chats and some plain texts; keep them apart"
            )
        self.chat = chat
        if isinstance(item.text, list):
            messages, done = mend_chat(item.text, self._form)
            text, length = chat_to_text(messages), sum(len(m["content"]) for m in messages)
        else:
            done = mend(item.text, self._form)
            text, length = done.text, len(done.text)
        self._note(item, done)
        self.examples.append(item._replace(text=""))
        self.characters.append(length)
        return text

    def _note(self, item: TextExample, done: Mended) -> None:
        found = {"normalised": f"brought into {self._form}" if done.normalised else ""}
        found["control"] = f"{shown(done.controls)} taken out" if done.controls else ""
        for kind, detail in found.items():
            self.totals[kind] += bool(detail)
            if detail and len(self.mended[kind]) < clean.LISTED:
                self.mended[kind].append({"key": item.key, "detail": detail, "action": "mended"})


def _write_source(folder: Path, source: TextSource, form: str, labelled: bool) -> None:
    opened = source.open(labelled)
    reading = _Reading(source, opened, form)
    texts.write(folder, reading.kept())
    examples = reading.examples
    _check(source.place, reading)
    names = _class_names(source.place, reading, opened.class_names) if labelled else ()
    numbers = {name: i for i, name in enumerate(names)}
    parts = in_order({example.split for example in examples})
    arrays: dict[str, Any] = {
        "labels": np.array([numbers.get(e.label or "", 0) for e in examples], np.int32),
        "keys": np.array([e.key for e in examples]),
        "groups": np.array([e.group for e in examples]),
        "pinned": np.array([e.pinned for e in examples], bool),
        "certainty": np.array([e.certainty for e in examples], np.float32),
        "part": np.array([parts.index(e.split) for e in examples], np.int16),
        "characters": np.array(reading.characters, np.int64),
    }
    chat = bool(reading.chat)
    found, crowded = duplicates.find(
        texts.load(folder), partial(spoken, chat=chat), partial(learnt, chat=chat)
    )
    meta = {
        "class_names": names,
        "chat": chat,
        "parts": parts,
        "crowded": crowded,
        "problems": [
            p._asdict() | {"label": numbers.get(p.label or "", -1)} for p in reading.problems
        ],
        "mended": {
            kind: {"policy": "mend", "total": total, "dropped": 0, "listed": reading.mended[kind]}
            for kind, total in reading.totals.items()
        },
    }
    np.savez(folder / "arrays.npz", **arrays, **found._asdict())
    (folder / "meta.json").write_text(json.dumps(meta))


def _check(place: str, reading: _Reading) -> None:
    """Raises what makes the source useless, whatever the policies."""
    examples, problems = reading.examples, reading.problems
    if not examples:
        lines = [p.detail for p in problems][:_LISTED]
        what = "none of the texts can be read; mend them" if lines else "there are no texts"
        raise UserErrors([*lines, f"{place}: {what}"])
    wrong = [
        f"{place}: {e.key}: split '{e.split}' is not one of {PARTS_WORDS}"
        for e in examples
        if not is_part(e.split)
    ]
    if wrong:
        raise UserErrors(wrong[:_LISTED])
    if not any(e.split == "train" for e in examples):
        there = ", ".join(sorted({e.split for e in examples}))
        raise UserError(f"{place}: no text is in the split train, only in {there}")


def _class_names(place: str, reading: _Reading, declared: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the classes in the order of their numbers: whole numbers by size, names by the alphabet."""
    where: dict[str, dict[str, str]] = {}  # label -> split -> the first key
    for e in reading.examples:
        where.setdefault(e.label or "", {}).setdefault(e.split, e.key)
    if "" in where:
        raise UserError(f"{place}: {next(iter(where[''].values()))} has no label")
    trained = {label for label, splits in where.items() if "train" in splits}
    trained |= {p.label for p in reading.problems if p.label and p.split == "train"}
    errors = []
    for label in sorted(set(where) - trained):
        split, key = next(iter(where[label].items()))
        errors.append(
            f"{place}: label '{label}' is only in {split} ({key}), not in train"
            f"{nearest(label, trained)}; add texts of it to train, or leave it out"
        )
    if errors:
        more = [f"{place}: {len(errors) - _LISTED} more such labels"] * (len(errors) > _LISTED)
        raise UserErrors(errors[:_LISTED] + more)
    whole = all(label.isdecimal() for label in where)
    names = declared or tuple(sorted(trained, key=int if whole else None))
    if len(names) < 2:
        raise UserError(f"{place}: only one class, '{names[0]}'; two or more are needed")
    return names


def _write_splits(
    folder: Path, data, pool: clean.Pool, meta: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    judged = prepared.cut(data, pool)
    if meta["crowded"]:  # in a crowd not all pairs were measured
        judged.found["near_duplicate"]["crowded"] = meta["crowded"]
    head = ["chat" if meta["chat"] else "text", list(meta["class_names"])]
    if (arrays["certainty"] < 1).any():
        head.append(hashlib.sha256(arrays["certainty"].tobytes()).hexdigest())
    prints = prepared.fingerprints(pool, judged.splits, head)
    report = {
        "name": data.name,
        "place": pool.place,
        "chat": meta["chat"],
        "sizes": {name: len(i) for name, i in judged.splits.items()},
        "classes": clean.class_counts(judged.splits, pool.labels, pool.class_names),
        "characters": {
            name: _lengths(arrays["characters"][i]) for name, i in judged.splits.items()
        },
        "found": judged.found | meta["mended"],
        "fingerprints": prints,
    }
    splits: dict[str, Any] = judged.splits
    np.savez(folder / "splits.npz", **splits)
    (folder / "report.json").write_text(json.dumps(report))


def _lengths(characters: np.ndarray) -> dict[str, int]:
    """Returns quantiles of lengths, each a length that occurs, and their sum."""
    taken = np.quantile(characters, list(_QUANTILES.values()), method="inverted_cdf")
    found = dict(zip(_QUANTILES, map(int, taken), strict=True))
    return found | {"total": int(characters.sum())}
