"""launch.py as a user meets it: exit codes, one clear line for a mistake, the files of a run, the modes."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path):
    """Makes a folder of two classes, dark and light: `pictures(count) -> its path`."""

    def make(count=12, classes=("dark", "light")):
        rng = np.random.default_rng(0)
        for number, name in enumerate(classes):
            folder = tmp_path / "pictures" / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        return tmp_path / "pictures"

    return make


@pytest.fixture
def on_folder(root):
    """Flags for a small run on a folder of pictures."""
    return lambda path: (
        f"--config={root}/configs/image_folder.py",
        f"--config.data.path={path}",
        "--config.data.image_size=8",
        "--config.data.augment.crop=1",
        "--config.model.name=mlp",
        "--config.parallel.devices=1",
        "--config.train.batch_size=4",
        "--config.train.duration=steps=2",
        "--config.eval.batch_size=4",
        "--config.eval.bootstrap=10",
        "--config.log.tensorboard=false",
    )


def test_help_is_quick_to_import(root):
    """Nothing heavy is imported for --help: the time itself is measured in benchmarks/."""
    code = (
        "import sys, launch\n"
        "try: launch.main(['--help'])\n"
        "except SystemExit as e: print(e.code, 'numpy' in sys.modules, 'jax' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "0 False False"


def test_a_run_leaves_what_the_contract_says(launch, small, tmp_path):
    assert launch(*small, "--config.log.tensorboard=true", f"--workdir={tmp_path}") == 0
    for name in (
        "config.json",
        "run.json",
        "metrics.jsonl",
        "summary.json",
        "parameters.txt",
        "data_report.json",
        "report.html",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    assert list((tmp_path / "tensorboard").iterdir())
    summary = json.loads((tmp_path / "summary.json").read_text())
    for key in (
        "test/accuracy",
        "test/accuracy_low",
        "test/accuracy_high",
        "test/f1_macro",
        "validation/loss",
        "steps",
        "examples_per_second",
        "seconds_total",
        "seconds_compile",
        "data_wait_fraction",
        "peak_memory_bytes",
        "params_total",
        "params_trainable",
        "params_sha256",
    ):
        assert key in summary, key
    assert summary["steps"] == 30 and summary["test/accuracy_low"] <= summary["test/accuracy"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["exit"] == 0 and run["seed"] == 0 and set(run["data"]) >= {"data", "train", "test"}
    assert run["versions"]["jax"] and run["cpu_cores"] and run["devices"]["count"]
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    assert (
        launch(*small, "--config.log.tensorboard=true", f"--workdir={tmp_path}") == 0
    )  # costs nothing
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before


def test_modes_of_a_finished_run(launch, pictures, on_folder, tmp_path, capsys):
    folder, run = pictures(), tmp_path / "run"
    assert launch(*on_folder(folder), f"--workdir={run}") == 0
    summary = json.loads((run / "summary.json").read_text())

    assert launch(f"--workdir={run}", "--mode=evaluate") == 0
    figures = json.loads((run / "evaluation.json").read_text())
    assert {k: v for k, v in figures.items() if k != "step"} == {
        k: v for k, v in summary.items() if "/" in k
    }

    assert (
        launch(f"--workdir={run}", "--mode=predict", f"--inputs={folder}/dark,{folder}/light/3.png")
        == 0
    )
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 13 and rows[-1]["input"] == f"{folder}/light/3.png"
    assert {row["label"] for row in rows} <= {"dark", "light"} and all(
        0.5 <= row["probability"] <= 1 for row in rows
    )

    assert launch(f"--workdir={run}", "--mode=reproduce") == 0
    assert "same data, metrics and params_sha256" in capsys.readouterr().out


def test_reproduce_names_the_first_difference(launch, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    third = json.loads(lines[2])
    lines[2] = json.dumps(third | {"loss": third["loss"] * 2})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert launch(f"--workdir={run}", "--mode=reproduce") == 1
    error = capsys.readouterr().err
    assert f"metrics.jsonl line 3 (step {third['step']}, {third['split']}): loss is" in error


def test_another_config_than_the_runs_is_told(launch, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    use = (f"--workdir={run}", "--mode=evaluate")
    same = ("--config.parallel.kind=pmap", "--config.data.prefetch=2")  # the same experiment
    assert launch(*use, *same) == 0
    assert not capsys.readouterr().err
    assert launch(*use, "--config.data.mean=0.9", "--config.eval.batch_size=64") == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"not the config of the run in {run}:",
        "  config.data.mean: () -> (0.9,)",
        "  config.eval.batch_size: 512 -> 64",
    ]


def test_reproduce_takes_no_other_config(launch, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    assert launch(f"--workdir={run}", "--mode=reproduce", "--config.seed=4") == 2
    error = capsys.readouterr().err
    assert "leave out what differs" in error and "config.seed: 0 -> 4" in error
    assert not (tmp_path / "run-reproduced").exists()


def test_reproduce_takes_data_that_lie_elsewhere(launch, pictures, on_folder, tmp_path, capsys):
    folder, run = pictures(), tmp_path / "run"
    assert launch(*on_folder(folder), f"--workdir={run}") == 0
    moved = folder.rename(tmp_path / "elsewhere")
    place = f"--config.data.path={moved}"
    told = f"config.data.path: '{folder}' -> '{moved}'"
    capsys.readouterr()
    assert launch(f"--workdir={run}", "--mode=reproduce", place) == 0
    assert told in capsys.readouterr().err
    (run / "metrics.jsonl").write_text("{}\n")
    assert launch(f"--workdir={run}", "--mode=reproduce", place) == 1
    failed = capsys.readouterr().err.splitlines()[-1]
    assert failed.startswith("failed: not reproduced") and told in failed


def test_check_shows_what_would_run(launch, small, capsys):
    assert launch(*small, "--mode=check") == 0
    out = capsys.readouterr().out
    for word in (
        "train 1,29",
        "test 359",
        "image [32, 8, 8, 1]",
        "FLOPs",
        "activations",
        "optimizer",
        "30 steps",
        "no mistake found",
    ):
        assert word in out, word


def test_check_counts_the_flops_of_a_linear_model(launch, small, capsys):
    """One dense layer of 64 x 10 on 32 examples: 2 x 32 x 64 x 10 forward and as many for the weight gradient.

    The rest (softmax, optimizer, norms) is at most 20 operations for each of 650 parameters and 320 logits.
    """
    flags = ("--config.model.name=mlp", "--config.model.widths=()", "--config.optimizer.name=sgd")
    flags += ("--config.train.batch_size=32", "--config.train.ema=0", "--mode=check")
    assert launch(small[0], "--config.parallel.devices=1", *flags) == 0
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("FLOPs a step"))
    flops = int(row.split()[-1].replace(",", ""))
    assert 0 <= flops - 2 * (2 * 32 * 64 * 10) <= 20 * (650 + 320)


def test_check_with_minutes_and_micro_batches(launch, small, capsys):
    """Minutes need no measuring there, and micro-batches keep only their own activations."""
    schedule = (
        "--config.optimizer.schedule.name=step",
        "--config.optimizer.schedule.at=('minutes=1',)",
    )
    minutes = (*schedule, "--config.optimizer.schedule.warmup=minutes=0.01")

    def kept(*flags):
        assert launch(*small, *minutes, "--mode=check", *flags) == 0
        out = capsys.readouterr().out
        assert "30 steps" in out
        return next(r for r in out.splitlines() if r.startswith("memory, activations"))

    whole, quarter = (float(kept(*f).split()[2]) for f in ((), ("--config.train.micro_batches=4",)))
    assert 0.2 < quarter / whole < 0.5


@pytest.mark.parametrize(
    "flags",
    [
        ("--config.train.batch_size=0",),
        ("--config.train.micro_batches=0",),
        ("--config.model.name=cn",),
        ("--config.parallel.devices=-1",),
        ("--config.data.clean.blank=no", "--config.data.path=/nowhere"),
    ],
)
def test_check_lists_each_mistake_once(launch, root, capsys, flags):
    assert launch(f"--config={root}/configs/digits_cnn.py", "--mode=check", *flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_check_lists_mistakes_of_the_data_too(launch, root, capsys):
    flags = ("--config.seed=x", "--config.data.path=/nowhere", "--mode=check")
    assert launch(f"--config={root}/configs/image_folder.py", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and "config.seed" in error and "/nowhere" in error


def test_a_stored_config_that_is_empty(launch, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert launch(f"--workdir={tmp_path}", "--mode=evaluate") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "holds no config" in error


@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError, NotADirectoryError, OSError])
def test_errors_of_the_file_system_are_one_line(launch, monkeypatch, capsys, kind):
    import errno

    from research import modes

    number = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}.get(kind, errno.EROFS)

    def fail(*_):
        raise OSError(errno.ENOTDIR if kind is NotADirectoryError else number, "Bad luck", "/a/b")

    monkeypatch.setattr(modes, "find_config", fail)
    assert launch("--workdir=x") == 2
    assert capsys.readouterr().err.startswith("error: /a/b: bad luck; ")


def test_a_dangling_link_can_be_mended(launch, pictures, on_folder, capsys):
    folder = pictures()
    (folder / "dark" / "dang.png").symlink_to("nowhere.png")
    assert launch(*on_folder(folder), "--mode=check") == 2 and "dang.png" in capsys.readouterr().err
    (folder / "dark" / "dang.png").unlink()
    assert launch(*on_folder(folder), "--mode=check") == 0


def a_text_file(folder):
    (folder / "dark" / "notes.png").write_text("no picture")


def a_nan_picture(folder):
    np.save(folder / "light" / "nan.npy", np.full((8, 8, 3), np.nan, np.float32))


def one_picture_in_a_class(folder):
    (folder / "rare").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "rare" / "only.png")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(a_text_file, "notes.png"), (a_nan_picture, "nan.npy"), (one_picture_in_a_class, "rare")],
)
@pytest.mark.parametrize("mode", ["train", "check"])
def test_bad_pictures(launch, pictures, on_folder, tmp_path, capsys, damage, says, mode):
    folder = pictures()
    damage(folder)
    assert launch(*on_folder(folder), f"--workdir={tmp_path / 'run'}", f"--mode={mode}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not (tmp_path / "run").exists()  # nothing stands in the way of the mended command


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--config.train.batchsize=3",), "did you mean 'train.batch_size'"),
        (("--config.train.batch_size=big",), "must be of type int"),
        (("--config.train.batch_size=4096",), "4,096"),
        (("--config.data.name=folder", "--config.data.path=/nowhere"), "/nowhere"),
        (("--config.data.name=folder", "--config.data.path=EMPTY"), "EMPTY"),
        (("--config.train.micro_batches=3",), "does not divide"),
        (("--config.parallel.devices=9",), "4 cpu device(s) are here"),
        (("--config.checkpoint.best=validation/acuracy",), "validation/accuracy"),
        (("--config.model.name=cnn", "--config.model.padding=VALID"), "8"),
        (("--config.optimizer.decay_exclude=('b[',)",), "b["),
        (("--config.train.duration=percent=10",), "percent of what"),
        (("--config.train.duration=steps=0",), "config.train.duration"),
        (("--config.resume=/nowhere",), "config.resume=/nowhere: holds no checkpoints"),
        (("--config.optimizer.name=sgd", "--config.optimizer.momentum=abc"), "optax.sgd"),
        (("--config.eval.final=best", "--config.data.validation_fraction=0"), "no validation"),
        (("--config.eval.final=best", "--config.eval.every=steps=0"), "never evaluates"),
        (("--config.eval.final=best", "--config.checkpoint.best="), "names no figure"),
        (("--inputs=a.png",), "only --mode=predict"),
        (("--output=other",), "only --mode=reproduce"),
        (("--compile",), "only --mode=check"),
    ],
)
def test_bad_flags(launch, small, tmp_path, capsys, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert launch(*small, f"--workdir={tmp_path / 'run'}", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert "Traceback" not in error


def test_labels_out_of_range(launch, pictures, on_folder, tmp_path, capsys):
    folder = pictures()
    table = folder / "labels.csv"
    rows = [f"{name}/{i}.png,{k}" for k, name in enumerate(("dark", "light")) for i in range(12)]
    table.write_text("path,label\n" + "\n".join(rows[:-1] + ["light/11.png,-1"]) + "\n")
    assert launch(*on_folder(table), f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "labels.csv" in error and "-1" in error


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.exists("/proc/self"),
    reason="needs a place nobody may write to",
)
def test_no_write_permission(launch, small, tmp_path, capsys):
    place = "/proc/run" if os.geteuid() == 0 else str(tmp_path / "closed" / "run")
    (tmp_path / "closed").mkdir(mode=0o555)
    assert launch(*small, f"--workdir={place}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--workdir={place}" in error and "cannot be written" in error


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--mode=train",), "--config="),
        (("--config=configs/digit_cnn.py", "--workdir=x"), "digits_cnn.py"),
        (("--workdir=/nowhere/run", "--mode=evaluate"), "holds no run"),
        (("--config=configs/digits_cnn.py",), "--workdir"),
        (("--config=configs/digits_cnn.py:small", "--workdir=x"), "takes no argument"),
        (("--config=digits_cnn", "--workdir=x"), "did you mean 'configs/digits_cnn.py'"),
        (("--config=configs", "--workdir=x"), "is a folder"),
    ],
)
def test_bad_commands(launch, capsys, monkeypatch, root, argv, says):
    monkeypatch.chdir(root)
    assert launch(*argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--mod=train",), "did you mean '--mode'"),
        (("--mode=trian",), "trian"),
        (("--workdir=x", "--inputs", "a.png", "stray"), "commas go between"),
        (("",), "commas go between"),
        (("--epochs=3",), "did you mean '--config.train.duration=epochs=3'"),
        (("--config.seed",), "needs a value"),
    ],
)
def test_unknown_flags(launch, capsys, argv, says):
    with pytest.raises(SystemExit) as stopped:
        launch(*argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and says in error


def test_an_interrupted_check_ends_in_one_line(launch, capsys, monkeypatch):
    from research import modes

    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(modes, "find_config", interrupted)
    assert launch("--config=configs/digits_cnn.py", "--mode=check") == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "interrupted" in error


def test_nonfinite_loss_stops_and_names_the_cause(launch, small, tmp_path, capsys, monkeypatch):
    """A batch goes bad at step 12: the run stops there, names it, and keeps the checkpoint of step 7."""
    from research.data import batches

    make = batches.make_batches

    def poisoned(*args, **kwargs):
        train_batch, eval_batch = make(*args, **kwargs)

        def bad(n, rows):
            batch = train_batch(n, rows)
            if n == 11:
                batch["image"] = batch["image"].copy()
                batch["image"][5] = np.nan
            return batch

        return bad, eval_batch

    with monkeypatch.context() as patch:
        patch.setattr(batches, "make_batches", poisoned)
        assert launch(*small, "--config.model.norm=none", f"--workdir={tmp_path}") == 1
    error = capsys.readouterr().err
    from research import modes
    from research.engine.workdir import read_config

    _, task = modes.build(read_config(tmp_path))
    culprit = int(task.data.train_batch(11, slice(None))["id"][5])
    assert (
        "step 12" in error
        and "image" in error
        and f"Examples: {culprit}." in error
        and "step 10" in error
    )
    assert (tmp_path / "checkpoints" / "10").is_dir() and not (
        tmp_path / "checkpoints" / "14"
    ).exists()
    assert json.loads((tmp_path / "run.json").read_text())["exit"] == 1
    # With the batch mended, the same command goes on from there.
    assert launch(*small, "--config.model.norm=none", f"--workdir={tmp_path}") == 0


def test_divergence_names_a_tensor_of_the_model(launch, small, tmp_path, capsys):
    flags = (
        "--config.optimizer.name=sgd",
        "--config.optimizer.learning_rate=1e20",
        "--config.model.norm=none",
    )
    assert launch(*small, *flags, f"--workdir={tmp_path}") == 1
    error = capsys.readouterr().err
    assert "First bad tensor" in error and "learning_rate" in error and error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk(root, small, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a file system")
    try:
        command = [
            sys.executable,
            root / "launch.py",
            *small,
            "--config.checkpoint.keep=100",
            f"--workdir={disk}/run",
        ]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 2, run.stderr[-3000:]
        assert [
            line for line in run.stderr.splitlines() if line.startswith("error: no space left")
        ], run.stderr[-3000:]
        assert "Traceback" not in run.stderr
        whole = [int(p.name) for p in (disk / "run" / "checkpoints").iterdir() if p.name.isdigit()]
        assert whole
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0 and f"going on from step {max(whole)}" in run.stdout
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


@pytest.mark.slow
def test_minutes_become_steps_once(launch, small, tmp_path):
    """The pace measured at the start is recorded, and makes a reproduction the same length."""
    run = tmp_path / "run"
    assert launch(*small, "--config.train.duration=minutes=0.01", f"--workdir={run}") == 0
    pace = json.loads((run / "run.json").read_text())["steps_per_minute"]
    steps = json.loads((run / "summary.json").read_text())["steps"]
    assert pace > 0 and steps == np.ceil(round(pace * 0.01, 6))
    assert launch(f"--workdir={run}", "--mode=reproduce") == 0


def test_going_on_with_other_data_is_refused(launch, pictures, on_folder, tmp_path, capsys):
    folder, run = pictures(), tmp_path / "run"
    flags = (*on_folder(folder), f"--workdir={run}")
    assert launch(*flags) == 0
    (run / "summary.json").unlink()  # as if it had been killed before its end
    pixels = np.random.default_rng(1).integers(0, 100, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "dark" / "new.png")
    assert launch(*flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the data changed since the checkpoint of step 2" in error


def test_resume_starts_from_another_run(launch, small, finished, tmp_path):
    longer = tmp_path / "longer"
    flags = (*small, "--config.train.duration=steps=40", f"--config.resume={finished}")
    assert launch(*flags, f"--workdir={longer}") == 0
    steps = [
        json.loads(line)["step"] for line in (longer / "metrics.jsonl").read_text().splitlines()
    ]
    assert min(steps) == 32 and max(steps) == 40
    assert json.loads((longer / "run.json").read_text())["sessions"][0]["first_step"] == 30


def test_options_of_the_task_reach_it(launch, small, tmp_path):
    losses = []
    for smoothing in (0.0, 0.9):
        workdir = tmp_path / str(smoothing)
        flags = [f"--workdir={workdir}", f"--config.task.label_smoothing={smoothing}"]
        assert launch(*small, *flags, "--config.train.duration=steps=4") == 0
        losses.append(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] != losses[1]
