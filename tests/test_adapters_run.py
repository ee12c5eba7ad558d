"""A run with adapters: what its checkpoint holds, what it stands on, how it goes on and comes out."""

import json
import shutil

import numpy as np
import pytest

from research.engine.checkpoint import Checkpoints
from research.engine.state import named_leaves

LORA = ("--config.lora.rank=2", "--config.lora.dropout=0.1", "--config.seed=3")


def variables(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return {k: np.asarray(v) for k, v in named_leaves(checkpoints.variables()[1]).items()}
    finally:
        checkpoints.close()


def ending(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["params_sha256"], (workdir / "metrics.jsonl").read_text()


@pytest.fixture
def base(finished):
    return finished


@pytest.fixture(scope="module")
def adapted(launch, small, finished, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted") / "run"
    source = f"--config.pretrained.source=orbax:{finished}"
    assert launch(*small, *LORA, source, f"--workdir={workdir}") == 0
    return workdir


def test_a_checkpoint_holds_the_adapters_the_head_and_no_base(adapted):
    held = variables(adapted)
    params = {path.removeprefix("params/") for path in held if path.startswith("params/")}
    assert {"head/kernel", "head/bias", "stage1_conv1/lora_a", "dense1/lora_b"} <= params
    assert all("lora_" in path or path.startswith("head/") for path in params)
    # Frozen batch norms keep the base's statistics.
    assert any(path.startswith("model_state/batch_stats") for path in held)


def test_only_adapters_and_head_are_trained(adapted, base):
    summary = json.loads((adapted / "summary.json").read_text())
    held = variables(adapted)
    trained = sum(leaf.size for path, leaf in held.items() if path.startswith("params/"))
    assert summary["params_trainable"] == trained
    whole = sum(leaf.size for path, leaf in variables(base).items() if path.startswith("params/"))
    # The head is counted on both sides.
    assert summary["params_total"] == whole + trained - held["params/head/kernel"].size - 10
    statistics = [p for p in held if p.startswith("model_state/")]
    old = variables(base)
    assert all(held[path].tobytes() == old[path].tobytes() for path in statistics)


def test_stopped_and_gone_on_with_it_ends_in_the_same_bits(
    launch, small, base, adapted, tmp_path, monkeypatch
):
    import signal

    from research.engine.writer import Writer

    old = Writer.tick

    def tick(self, at):
        old(self, at)
        if at == 13:
            signal.raise_signal(signal.SIGTERM)

    flags = (*small, *LORA, f"--config.pretrained.source=orbax:{base}", f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "tick", tick)
        assert launch(*flags) == 75
    assert launch(*flags) == 0
    assert ending(tmp_path) == ending(adapted)


def test_it_is_evaluated_with_its_base_and_another_base_is_refused(
    launch, small, base, adapted, tmp_path, capsys
):
    run, source = tmp_path / "run", tmp_path / "source"
    shutil.copytree(adapted, run)
    shutil.copytree(base, source)
    config = json.loads((run / "config.json").read_text())
    config["pretrained"]["source"] = f"orbax:{source}"
    (run / "config.json").write_text(json.dumps(config))
    assert launch(f"--workdir={run}", "--mode=evaluate") == 0
    figures = json.loads((run / "evaluation.json").read_text())
    summary = json.loads((adapted / "summary.json").read_text())
    assert figures["test/loss"] == summary["test/loss"]
    shutil.rmtree(source)
    assert launch(*small, "--config.seed=9", f"--workdir={source}") == 0
    capsys.readouterr()
    assert launch(f"--workdir={run}", "--mode=evaluate") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "is not what the checkpoint was made on" in error
    shutil.rmtree(source)
    assert launch(f"--workdir={run}", "--mode=evaluate") == 2
    assert "no run" in capsys.readouterr().err


def test_merged_it_leaves_as_a_plain_model(launch, small, adapted, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        launch(f"--workdir={adapted}", "--mode=export", "--format=safetensors", f"--output={out}")
        == 0
    )
    from safetensors.numpy import load_file

    arrays = load_file(out / "model.safetensors")
    assert not any("lora" in name for name in arrays)
    # It goes in again as a plain run's weights, and predicts what the adapted run does.
    flags = (
        f"--config.pretrained.source=safetensors:{out}/model.safetensors",
        "--config.optimizer.learning_rate=0.0",
        "--config.train.duration=steps=1",
        "--config.model.norm=batch",
        "--config.optimizer.groups=((r'head/', {}), (r'.*', None))",
    )
    assert launch(*small, *flags, f"--workdir={tmp_path}/again") == 0
    losses = [
        json.loads((path / "summary.json").read_text())["test/loss"]
        for path in (adapted, tmp_path / "again")
    ]
    # Kernel and adapter summed before the product instead of behind it: float32 rounding.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.lora.layers=(r'stoge1',)", ["'stoge1'", "stage1_conv1"]),
        ("--config.lora.train=(r'haed/',)", ["'haed/'", "head"]),
        ("--config.lora.rank=999", ["rank"]),
        ("--config.lora.alpha=0", ["more than 0"]),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    launch, small, base, tmp_path, capsys, flag, words
):
    flags = (*small, *LORA, f"--config.pretrained.source=orbax:{base}", flag)
    assert launch(*flags, f"--workdir={tmp_path}/run") == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error, error
    assert not (tmp_path / "run").exists()
