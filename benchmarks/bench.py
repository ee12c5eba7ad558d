"""Ours and theirs on this machine, in turn, in one run: steps, inference, memory, whole runs, and what grows.

    make bench
    python benchmarks/bench.py [--theirs=PYTHON] [--only=cnn,gpt] [--rounds=7] [--json=FILE] [--plot=FILE.png]

PYTHON is an interpreter with torch, timm, transformers, Keras and TensorFlow; left out, the one that runs this. Sides
are processes of their own on the same `--cores` cores. Each in its turn takes some steps, for about half a second,
while the others sleep; a ratio is the median of the rounds' ratios, ours/theirs. What of theirs can be had in several
ways (memory kept, channels_last, torch.compile) is tried in all, and the fastest counts.

What is finished is kept in the file of --json, and is not measured again unless more rounds are asked for or --again is
given: a command that was stopped goes on when it is given again.

Subjects: {subjects}
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.speed import growth, picture, results, steps, whole
from benchmarks.speed.subjects import SUBJECTS, write_texts
from benchmarks.turns import Worker, pin

OTHERS = ("generation", "run", "data", "startup", "depth", "trades")
NAMES = (*SUBJECTS, *OTHERS, *growth.GROWTH)
PACKAGES = ("jax", "jaxlib", "flax", "torch", "timm", "transformers", "keras", "tensorflow-cpu")


def main() -> None:
    given = parse()
    work = Path(given.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    threads = pin(given.cores)
    write_texts(work)
    path = Path(given.json)
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"subjects": {}}
    found["machine"] = here = machine(threads)
    failed = []
    for name in given.only.split(","):
        kept = found["subjects"].get(name, {})
        same = kept.get("machine") == here  # another one, or other versions: measured anew
        if same and kept.get("rounds", 0) >= given.rounds and not given.again:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        load = os.getloadavg()[0]  # of the last minute; 0 where nothing else runs
        try:
            measured = measure(name, given, work, threads)
        except SystemExit as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        measured |= {"rounds": given.rounds, "load_before": load, "date": now, "machine": here}
        found["subjects"][name] = measured
        order = {name: i for i, name in enumerate(NAMES)}
        found["subjects"] = dict(sorted(found["subjects"].items(), key=lambda s: order[s[0]]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        report({name: measured})
    if len(given.only.split(",")) > 1:
        print("\nAll that is known:\n")
        report(found["subjects"])
    if given.plot:
        picture.draw(found, Path(given.plot))
    if failed:
        sys.exit(f"error: no figures of {', '.join(failed)}; the reasons are above")


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__.format(subjects=", ".join(NAMES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--theirs", default=sys.executable, help="an interpreter with the others")
    options.add_argument("--only", default=",".join(NAMES), help="subjects, commas between")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--epochs", type=int, default=5, help="of the whole run")
    options.add_argument("--again", action="store_true", help="measures what is kept as well")
    options.add_argument("--work", default="runs/benchmarks/speed", help="a folder for files")
    options.add_argument("--json", default="benchmarks/results/speed.json")
    options.add_argument("--plot", default="", help="a PNG")
    given = options.parse_args()
    if unknown := set(given.only.split(",")) - set(NAMES):
        options.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return given


def measure(name: str, given: argparse.Namespace, work: Path, threads: int) -> dict[str, Any]:
    def ours(**env: str) -> Worker:
        return Worker(sys.executable, "speed/ours.py", threads=threads, env=env)

    def uncached() -> Worker:  # from the start: JAX looks at it once
        return ours(JAX_ENABLE_COMPILATION_CACHE="false")

    def data() -> dict[str, Any]:
        scripts = {"PyTorch": "torch_side.py", whole.KERAS: "keras_side.py"}
        theirs = {
            side: Worker(given.theirs, f"speed/{script}", threads=threads)
            for side, script in scripts.items()
        }
        mine = ours()
        try:
            return whole.data(mine, theirs, rounds)
        finally:
            for side in (mine, *theirs.values()):
                side.close()

    rounds = given.rounds
    if name in SUBJECTS:
        return steps.compare(name, SUBJECTS[name], given.theirs, work, rounds, threads)
    if name in growth.GROWTH:
        return growth.grow(growth.GROWTH[name], ours, work, rounds)
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "generation": lambda: whole.generation(given.theirs, work, rounds),
        "run": lambda: whole.run(given.theirs, work, rounds, given.epochs),
        "data": data,
        "startup": lambda: whole.startup(work, rounds),
        "depth": lambda: growth.compile_times(uncached, work, rounds),
        "trades": lambda: growth.trades(uncached, work, rounds),
    }
    return others[name]()


def machine(threads: int) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # of another interpreter
            continue
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": threads,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def report(subjects: dict[str, Any]) -> None:
    if results.rows(subjects):
        print(results.table(subjects))
    for name, subject in subjects.items():
        if "share" in subject:
            words = "{}: {:.1f} GFLOP a step, {:.2f} of the product's {:.0f} GFLOP/s"
            figures = subject["gflop"], subject["share"], subject["product_gflops"]
            print(words.format(name, *figures))
    for text in (results.growth_table(subjects), results.points_table(subjects)):
        if text:
            print(f"\n{text}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
