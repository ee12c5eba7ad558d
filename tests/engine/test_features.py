"""Features of a frozen trunk: computed once, read ever after, and worth what they stand for."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.engine.state import join, split
from research.models import cnn, resnet, vit
from research.models.layers import named
from research.ops.losses import softmax_cross_entropy
from research.task import LossOutput, Task
from research.transfer.features import cut_point

HEAD = "--config.optimizer.groups=((r'head/', {}), (r'.*', None))"
STILL = (
    "--config.data.augment.shift=0",
    "--config.data.augment.rotate=0",
    "--config.model.dropout=0",
    "--config.model.dense=()",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, with the prepared data and the compiled programs of the suite's."""
    home = tmp_path / "cache"
    home.mkdir()
    for name in ("data", "xla"):
        shared = Path(os.environ["ROOTSTOCK_CACHE"]) / name
        shared.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(shared)
    monkeypatch.setenv("ROOTSTOCK_CACHE", str(home))
    return home / "features"


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_probe_on_kept_features_learns_what_it_learns_without(launch, small, cache, tmp_path):
    flags = (*small, *STILL, HEAD)
    off = "--config.train.feature_cache=0"
    assert launch(*flags, off, f"--workdir={tmp_path}/off") == 0
    assert not cache.exists()
    assert launch(*flags, f"--workdir={tmp_path}/on") == 0
    files = sorted(p.relative_to(cache).parts[1:] for p in cache.rglob("*.npy"))
    assert files == [(s, n) for s in ("train", "validation") for n in ("features.npy", "id.npy")]
    # The features of a batch of 144 and of 32 may be summed in another order: float32 rounding in 30 steps of Adam.
    np.testing.assert_allclose(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=2e-4)


def test_they_are_computed_once_and_again_for_other_weights(launch, small, cache, tmp_path, capsys):
    flags = (*small, *STILL, HEAD)
    assert launch(*flags, f"--workdir={tmp_path}/a") == 0
    assert capsys.readouterr().out.count("computed once") == 2
    assert launch(*flags, "--config.optimizer.learning_rate=0.01", f"--workdir={tmp_path}/b") == 0
    out = capsys.readouterr().out
    assert out.count("read from") == 2 and "computed once" not in out
    assert launch(*flags, "--config.seed=1", f"--workdir={tmp_path}/c") == 0
    assert capsys.readouterr().out.count("computed once") == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "flag",
    [
        "--config.data.augment.shift=1",
        pytest.param("--config.data.augment.mixup=0.2", marks=pytest.mark.slow),
        "--config.train.frozen_batch_norm=batch",
        "--config.train.feature_cache=1e-6",
    ],
)
def test_nothing_is_kept_that_would_be_wrong_or_too_large(launch, small, cache, tmp_path, flag):
    assert launch(*small, *STILL, HEAD, flag, f"--workdir={tmp_path}/run") == 0
    assert not cache.exists()


def test_another_number_of_devices_does_not_read_them(launch, small, cache, tmp_path, capsys):
    # A device sees other shapes then, and rounds otherwise: the bits of a run must not hang on who was there before.
    flags = (*small, *STILL, HEAD, "--config.train.duration=steps=2")
    for devices in (1, 2):
        capsys.readouterr()
        where = (f"--config.parallel.devices={devices}", f"--workdir={tmp_path}/{devices}")
        assert launch(*flags, *where) == 0
        assert capsys.readouterr().out.count("computed once") == 2


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_workers_of_the_grain_loader_hand_them_over(launch, small, cache, tmp_path, workers):
    flags = (*small, *STILL, HEAD, "--config.train.duration=steps=6")
    assert launch(*flags, f"--workdir={tmp_path}/memory") == 0
    grain = ("--config.data.loader=grain", f"--config.data.workers={workers}")
    assert launch(*flags, *grain, f"--workdir={tmp_path}/grain") == 0
    assert losses(tmp_path / "grain") == losses(tmp_path / "memory")


def test_features_kept_as_float32_do_not_widen_a_model_of_bfloat16():
    options = dict(patch_size=4, width=8, depth=2, heads=2)
    net = vit.Model(num_classes=3, dtype=jnp.bfloat16, axis_name=None, **options)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    variables = {"params": net.init(jax.random.key(0), x, train=False)["params"]}

    def inside(**given):
        _, found = net.apply(variables | given, x, train=False, mutable=["intermediates"])
        return found["intermediates"]

    plain = inside()
    kept = plain["block0"][0].astype(jnp.float32)
    from_there = inside(given={"block0": kept})
    for name in ("block1", "logits"):
        assert from_there[name][0].dtype == plain[name][0].dtype
        np.testing.assert_array_equal(*(np.float32(t[name][0]) for t in (plain, from_there)))


