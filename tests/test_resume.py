"""A run that was stopped, killed or damaged ends in the same bits as one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def straight(finished) -> Path:
    """The small run, never stopped."""
    return finished


def ending(workdir: Path) -> tuple[str, str]:
    """What must be equal: the hash of the parameters, and the bytes of metrics.jsonl."""
    return json.loads((workdir / "summary.json").read_text())["params_sha256"], (
        workdir / "metrics.jsonl"
    ).read_text()


def stop_at(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal when the loop has dispatched a step."""
    from research.engine.writer import Writer

    old = Writer.tick

    def tick(self, at):
        old(self, at)
        if at == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Writer, "tick", tick)


def test_same_seed_twice_ends_in_the_same_bits(launch, small, straight, tmp_path):
    assert launch(*small, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight)


def test_another_seed_does_not(launch, small, straight, tmp_path):
    assert launch(*small, "--config.seed=1", f"--workdir={tmp_path}") == 0
    assert ending(tmp_path)[0] != ending(straight)[0]


@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGTERM), (13, signal.SIGINT), (20, signal.SIGTERM)]
)
def test_signals_save_and_the_same_command_goes_on(
    launch, small, straight, tmp_path, monkeypatch, step, number
):
    with monkeypatch.context() as patch:
        stop_at(patch, step, number)
        assert launch(*small, f"--workdir={tmp_path}") == 75
    assert json.loads((tmp_path / "run.json").read_text())["exit"] == 75
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert launch(*small, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight)


def newest(workdir: Path) -> Path:
    return max(
        (p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )


def truncate(checkpoint: Path) -> None:
    for file in data_files(checkpoint):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def data_files(checkpoint: Path) -> list[Path]:
    """All that hold arrays; Orbax leaves some behind that it doesn't read."""
    return [path for path in sorted(checkpoint.rglob("d/*")) if path.is_file()]


def delete_file(checkpoint: Path) -> None:
    next(p for p in sorted(checkpoint.rglob("d/*")) if p.is_file()).unlink()


def flip_a_bit(checkpoint: Path) -> None:
    for file in data_files(checkpoint):
        content = bytearray(file.read_bytes())
        content[len(content) * 2 // 3] ^= 1
        file.write_bytes(bytes(content))


def empty(checkpoint: Path) -> None:
    (checkpoint.parent / "29").mkdir()


def change_meta(checkpoint: Path) -> None:
    file = checkpoint / "meta" / "metadata"
    content = json.loads(file.read_text())
    content["window"]["loss"] += 1.0
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [truncate, delete_file, flip_a_bit, empty, change_meta])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    launch, small, straight, tmp_path, monkeypatch, capsys, damage
):
    with monkeypatch.context() as patch:
        stop_at(patch, 25)
        assert launch(*small, f"--workdir={tmp_path}") == 75
    damage(newest(tmp_path))
    capsys.readouterr()
    assert launch(*small, f"--workdir={tmp_path}") == 0
    out = capsys.readouterr().out
    assert "is damaged" in out and "going on from step" in out
    assert ("going on from step 25" in out) == (damage is empty)
    assert any((tmp_path / "damaged").iterdir())
    assert ending(tmp_path) == ending(straight)


def test_all_checkpoints_damaged_starts_again(launch, small, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 25)
        launch(*small, f"--workdir={tmp_path}")
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        flip_a_bit(checkpoint)
    assert launch(*small, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight)


def spoil(workdir: Path, steps: list[int]) -> None:
    for step in steps:
        flip_a_bit(workdir / "checkpoints" / str(step))


def delete(workdir: Path, steps: list[int]) -> None:
    for step in steps:
        shutil.rmtree(workdir / "checkpoints" / str(step))


@pytest.mark.parametrize(
    ("harm", "steps", "goes_on"),
    [
        (spoil, [30], 28),
        (delete, [30], 28),
        (spoil, [10], None),
        (spoil, [10, 28, 30], None),
    ],
)
def test_a_finished_run_that_lost_a_checkpoint_makes_it_again(
    launch, tmp_path, capsys, best_first, harm, steps, goes_on
):
    """The best of this run is of step 10, before all others; what was made after it is made again too."""
    run = shutil.copytree(best_first, tmp_path / "run")
    harm(run, steps)
    assert launch(f"--workdir={run}") == 0
    out = capsys.readouterr().out
    assert "is done" not in out and all(f"checkpoint {step} " in out for step in steps[-1:])
    assert (f"going on from step {goes_on}" in out) == (goes_on is not None)
    assert ending(run) == ending(best_first)
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert kept == {p.name for p in (best_first / "checkpoints").iterdir()} == {"10", "28", "30"}
    assert json.loads((run / "run.json").read_text())["exit"] == 0
    assert launch(f"--workdir={run}") == 0
    assert "is done" in capsys.readouterr().out


