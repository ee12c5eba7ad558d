"""Adapters in PEFT's format as a user meets them: a run that starts from some, and one that writes its own."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.engine.state import named_leaves
from research.models import vit
from research.transfer.formats import safetensors
from research.transfer.load import dump

CONFIG = """
from research.config import defaults

def get_config():
    config = defaults()
    config.model.name = "vit"
    config.model.patch_size = 4
    config.model.width = 8
    config.model.depth = 1
    config.model.heads = 2
    config.parallel.devices = 1
    config.train.duration = "steps=12"
    config.train.batch_size = 32
    config.eval.bootstrap = 0
    config.data.validation_fraction = 0.0
    config.train.feature_cache = 0.0
    config.log.tensorboard = False
    return config
"""
LORA = (
    "--config.lora.rank=2",
    "--config.lora.alpha=3",
    "--config.lora.dora=true",
    r"--config.lora.layers=(r'block_\d+/(qkv|fc1)$',)",
)


@pytest.fixture(scope="module")
def place(launch, tmp_path_factory):
    """Holds config.py, hf (a base of random values), lora (a run on it) and adapter (its export)."""
    place = tmp_path_factory.mktemp("peft")
    config = place / "config.py"
    config.write_text(CONFIG)
    options = dict(patch_size=4, width=8, depth=1, heads=2)
    module = vit.Model(num_classes=10, dtype=jnp.float32, axis_name=None, **options)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)["params"]
    arrays = dump(params, {}, model="vit", options=options, naming="hf")
    safetensors.write(place / "hf/model.safetensors", arrays, {})
    assert launch(*given(place), *LORA, "--config.seed=1", f"--workdir={place}/lora") == 0
    out = (f"--output={place}/adapter", "--format=peft")
    assert launch(f"--workdir={place}/lora", "--mode=export", *out) == 0
    return place


def given(place):
    return (f"--config={place}/config.py", f"--config.pretrained.source=hf:{place}/hf")


def figures(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_what_is_written_is_what_the_run_has(place):
    from research.engine.checkpoint import Checkpoints

    arrays = safetensors.read(place / "adapter/adapter_model.safetensors")
    checkpoints = Checkpoints(place / "lora", read_only=True)
    leaves = named_leaves(checkpoints.variables(best=False)[1]["params"])
    checkpoints.close()
    # The names that transformers has in memory once it has read a file of the older ones.
    name = "base_model.model.vit.layers.0.mlp.fc1.lora_A.weight"
    np.testing.assert_array_equal(arrays[name], leaves["block_0/fc1/lora_a"].T)
    np.testing.assert_array_equal(
        arrays["base_model.model.classifier.weight"], leaves["head/kernel"].T
    )
    settings = json.loads((place / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == f"{place}/hf"
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (2, 3, True)


def test_a_run_from_an_adapter_starts_where_the_other_ended(place, launch, capsys, tmp_path):
    adapter = f"--config.lora.adapter={place}/adapter"
    capsys.readouterr()
    assert launch(*given(place), *LORA, adapter, "--mode=check") == 0
    told = f"{place}/adapter: 2 adapters of rank 2, names of hf5, and head/bias, head/kernel"
    assert told in capsys.readouterr().out
    still = ("--config.optimizer.learning_rate=0", "--config.train.duration=steps=1")
    moved = shutil.copytree(place / "adapter", tmp_path / "adapter")
    adapter = f"--config.lora.adapter={moved}"
    run = (*given(place), *LORA, adapter, *still, f"--workdir={tmp_path}/run")
    assert launch(*run) == 0
    ended, began = (figures(folder) for folder in (place / "lora", tmp_path / "run"))
    # Magnitudes went through a product and a quotient: the last bit of float32.
    assert began["test/loss"] == pytest.approx(ended["test/loss"], rel=1e-5)
    # All that it gave is in the checkpoint by now.
    shutil.rmtree(moved)
    assert launch(f"--workdir={tmp_path}/run", "--mode=evaluate") == 0
    out = (f"--output={tmp_path}/again", "--format=peft")
    assert launch(f"--workdir={tmp_path}/run", "--mode=export", *out) == 0
    old, new = (
        safetensors.read(x / "adapter_model.safetensors")
        for x in (place / "adapter", tmp_path / "again")
    )
    assert list(old) == list(new)
    for name, array in old.items():
        np.testing.assert_allclose(new[name], array, rtol=0 if "magnitude" not in name else 3e-7)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--config.lora.rank=4",), "config.lora.rank=4: the adapter in .* needs 2; set --config.lora.rank=2"),
        (("--config.lora.rank=0",), "config.lora.rank=0: the adapter in"),
        (("--config.pretrained.source=",), "config.lora.adapter=.*: an adapter stands on the base"),
        (("--config.lora.adapter=nowhere",), "config.lora.adapter=nowhere: no adapter_config.json there"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(place, launch, capsys, tmp_path, flags, words):
    import re

    adapter = f"--config.lora.adapter={place}/adapter"
    code = launch(*given(place), *LORA, adapter, *flags, f"--workdir={tmp_path}/run")
    assert code == 2 and not (tmp_path / "run").exists()
    assert re.search(words, capsys.readouterr().err)
