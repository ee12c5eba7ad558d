"""Fine-tuning MiniLM on film-review sentences: ours and transformers with PEFT, on the same splits and budget, in turn.

    python benchmarks/minilm.py --torch-python=.venv-parity/bin/python [--ways=full,lora,probe] [--seeds=0,1,2]
        [--ours=best,gradual,scratch] [--data=data/vaderSentiment-3.3.2.tar.gz] [--runs=runs/benchmarks/minilm]
        [--json=FILE]

Ways are trained on both sides for one epoch of batches of 32 texts of up to 64 tokens, on all of the training split
(data.validation_fraction=0); those of --ours only here, as their configs say. Each of our runs is a process of its own
in RUNS/WAY-SEED; what is finished there is not run again. Accuracy is of the 20% of the sentences that the test split
holds, with the mean over seeds and Student's t interval; 'sentences' is the mean of the bootstrap intervals over test
sentences.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from emoji import half_width, interval, markdown

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import ROOT, Worker

CONFIG = "configs/sentiment_minilm.py"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--torch-python", default="", help="a Python with transformers and peft")
    options.add_argument("--ways", default="full,lora,probe")
    options.add_argument("--ours", default="best,gradual,scratch")
    options.add_argument("--seeds", default="0,1,2")
    options.add_argument("--data", default="data/vaderSentiment-3.3.2.tar.gz")
    options.add_argument("--runs", default="runs/benchmarks/minilm")
    options.add_argument("--json", default="", help="a file for the figures")
    given = options.parse_args()
    runs = Path(given.runs).resolve()
    runs.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    both = [way for way in given.ways.split(",") if way]
    mine = [way for way in given.ours.split(",") if way]
    theirs = Theirs(given, runs) if given.torch_python else None
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"ours": {}, "theirs": {}}
    for seed in seeds:
        for way in both + mine:
            budget = (
                ["train.duration=epochs=1", "data.validation_fraction=0.0"] if way in both else []
            )
            summary = ours(way, seed, [f"data.path={given.data}", *budget], runs)
            found["ours"].setdefault(way, []).append(summary)
            print(f"ours, {way}, seed {seed}: {summary['test/accuracy']:.4f}", file=sys.stderr)
            if theirs and way in both:
                other = theirs.run(way, seed)
                found["theirs"].setdefault(way, []).append(other)
                print(f"theirs, {way}, seed {seed}: {other['accuracy']:.4f}", file=sys.stderr)
    print(table(found))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


def ours(way: str, seed: int, settings: list[str], runs: Path) -> dict[str, Any]:
    """Trains one way with one seed, unless that is done, and returns its summary."""
    workdir = runs / f"{way}-{seed}"
    command = [sys.executable, "launch.py", f"--config={CONFIG}:{way}", f"--workdir={workdir}"]
    command += [f"--config.{setting}" for setting in (f"seed={seed}", *settings)]
    with open(runs / f"{way}-{seed}.log", "a") as log:
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if ended.returncode:
        sys.exit(f"{way}, seed {seed}: failed; see {log.name}")
    return json.loads((workdir / "summary.json").read_text())


class Theirs:
    """The process of benchmarks/minilm_torch.py, with our splits in a file."""

    def __init__(self, given: argparse.Namespace, runs: Path):
        self._runs = runs
        self._data = runs / "splits.json"
        from research.config import load
        from research.data.text import store
        from research.transfer.hf.folder import folder_of

        settings = [("data.path", given.data), ("data.validation_fraction", "0.0")]
        config, mistakes = load(str(ROOT / CONFIG), settings)
        assert not mistakes, mistakes
        data = store.prepare(config.data, labelled=True)
        splits = {
            split: [[data.texts[int(i)], int(data.labels[i])] for i in numbers]
            for split, numbers in data.splits.items()
        }
        self._data.write_text(json.dumps(splits))
        threads = os.cpu_count() or 1
        given_to = folder_of(config.pretrained.source), self._data, threads
        self._worker = Worker(given.torch_python, "minilm_torch.py", *given_to, threads=threads)

    def run(self, way: str, seed: int) -> dict[str, Any]:
        kept = self._runs / f"theirs-{way}-{seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(self._worker.ask(way=way, seed=seed, epochs=1)) + "\n")
        return json.loads(kept.read_text())


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    rows = [
        ["who", "way", "trained", "test accuracy, %", "95%: seeds", "95%: sentences", "seconds"]
    ]
    for who, ways in found.items():
        for way, runs in ways.items():
            name = "test/accuracy" if who == "ours" else "accuracy"
            values = [100 * run[name] for run in runs]
            mean = statistics.mean(values)
            cells = ["-"]
            if who == "ours":
                low, high = (
                    statistics.mean(100 * run[f"{name}_{end}"] for run in runs)
                    for end in ("low", "high")
                )
                cells = [f"{low:.1f} to {high:.1f}"]
            trained = runs[0]["params_trainable" if who == "ours" else "trainable"]
            seconds = statistics.mean(
                run["seconds_total" if who == "ours" else "seconds"] for run in runs
            )
            spread = f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"
            rows.append(
                [
                    who,
                    way,
                    f"{trained:,}",
                    spread,
                    interval(mean, half_width(values)),
                    *cells,
                    f"{seconds:.0f}",
                ]
            )
    return markdown(rows)


if __name__ == "__main__":
    main()
