"""Distillation from a run, through the command."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

COMMON = (
    "--config.parallel.devices=1",
    "--config.train.batch_size=64",
    "--config.train.ema=0.9",
    "--config.eval.bootstrap=20",
    "--config.eval.every=steps=40",
    "--config.checkpoint.every=steps=25",
    "--config.log.every=steps=10",
    "--config.log.tensorboard=false",
    "--config.data.augment.rotate=0.0",
)
TEACHER = (*COMMON, "--config.model.features=(4,8)", "--config.model.dense=(32,)")
TEACHER += ("--config.train.duration=steps=80", "--config.optimizer.learning_rate=2e-2")
STUDENT = (*COMMON, "--config.model.name=mlp", "--config.model.widths=(24,)")
STUDENT += ("--config.train.duration=steps=60", "--config.optimizer.learning_rate=2e-2")


@pytest.fixture(scope="module")
def command(launch, root):
    return lambda *flags: launch(f"--config={root}/configs/digits_cnn.py", *flags)


@pytest.fixture(scope="module")
def teacher(command, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    assert command(*TEACHER, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture(scope="module")
def student(command, teacher, tmp_path_factory) -> Path:
    """Learns from the teacher alone: no label has any weight."""
    workdir = tmp_path_factory.mktemp("student") / "run"
    flags = (f"--config.distill.teacher={teacher}", "--config.distill.weight=1.0")
    assert command(*STUDENT, *flags, f"--workdir={workdir}") == 0
    return workdir


def lines(workdir: Path, split: str) -> list[dict]:
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["split"] == split]


def ending(workdir: Path) -> tuple[str, str]:
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["params_sha256"], (workdir / "metrics.jsonl").read_text()


def test_a_student_learns_from_the_teacher_alone(student):
    first, *_, last = lines(student, "train")
    assert last["distill"] < first["distill"] / 2 and last["agreement"] > first["agreement"]
    assert last["loss"] == last["distill"]  # with a weight of 1
    # Without the teacher's parameters there would be nothing to learn, and 1 in 10 right.
    assert json.loads((student / "summary.json").read_text())["test/accuracy"] > 0.7


def test_the_teacher_is_the_one_that_the_run_is_measured_by(teacher, student):
    """The average of parameters, of the checkpoint that eval.final names; and the figures of the log are of it."""
    import jax

    from research import modes
    from research.engine.state import params_sha256
    from research.engine.workdir import read_config

    _, task, restored = modes.restore(read_config(teacher), teacher)
    assert restored.step == 80
    own = read_config(student)
    _, distilled = modes.build(own)
    assert distilled.about["teacher"] == params_sha256(restored.state.ema)
    assert params_sha256(restored.state.ema) != params_sha256(restored.state.params)
    known = distilled.constants()["teacher"]
    batch = distilled.data.train_batch(0, slice(None))
    params, model_state = jax.jit(distilled.init)(jax.random.key(0))
    rngs = {"dropout": jax.random.key(0)}
    out = jax.jit(distilled.loss)(params, model_state | {"teacher": known}, batch, rngs)
    said = jax.jit(task.predict)(restored.state.ema, restored.state.model_state, batch)
    t, z = (np.float64(x["logits"]) / 2 for x in (said, out.outputs))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (t, z))
    np.testing.assert_allclose(out.losses, 4 * (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-5)


def test_a_stopped_student_ends_in_the_same_bits(command, teacher, student, tmp_path, monkeypatch):
    from research.engine.writer import Writer

    old = Writer.tick

    def tick(self, at):
        old(self, at)
        if at == 31:
            signal.raise_signal(signal.SIGTERM)

    flags = (*STUDENT, f"--config.distill.teacher={teacher}", "--config.distill.weight=1.0")
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "tick", tick)
        assert command(*flags, f"--workdir={tmp_path}") == 75
    assert command(*flags, f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(student)


def test_a_student_can_be_evaluated_and_can_teach(launch, command, student, tmp_path):
    assert launch("--mode=evaluate", f"--workdir={student}") == 0
    measured = json.loads((student / "evaluation.json").read_text())
    assert measured["test/loss"] == json.loads((student / "summary.json").read_text())["test/loss"]
    flags = (f"--config.distill.teacher={student}", "--config.train.duration=steps=20")
    flags += ("--config.parallel.kind=pmap", "--config.parallel.devices=2")
    assert command(*STUDENT, *flags, f"--workdir={tmp_path / 'next'}") == 0
    assert np.isfinite(lines(tmp_path / "next", "train")[-1]["distill"])


def refused(capsys) -> str:
    text = capsys.readouterr().err.strip()
    assert "\n" not in text and "Traceback" not in text
    return text


def test_what_cannot_teach_is_told_before_anything_is_written(command, teacher, tmp_path, capsys):
    def told(path: Path, *flags: str, workdir: Path = tmp_path / "none") -> str:
        capsys.readouterr()
        given = (*STUDENT, *flags, f"--config.distill.teacher={path}", f"--workdir={workdir}")
        assert command(*given) == 2
        assert not (tmp_path / "none").exists()
        return refused(capsys)

    assert "there is no run" in told(tmp_path / "nowhere")
    assert "is --workdir itself" in told(teacher, workdir=teacher)
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoint" in told(copy)
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(run | {"exit": 75}))
    assert f"has not come to its end; go on with it: python launch.py --workdir={copy}" in told(
        copy
    )
    (copy / "run.json").write_text(json.dumps(run))


def test_other_classes_are_named(command, teacher, tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("7", "8", "gnu"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    flags = ["--config.data.name=folder", f"--config.data.path={tmp_path / 'pictures'}"]
    flags += ["--config.data.image_size=8", "--config.data.channels=1"]
    flags += ["--config.train.batch_size=16", f"--config.distill.teacher={teacher}"]
    assert command(*STUDENT, *flags, f"--workdir={tmp_path / 'run'}") == 2
    text = refused(capsys)
    assert f"config.distill.teacher={teacher}: has other classes: it lacks 'gnu'" in text
    assert "'0', '1', '2', '3', '4' and 3 more beside" in text