@pytest.fixture(scope="module")
def best_first(launch, small, tmp_path_factory) -> Path:
    """The small run by a figure that is best at its first evaluation. To be read only."""
    workdir = tmp_path_factory.mktemp("best_first") / "run"
    worst = "--config.checkpoint.best_mode=min"
    assert launch(*small, worst, f"--workdir={workdir}") == 0
    return workdir


@pytest.mark.parametrize("flags", [("evaluate",), ("export", "--format=safetensors", "--output")])
def test_what_reads_a_damaged_checkpoint_tells_the_command_that_mends_it(
    launch, straight, tmp_path, capsys, flags
):
    run = shutil.copytree(straight, tmp_path / "run")
    spoil(run, [30])
    mode = [f"{f}={tmp_path / 'out'}" if f == "--output" else f for f in flags]
    use = (f"--workdir={run}", f"--mode={mode[0]}", *mode[1:])
    assert launch(*use) == 0
    told = next(row for row in capsys.readouterr().out.splitlines() if "is damaged" in row)
    command = told.split("python launch.py ")[1].split()
    assert launch(*command) == 0
    capsys.readouterr()
    assert launch(*use) == 0
    assert "is damaged" not in capsys.readouterr().out
    assert ending(run) == ending(straight)


def test_a_finished_run_without_checkpoints_is_done_and_can_be_trained_again(
    launch, straight, tmp_path, capsys
):
    run = shutil.copytree(straight, tmp_path / "run")
    best = json.loads((run / "summary.json").read_text())["best_step"]
    delete(run, sorted({28, best} - {30}))
    assert launch(f"--workdir={run}") == 0  # its last is there, and no other is evaluated
    assert "is done" in capsys.readouterr().out
    delete(run, [30])
    assert launch(f"--workdir={run}") == 0
    out = capsys.readouterr().out
    assert "is done" in out and f"to train it again, delete {run / 'summary.json'}" in out
    (run / "summary.json").unlink()
    assert launch(f"--workdir={run}") == 0
    assert ending(run) == ending(straight)


def test_the_newest_and_the_best_checkpoints_are_kept(straight):
    summary = json.loads((straight / "summary.json").read_text())
    kept = {int(p.name) for p in (straight / "checkpoints").iterdir()}
    assert kept == {28, 30, summary["best_step"]}
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    accuracy = {line["step"]: line["accuracy"] for line in lines if line["split"] == "validation"}
    assert summary["best_step"] == max(accuracy, key=lambda step: (accuracy[step], -step))


