"""Runs a finished run again elsewhere, and names the first difference between the two."""

import itertools
import json
from pathlib import Path
from typing import Any

from research import modes
from research.config import FREE, PLACES, differences
from research.engine import environment, files, workdir
from research.errors import Failure, UserError, UserErrors
from research.modes.train import train


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    first = files.read_json(path / "run.json", {})
    if first.get("exit") != 0:
        raise UserError(
            f"--workdir={path}: the run there has not come to its end; give its command again first"
        )
    other = Path(flags.output) if flags.output else _free(path)
    if _ended(other):
        raise UserError(f"--output={other}: holds a finished run already; name a new directory")
    own = workdir.read_config(path)
    if others := differences(own, config, (*FREE, *PLACES)):
        raise UserErrors(
            [
                f"--workdir={path}: is run again by its own config; leave out what differs, or train elsewhere:",
                *others,
            ]
        )
    moved = modes.tell_differences(config, path)
    if changed := environment.differences(first, environment.environment()):
        print("not the same surroundings, so the bits may differ:", *changed, sep="\n  ")
    print(f"running {path} again in {other}")
    code = train(config, other, flags.stop, first.get("steps_per_minute"))
    if code:
        return code
    difference = first_difference(path, other)
    if difference:
        raise Failure("; ".join([f"not reproduced: {difference}", *moved]))
    print(f"reproduced: {path} and {other} have the same data, metrics and params_sha256")
    return 0


def first_difference(a: Path, b: Path) -> str | None:
    """Returns what differs first between two finished runs: data, then metrics line by line, then parameters."""
    data_a, data_b = (files.read_json(p / "run.json")["data"] for p in (a, b))
    for name in sorted(data_a.keys() | data_b.keys()):
        if data_a.get(name) != data_b.get(name):
            return f"the data: the fingerprint of '{name}' is {data_a.get(name)} in {a} and {data_b.get(name)} in {b}"
    lines = [(p / "metrics.jsonl").read_text().splitlines() for p in (a, b)]
    for number, (x, y) in enumerate(itertools.zip_longest(*lines, fillvalue="{}"), 1):
        left, right = json.loads(x), json.loads(y)
        for name in left | right:
            if left.get(name) != right.get(name):
                where = f"step {left.get('step', right.get('step'))}, {left.get('split', right.get('split'))}"
                values = f"{left.get(name)} in {a} and {right.get(name)} in {b}"
                return f"metrics.jsonl line {number} ({where}): {name} is {values}"
    hashes = [files.read_json(p / "summary.json")["params_sha256"] for p in (a, b)]
    return (
        None
        if hashes[0] == hashes[1]
        else f"params_sha256: {hashes[0]} in {a} and {hashes[1]} in {b}"
    )


def _ended(path: Path) -> bool:
    return files.read_json(path / "run.json", {}).get("exit") == 0


def _free(path: Path) -> Path:
    """The first of PATH-reproduced, PATH-reproduced-2, ... that holds no finished run."""
    for number in itertools.count(1):
        other = path.with_name(f"{path.name}-reproduced" + (f"-{number}" if number > 1 else ""))
        if not _ended(other):
            return other
    raise AssertionError
