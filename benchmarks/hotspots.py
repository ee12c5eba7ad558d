"""Where the time of a train step goes: what XLA runs, how long, on how many threads.

    python benchmarks/hotspots.py gpt [--steps=5] [--top=25] [--work=runs/benchmarks/speed]
    python benchmarks/hotspots.py gpt --kinds    # one row of docs/performance.md: milliseconds by kind of operation

For any of the networks of benchmarks/bench.py. Layers that differ by a number count together. Operations overlap, so
that the sum of a table may be more than a step takes by the clock. A loop stands with what runs in it, and is left out.
"""

import argparse
import collections
import gzip
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed.ours import Run, product
from benchmarks.speed.subjects import SUBJECTS, write_texts

FIELDS = ("ms a step", "share", "times", "threads", "what", "where")
KINDS = {  # by the last word of where an operation comes from, or else of what it is; the first that fits
    "products": r"dot_general|conv_general_dilated|dot|convolution",
    "copies, transpositions": r"transpose|\S*copy|concatenate|pad|slice|dynamic_\S*|reverse",
    "sums": r"reduce_\S*|argm\S*|cumsum|reduce\S*",
    "gather, scatter": r"gather|scatter\S*|sort",
}
OTHER = "element by element"
CONTAINERS = "while", "conditional", "call"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("subject", choices=SUBJECTS)
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--top", type=int, default=25)
    options.add_argument("--kinds", action="store_true")
    options.add_argument("--work", default="runs/benchmarks/speed")
    given = options.parse_args()
    from research.ops.memory import keep_freed_memory

    keep_freed_memory()
    import jax

    subject, work = SUBJECTS[given.subject], Path(given.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_texts(work)
    run = Run(subject.config, [text.format(work=work) for text in subject.settings])
    run.make("")
    run.train(2)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            run.train(given.steps)
            clock = (time.perf_counter() - start) * 1e3 / given.steps
        (trace,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found = table(events, places(run.step.as_text()), given.steps)
    gflop = 3 * subject.forward / 1e9
    if given.kinds:
        peak = product()["gflops"]
        spent: dict[str, float] = collections.Counter()
        for row in found:
            spent[kind(row)] += row[0]
        products, *others = KINDS
        times = (clock, spent[products], gflop / peak * 1e3, *(spent[k] for k in (OTHER, *others)))
        cells = " | ".join(f"{ms:.1f}" for ms in times)
        names = "step by the clock", products, "these at the peak", OTHER, *others
        print(f"| ms | {' | '.join(names)} | share of the peak |", file=sys.stderr)
        print(f"| {given.subject} | {cells} | {gflop / clock * 1e3 / peak:.2f} |")
        return
    print(
        f"{subject.title}: {clock:.0f} ms a step by the clock, {sum(row[0] for row in found):.0f} ms in "
        f"operations; {gflop / clock:.3f} TFLOP/s of {product()['gflops'] / 1e3:.3f}"
    )
    print(("{:>10}{:>8}{:>8}{:>9}  {:24}{}").format(*FIELDS))
    for row in found[: given.top]:
        print("{:10.2f}{:8.1%}{:8.0f}{:9d}  {:24}{}".format(*row))


def places(program: str) -> dict[str, str]:
    """Returns what each operation of a compiled program comes from, {'dot.3': 'jit(step)/.../mlp/up/dot_general'}."""
    lines = re.finditer(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', program, re.MULTILINE)
    return {match[1]: match[2] for match in lines}


def table(events: list[dict[str, Any]], where: dict[str, str], steps: int) -> list[tuple]:
    """Returns a row of FIELDS for each kind of operation, the longest first."""
    spent: dict[tuple[str, str], float] = collections.Counter()
    times: dict[tuple[str, str], int] = collections.Counter()
    threads: dict[tuple[str, str], set] = collections.defaultdict(set)
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") != "X" or not name or re.sub(r"[.\d]+$", "", name) in CONTAINERS:
            continue
        key = re.sub(r"[.\d]+$", "", name), re.sub(r"\d+", "N", where.get(name, ""))
        spent[key] += event["dur"] / 1e3 / steps
        times[key] += 1
        threads[key].add(event["tid"])
    total = sum(spent.values())
    rows = [
        (ms, ms / total, times[key] / steps, len(threads[key]), key[0][:23], _tail(key[1]))
        for key, ms in spent.items()
    ]
    return sorted(rows, key=lambda row: -row[0])


def kind(row: tuple) -> str:
    """Returns which of KINDS a row of `table` belongs to, or OTHER."""
    where, what = row[5].rpartition("/")[2], row[4]
    named = [name for name, form in KINDS.items() if re.fullmatch(form, where or what)]
    return named[0] if named else OTHER


def _tail(path: str) -> str:
    way = "backward " if "transpose(" in path else ""
    return way + "/".join(path.split("/")[-4:])


if __name__ == "__main__":
    main()