def run_in_process(root, small, workdir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, root / "launch.py", *small, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_ten_kills_at_random_moments(root, launch, small, tmp_path):
    """A checkpoint at every step, so that kills hit saves too."""
    long = (*small, "--config.train.duration=steps=300", "--config.checkpoint.every=steps=1")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert launch(*long, f"--workdir={straight}") == 0
    rng = random.Random(0)
    for _ in range(10):
        process = run_in_process(root, long, killed)
        before = _steps(killed / "checkpoints")
        while process.poll() is None and _steps(killed / "checkpoints") == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None, "it came to its end before all kills were made"
        process.kill()
        process.communicate()
    last = run_in_process(root, long, killed)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    assert ending(killed) == ending(straight)
    sessions = json.loads((killed / "run.json").read_text())["sessions"]
    assert len(sessions) == 11 and sessions[-1]["first_step"] > 10


def _steps(folder: Path) -> list[str]:
    """Whole checkpoints: what a kill left half written is cleared away before a process notes its session."""
    return sorted(p.name for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def test_a_second_run_on_one_workdir_is_refused(launch, small, tmp_path, capsys):
    from research.config import load
    from research.engine.workdir import open_workdir

    config, mistakes = load(small[0].removeprefix("--config="), [])
    assert not mistakes
    with open_workdir(tmp_path, config):
        assert launch(small[0], f"--workdir={tmp_path}") == 2
    message = capsys.readouterr().err
    assert f"process {os.getpid()} is running there" in message and message.count("\n") == 1


def test_another_config_in_the_workdir_is_refused_and_named(launch, small, straight, capsys):
    assert launch(*small, "--config.optimizer.learning_rate=0.5", f"--workdir={straight}") == 2
    assert "config.optimizer.learning_rate: 0.002 -> 0.5" in capsys.readouterr().err


def test_another_number_of_devices_goes_on_in_the_same_order(
    launch, small, straight, tmp_path, monkeypatch
):
    from research import modes
    from research.data import batches
    from research.engine.workdir import read_config

    seen: dict[int, list[int]] = {}
    make = batches.make_batches

    def watching(*args, **kwargs):
        train_batch, eval_batch = make(*args, **kwargs)

        def watched(n, rows):
            batch = train_batch(n, rows)
            seen[n] = batch["id"].tolist()
            return batch

        return watched, eval_batch

    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        assert launch(*small, f"--workdir={tmp_path}") == 75
    with monkeypatch.context() as patch:
        patch.setattr(batches, "make_batches", watching)
        assert launch(*small, "--config.parallel.devices=4", f"--workdir={tmp_path}") == 0
    assert min(seen) == 13 and max(seen) == 29
    _, task = modes.build(read_config(straight))
    assert all(
        ids == task.data.train_batch(n, slice(None))["id"].tolist() for n, ids in seen.items()
    )
    a, b = (json.loads((w / "summary.json").read_text()) for w in (straight, tmp_path))
    # 17 steps whose float32 sums were added in another order.
    assert a["test/loss"] == pytest.approx(b["test/loss"], abs=1e-3)


def test_the_grain_loader_gives_the_same_bits(launch, small, straight, tmp_path):
    assert launch(*small, "--config.data.loader=grain", f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight)


@pytest.mark.slow
def test_grain_workers_give_the_same_bits(root, small, straight, tmp_path):
    process = run_in_process(
        root, (*small, "--config.data.loader=grain", "--config.data.workers=2"), tmp_path
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert ending(tmp_path) == ending(straight)


def test_a_signal_during_an_evaluation_saves_too(launch, small, straight, tmp_path, monkeypatch):
    from research.engine.writer import Writer

    log = Writer.log

    def logging(self, step, split, *rest):
        if (step, split) == (20, "validation"):
            signal.raise_signal(signal.SIGTERM)
        log(self, step, split, *rest)

    seldom = (*small, "--config.checkpoint.every=steps=0", "--config.checkpoint.best=")
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "log", logging)
        assert launch(*seldom, f"--workdir={tmp_path}") == 75
    assert newest(tmp_path).name == "20"
    assert launch(*seldom, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight)


def test_killed_before_the_report_it_is_made_the_next_time(
    launch, small, straight, tmp_path, monkeypatch
):
    from research.engine import finish

    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "write_report", killed)
        with pytest.raises(RuntimeError):
            launch(*small, f"--workdir={tmp_path}")
    assert not (tmp_path / "report.html").exists()
    assert launch(*small, f"--workdir={tmp_path}") == 0
    assert (tmp_path / "report.html").exists() and ending(tmp_path) == ending(straight)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["examples_per_second"] > 0


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(
    launch, small, tmp_path, capsys, monkeypatch
):
    from research.engine import train

    monkeypatch.setattr(
        train, "_better", lambda config, figures, best: best is None
    )  # the first is
    assert launch(*small, "--config.eval.final=best", f"--workdir={tmp_path}") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    best = tmp_path / "checkpoints" / str(summary["best_step"])
    assert summary["evaluated_step"] == summary["best_step"] == 10 and best.is_dir()
    assert launch(f"--workdir={tmp_path}", "--mode=evaluate") == 0
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures == {k: v for k, v in summary.items() if "/" in k} | {"step": 10}
    flip_a_bit(best)
    assert launch(f"--workdir={tmp_path}", "--mode=evaluate") == 0
    assert "is damaged" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 30


def test_a_checkpoint_of_another_model_is_no_damage(launch, small, straight, tmp_path, capsys):
    flags = (*small, "--config.train.duration=steps=40", f"--config.resume={straight}")
    assert launch(*flags, "--config.model.features=(4,16)", f"--workdir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "does not fit" in error
        and "float32[4, 16]" not in error.split("here")[1]
    )
    assert not (straight / "damaged").exists()


def test_resume_needs_a_longer_run(launch, small, straight, tmp_path, capsys):
    assert launch(*small, f"--config.resume={straight}", f"--workdir={tmp_path}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is at 30 already" in error


def test_a_signal_before_the_first_step_is_not_lost(launch, small, tmp_path, monkeypatch, capfd):
    from research import modes

    find = modes.find_config

    def finding(*given):
        signal.raise_signal(signal.SIGINT)
        return find(*given)

    with monkeypatch.context() as patch:
        patch.setattr(modes, "find_config", finding)
        assert launch(*small, f"--workdir={tmp_path}") == 75
    assert newest(tmp_path).name == "1"
    assert "SIGINT: saves and stops" in capfd.readouterr().err
