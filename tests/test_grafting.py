"""Runs that start from another's weights, thaw on the way, are stopped, and are given other groups."""

import itertools
import json
import shutil

import numpy as np
import pytest

from research.engine.checkpoint import Checkpoints
from research.engine.state import named_leaves

GRADUAL = (
    "--config.optimizer.groups=((r'head/', {}), (r'dense', {'unfreeze_at': 'steps=9'}), "
    "(r'stage2_', {'lr': 0.5, 'unfreeze_at': '50%'}), (r'.*', None))"
)
HEAD = "--config.optimizer.groups=((r'head/', {}), (r'.*', None))"
ALL = "--config.optimizer.groups=((r'.*', {'lr': 0.5}),)"


def ending(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["params_sha256"], (workdir / "metrics.jsonl").read_text()


def variables(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return {k: np.asarray(v) for k, v in named_leaves(checkpoints.variables()[1]).items()}
    finally:
        checkpoints.close()


def stop_at(monkeypatch, *steps):
    import signal

    from research.engine.writer import Writer

    old, left = Writer.tick, list(steps)

    def tick(self, at):
        old(self, at)
        if left and at == left[0]:
            left.pop(0)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Writer, "tick", tick)


@pytest.fixture(scope="module")
def gradual(launch, small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gradual") / "run"
    assert launch(*small, GRADUAL, f"--workdir={workdir}") == 0
    return workdir


@pytest.mark.parametrize("steps", [(9,), (8, 15), (10, 20), (3, 9, 15, 16)])
def test_a_gradual_run_stopped_before_at_and_after_a_thaw_ends_in_the_same_bits(
    launch, small, gradual, tmp_path, monkeypatch, steps
):
    stop_at(monkeypatch, *steps)
    for _ in steps:
        assert launch(*small, GRADUAL, f"--workdir={tmp_path}") == 75
    assert launch(*small, GRADUAL, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(gradual)


def test_the_same_on_kept_features_which_end_lower_after_each_thaw(
    launch, small, tmp_path, monkeypatch, capsys
):
    still = ("--config.data.augment.shift=0", "--config.data.augment.rotate=0")
    flags = (*small, *still, "--config.model.dropout=0", GRADUAL)
    assert launch(*flags, f"--workdir={tmp_path}/straight") == 0
    out = capsys.readouterr().out
    assert "trunk (pooled) of train" in out and "trunk (stage1) of train" in out
    stop_at(monkeypatch, 9, 12)
    for _ in range(2):
        assert launch(*flags, f"--workdir={tmp_path}/stopped") == 75
    assert launch(*flags, f"--workdir={tmp_path}/stopped") == 0
    assert ending(tmp_path / "stopped") == ending(tmp_path / "straight")


def test_what_thaws_later_is_still_until_then(launch, small, gradual, tmp_path, monkeypatch):
    before = None
    for step in (8, 14, 20):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert launch(*small, GRADUAL, f"--workdir={tmp_path}") == 75
        now = variables(tmp_path)
        if before is not None:
            moved = {
                path.split("/")[1].rstrip("0123456789")
                for path in now
                if path.startswith("params/") and not np.array_equal(now[path], before[path])
            }
            live = {"head", "dense"} | ({"stage2_conv", "stage2_norm"} if step == 20 else set())
            assert moved == live
        before = now


def test_another_table_is_an_error_unless_it_is_asked_for(
    launch, small, tmp_path, capsys, monkeypatch
):
    first = tmp_path / "first"
    assert launch(*small, HEAD, f"--workdir={first}") == 0
    flags = (*small, f"--config.resume={first}", "--config.train.duration=steps=40")
    capsys.readouterr()
    assert launch(*flags, ALL, f"--workdir={tmp_path}/second") == 2
    error = capsys.readouterr().err
    assert "regroup" in error and "dense1/kernel: frozen -> lr x 0.5 from step 0" in error
    assert not (tmp_path / "second").exists()
    assert (
        launch(*flags, ALL, "--config.optimizer.regroup=true", f"--workdir={tmp_path}/second") == 0
    )
    before, after = variables(first), variables(tmp_path / "second")
    moved = [p for p in before if p.startswith("params/") and (before[p] != after[p]).any()]
    assert any("stage1_conv1" in path for path in moved)
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["steps"] == 40


@pytest.mark.slow
def test_other_groups_go_on_but_another_model_and_a_lost_base_do_not(
    launch, small, tmp_path, capsys
):
    lora = ("--config.lora.rank=2", "--config.train.duration=steps=3")
    more = r"((r'(.*/)?lora_', {}), (r'head/', {}), (r'stage2_', {}), (r'.*', None))"
    first = tmp_path / "first"
    assert launch(*small, *lora, f"--config.optimizer.groups={more}", f"--workdir={first}") == 0
    flags = (*small, f"--config.resume={first}", "--config.optimizer.regroup=true")
    flags += ("--config.train.duration=steps=6",)
    count = itertools.count()

    def refused(*given):
        capsys.readouterr()
        assert launch(*flags, *given, f"--workdir={tmp_path}/refused{next(count)}") == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    # What is frozen now was trained: it would be in no checkpoint, and in no source.
    assert "stage2_conv1/kernel was trained" in refused("--config.lora.rank=2")
    assert "lora_a is [3, 3, 4, 2] in the checkpoint and absent here" in refused()
    assert "[2, 24] here" in refused("--config.lora.rank=2", "--config.model.dense=(24,)")
    adapters = f"--config.optimizer.groups={more.replace('stage2_', 'stage')}"
    assert "is not what the checkpoint was made on" in refused(
        "--config.lora.rank=2", "--config.seed=7", adapters
    )
    second = f"--workdir={tmp_path}/second"
    assert launch(*flags, "--config.lora.rank=2", adapters, second) == 0
    assert launch(second, "--mode=evaluate") == 0


@pytest.fixture
def base(finished):
    """A run of the small CNN with an average of its parameters."""
    return finished


@pytest.mark.parametrize("which", ["evaluated", "trained"])
def test_a_run_starts_from_the_parameters_of_another(launch, small, base, tmp_path, which):
    flags = (*small, HEAD, f"--config.pretrained.source=orbax:{base}")
    flags += (f"--config.pretrained.params={which}", "--config.seed=5")
    assert launch(*flags, f"--workdir={tmp_path}") == 0
    old, new = variables(base), variables(tmp_path)
    part = "ema/" if which == "evaluated" else "params/"
    for path, leaf in new.items():
        if path.startswith("params/") and "head" not in path:
            assert leaf.tobytes() == old[part + path.removeprefix("params/")].tobytes(), path
        if path.startswith("model_state/"):
            assert leaf.tobytes() == old[path].tobytes(), path


def test_check_says_what_would_be_read_and_what_would_stay_at_random(launch, small, base, capsys):
    skipped = "--config.pretrained.rules=((r'^stage1', 'skip'),)"
    source = f"--config.pretrained.source=orbax:{base}"
    assert launch(*small, HEAD, source, skipped, "--mode=check") == 0
    out = capsys.readouterr().out
    assert f"orbax:{base}: 9 arrays" in out
    assert (
        "note: stage1_conv1/kernel, stage1_norm1/bias, stage1_norm1/scale: frozen at fresh" in out
    )
    assert launch(*small, HEAD, source, "--mode=check") == 0
    assert "note:" not in capsys.readouterr().out


def test_pixels_normalised_otherwise_are_told(launch, small, base, tmp_path, capsys):
    flags = (*small, f"--config.pretrained.source=orbax:{base}", "--config.train.duration=steps=1")
    assert launch(*flags, f"--workdir={tmp_path}/same") == 0
    assert "normalised by" not in capsys.readouterr().out
    others = ("--config.data.mean=(0.5,)", "--config.data.std=(0.25,)")
    assert launch(*flags, *others, f"--workdir={tmp_path}/other") == 0
    told = [x for x in capsys.readouterr().out.splitlines() if "normalised by" in x]
    assert len(told) == 1 and "mean (0.5,) and std (0.25,)" in told[0]


def test_a_finished_import_needs_its_source_no_more(launch, small, base, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    flags = (*small, HEAD, f"--config.pretrained.source=orbax:{source}")
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        assert launch(*flags, f"--workdir={tmp_path}/run") == 75
    shutil.rmtree(source)
    assert launch(*flags, f"--workdir={tmp_path}/run") == 0
    assert launch(f"--workdir={tmp_path}/run", "--mode=evaluate") == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.pretrained.source=orbax:nowhere"], ["nowhere", "no run"]),
        (["--config.pretrained.source={base}"], ["did you mean orbax:"]),
        (["--config.pretrained.rules=^head/"], ["(r'^head/', 'skip')"]),
        (["--config.lora.rank=2", HEAD], ["freezes every adapter"]),
        (["--config.optimizer.groups=(('kernel', {}), ('.*', None))"], [".*kernel"]),
        (["--config.model.dense=(24,)"], ["dense1/kernel", "[32, 24]", "[32, 16]", "skip"]),
        (["--config.model.features=(4,8,8)"], ["stage3_conv1/kernel"]),
        (["--config.pretrained.rules=((r'^haed/', 'skip'),)"], ["'^haed/'", "head/"]),
        (["--config.pretrained.rules=((r'^head/', 'skp'),)"], ["'skp'", "skip"]),
    ],
)
def test_what_does_not_fit_is_listed_before_anything_starts(
    launch, small, base, tmp_path, capsys, flags, words
):
    given = (
        f"--config.pretrained.source=orbax:{base}",
        *(f.replace("{base}", str(base)) for f in flags),
    )
    assert launch(*small, *given, f"--workdir={tmp_path}/run") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("duration", "thaw"), [("steps=30", "minutes=0.0002"), ("minutes=0.0005", "steps=12")]
)
def test_a_thaw_in_minutes_and_in_a_run_of_minutes_is_by_the_measured_pace(
    launch, small, tmp_path, capsys, monkeypatch, duration, thaw
):
    monkeypatch.setattr("research.engine.train._pace", lambda *_: 60_000.0)
    groups = f"((r'head/', {{}}), (r'dense', {{'unfreeze_at': '{thaw}'}}), (r'.*', None))"
    flags = (*small, f"--config.optimizer.groups={groups}", f"--config.train.duration={duration}")
    assert launch(*flags, "--mode=check") == 0
    assert launch(*flags, f"--workdir={tmp_path}") == 0
    table = (tmp_path / "parameters.txt").read_text().splitlines()
    assert "from step 12" in next(line for line in table if line.startswith("dense1/kernel"))
    assert "from step 12" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 30
    assert launch(f"--workdir={tmp_path}", "--mode=evaluate") == 0


@pytest.mark.parametrize("groups", ["(r'head/', {})", "((r'head/', 5),)", "((r'head/', None, 1),)"])
def test_groups_of_another_form_are_told(launch, small, capsys, groups):
    assert launch(*small, f"--config.optimizer.groups={groups}", "--mode=check") == 2
    error = capsys.readouterr().err
    assert "config.optimizer.groups" in error and "Traceback" not in error