def task_of(model, shape, **options):
    net = model.Model(num_classes=3, dtype=jnp.float32, axis_name=None, **options)

    def apply(params, state, batch, keys, **how):
        variables = {"params": params, **state, "given": batch.get("given", {})}
        return net.apply(variables, batch["image"], keys=keys, **how)

    def init(key):
        variables = dict(net.init(key, jnp.zeros((1, *shape)), train=False))
        variables.pop("intermediates", None)
        return variables.pop("params"), variables

    def loss(params, state, batch, rngs):
        logits, state = apply(params, state, batch, None, train=True, mutable=list(state))
        return LossOutput(softmax_cross_entropy(logits, batch["label"]), batch["mask"], state, {})

    def inside(train):
        def run(params, state, batch, rngs=None):
            keys = (
                jax.vmap(jax.random.fold_in, (None, 0))(rngs["dropout"], batch["id"])
                if rngs
                else None
            )
            _, got = apply(
                params, state, batch, keys, train=train, mutable=["intermediates", *state]
            )
            return {
                k: v[0]
                for k, v in got["intermediates"].items()
                if k != "logits" and len(v) == 1 and isinstance(v, tuple)
            }

        return run

    blank = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    return Task(
        **{
            **blank,
            "init": init,
            "loss": loss,
            "features": inside(False),
            "intermediates": inside(True),
        }
    )


@pytest.mark.parametrize(
    ("options", "trained", "cut"),
    [
        ({}, "head/", "pooled"),
        ({}, "dense1/", "pooled"),
        ({}, "stage3_", "stage2"),
        ({}, "stage2_", "stage1"),
        ({}, "stage1_", None),
        ({"dropout": 0.1}, "head/", "pooled"),  # it is dropped behind 'pooled'
    ],
)
def test_the_cut_is_the_highest_value_that_nothing_trained_moves(options, trained, cut):
    shape = (12, 12, 1)
    task = task_of(cnn, shape, features=(2, 2, 2), pool=(1,), dense=(4,), **options)
    assert cut_of(task, shape, trained) == cut


def test_it_runs_along_the_order_of_computation_of_any_model():
    shape = (16, 16, 3)
    task = task_of(resnet, shape, width=2)
    assert [
        cut_of(task, shape, part) for part in ("head/", "layer4_1/", "layer2_0/", "conv1/")
    ] == [
        "pooled",
        "layer3",
        "layer1",
        None,
    ]


def test_what_a_model_records_but_does_not_take_is_no_cut():
    class Model(cnn.Model):
        @nn.compact
        def __call__(self, x, *, train, keys=None):
            x = named(self, "taken", nn.relu(nn.Dense(3, name="low")(x.reshape(len(x), -1))))
            x = nn.relu(nn.Dense(3, name="high")(x))
            self.sow("intermediates", "recorded", x)
            return nn.Dense(self.num_classes, name="head")(x)

    shape = (4, 4, 1)
    task = task_of(SimpleNamespace(Model=Model), shape)
    assert cut_of(task, shape, "head/") == "taken"


def test_what_the_inputs_go_past_is_no_cut():
    class Model(cnn.Model):
        @nn.compact
        def __call__(self, x, *, train, keys=None):
            x = named(self, "below", nn.relu(nn.Dense(3, name="stem")(x.reshape(len(x), -1))))
            left = named(self, "left", nn.Dense(3, name="a")(x))
            right = named(self, "right", nn.Dense(3, name="b")(x))
            return nn.Dense(self.num_classes, name="head")(left + right)

    shape = (4, 4, 1)
    task = task_of(SimpleNamespace(Model=Model), shape)
    assert cut_of(task, shape, "head/") == "below"


def cut_of(task, shape, trained):
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    params, state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    live, frozen = split(params, lambda path: path.startswith(trained))
    batch = {
        "image": np.zeros((2, *shape), np.float32),
        "label": np.zeros(2, np.int32),
        "id": np.arange(2),
        "mask": np.ones(2, np.float32),
    }
    # Batch norms of resnet take the batch's statistics here, of which only trained parameters matter.
    return cut_point(task, live, frozen, state, batch, join=join)


def test_a_given_feature_stands_for_all_below_it():
    shape = (12, 12, 1)
    task = task_of(cnn, shape, features=(2, 2), dense=(4,))
    params, state = task.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(3, *shape)).astype(np.float32),
        "label": np.int32([0, 1, 2]),
        "mask": np.ones(3, np.float32),
    }
    found = task.features(params, state, batch)
    blank = {**batch, "image": np.zeros_like(batch["image"])}
    for name in ("stage1", "stage2", "pooled"):
        given = task.loss(params, state, {**blank, "given": {name: found[name]}}, {}).losses
        expected = task.loss(params, state, batch, {}).losses
        np.testing.assert_array_equal(given, expected)
