"""Every shipped config, from the command to its summary, for two steps on tiny data made on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
# Sources that are not on every machine are stood in for by a folder of pictures of their size.
PICTURES = {
    "fashion_mnist": (28, 1),
    "tfds:cifar10": (32, 3),
    "folder": (16, 3),
    "emoji": (32, 3),
}


@pytest.fixture
def pictures(tmp_path):
    def make(side: int, channels: int) -> Path:
        rng = np.random.default_rng(0)
        for name in ("a", "b", "c"):
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(
                    0, 256, (side, side, 3) if channels == 3 else (side, side), np.uint8
                )
                Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
        return tmp_path / "pictures"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_of_every_config(launch, pictures, tmp_path, path):
    from research.config import load

    config, mistakes = load(str(path))
    assert not mistakes
    flags = [
        "--config.train.batch_size=16",
        "--config.train.duration=steps=2",
        "--config.eval.batch_size=16",
    ]
    flags += ["--config.eval.bootstrap=20", "--config.parallel.devices=1"]
    if config.pretrained.source:  # which names a run or a package that may not be here
        flags += ["--config.pretrained.source="]
    if config.data.name in PICTURES:
        side, channels = PICTURES[config.data.name]
        flags += [f"--config.data.path={pictures(side, channels)}", "--config.data.name=folder"]
        flags += [f"--config.data.image_size={side}", f"--config.data.channels={channels}"]
        flags += ["--config.data.validation_fraction=0.2"]
    run = tmp_path / "run"
    assert launch(f"--config={path}", f"--workdir={run}", *flags) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 and np.isfinite(summary["test/loss"])
    assert (run / "report.html").stat().st_size > 10_000
