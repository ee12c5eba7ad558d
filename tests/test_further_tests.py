"""A run on pictures that bring a test of their own beside 'test': trained, reported and evaluated."""

import json

import numpy as np
from PIL import Image

FOLDERS = {"train": 12, "test": 4, "test_night": 3}


def test_a_further_test_is_measured_at_the_end_and_never_trained_on(root, launch, tmp_path, capsys):
    for number, (part, count) in enumerate(FOLDERS.items()):
        for k, name in enumerate(("dark", "light")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([number, k, i])
                pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * k
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    run = tmp_path / "run"
    flags = (
        f"--config={root}/configs/image_folder.py",
        f"--config.data.path={tmp_path / 'pictures'}",
        "--config.data.image_size=8",
        "--config.data.augment.crop=1",
        "--config.data.validation_fraction=0.2",
        "--config.model.name=mlp",
        "--config.parallel.devices=1",
        "--config.train.batch_size=4",
        "--config.train.duration=steps=4",
        "--config.eval.batch_size=4",
        "--config.eval.bootstrap=10",
        f"--workdir={run}",
    )
    assert launch(*flags) == 0
    out = capsys.readouterr().out
    assert "test_night/accuracy" in out and "step 4/4  test_night" in out
    summary = json.loads((run / "summary.json").read_text())
    tests = {k: v for k, v in summary.items() if k.startswith("test_night/")}
    assert {"test_night/accuracy", "test_night/accuracy_low", "test_night/loss"} <= tests.keys()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines[-2:]] == ["test", "test_night"]
    assert {
        f"test_night/{k}": v for k, v in lines[-1].items() if k not in ("step", "split")
    } == tests
    data = json.loads((run / "data_report.json").read_text())
    assert data["sizes"]["test_night"] == 6 and data["sizes"]["train"] == 19  # of 24, and no more
    page = (run / "report.html").read_text()
    assert "Confusion matrix (test_night)" in page and "Confusion matrix (test)" in page
    (events,) = (run / "tensorboard").iterdir()
    assert b"test_night/accuracy" in events.read_bytes()

    assert launch("--mode=evaluate", f"--workdir={run}") == 0
    again = json.loads((run / "evaluation.json").read_text())
    assert {k: v for k, v in again.items() if k.startswith("test_night/")} == tests
