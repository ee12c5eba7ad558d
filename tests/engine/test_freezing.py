"""What frozen means: the same bytes, no optimizer state, no gradient, no part in the norm, statistics kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research import modes
from research.config import load
from research.engine import optim, pretrained, program
from research.engine.checkpoint import Checkpoints
from research.engine.state import create, named_leaves, path_name, split
from research.engine.step import make_train_step
from research.groups import treatments
from research.task import LossOutput, Task

HEAD = "--config.optimizer.groups=((r'head/', {}), (r'.*', None))"
# Frozen below, in the middle and above what is trained.
MIDDLE = "--config.optimizer.groups=((r'stage2_', {'lr': 0.5}), (r'.*', None))"
EVERYTHING_ON = (
    "--config.train.duration=steps=200",
    "--config.eval.every=steps=100",
    "--config.checkpoint.every=steps=100",
    "--config.optimizer.name=adamw",
    "--config.optimizer.weight_decay=0.1",
    "--config.optimizer.decay_exclude=()",
    "--config.optimizer.clip_norm=0.1",
    "--config.data.augment.mixup=0.2",
    "--config.train.micro_batches=2",
)


def config_of(flags):
    """The config that launch.py would make of these flags."""
    name = next(f.partition("=")[2] for f in flags if f.startswith("--config="))
    pairs = [f.removeprefix("--config.").split("=", 1) for f in flags if f.startswith("--config.")]
    config, mistakes = load(name, [(k, v) for k, v in pairs])
    assert not mistakes
    return config


def build(flags):
    config = config_of(flags)
    layout, task = modes.build(config)
    units = program.durations(config, task)
    return config, layout, task, units


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in named_leaves(tree).items()}


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        (HEAD, "mesh"),
        (MIDDLE, "pmap"),
        pytest.param(HEAD, "pmap", marks=pytest.mark.slow),
        pytest.param(MIDDLE, "mesh", marks=pytest.mark.slow),
    ],
)
def test_frozen_parameters_are_the_same_bytes_after_200_steps_with_everything_on(
    launch, small, tmp_path, groups, kind
):
    flags = [*small, *EVERYTHING_ON, groups, f"--config.parallel.kind={kind}"]
    flags += ["--config.parallel.devices=2"]
    config, layout, task, units = build(flags)
    before = leaves(jax.device_get(program.make_program(config, task, layout, units).create()))
    assert launch(*flags, f"--workdir={tmp_path}") == 0
    checkpoints = Checkpoints(tmp_path, read_only=True)
    step, after = checkpoints.variables()
    checkpoints.close()
    assert step == 200
    trained = "head/" if groups == HEAD else "stage2_"
    for path, leaf in leaves(after).items():
        part, _, name = path.partition("/")
        if part == "ema":
            assert name.startswith(trained), "an average of what is frozen is kept"
        else:
            same = leaf.tobytes() == before[path].tobytes()
            # Batch norms that are frozen keep their statistics, too.
            is_trained = name.removeprefix("batch_stats/").startswith(trained)
            assert same is not is_trained, path
    text = (tmp_path / "parameters.txt").read_text().splitlines()
    for line in text[2:-2]:
        path, *_, size = line.split()
        assert (size != "0") is path.startswith(trained), line


def test_frozen_batch_norm_with_the_batchs_statistics_keeps_its_own(launch, small, tmp_path):
    batch = "--config.train.frozen_batch_norm=batch"
    assert launch(*small, HEAD, batch, f"--workdir={tmp_path}/batch") == 0
    assert launch(*small, HEAD, f"--workdir={tmp_path}/running") == 0
    found = []
    for name in ("batch", "running"):
        checkpoints = Checkpoints(tmp_path / name, read_only=True)
        found.append(leaves(checkpoints.variables()[1]))
        checkpoints.close()
    for path in found[0]:
        same = found[0][path].tobytes() == found[1][path].tobytes()
        # The same statistics, but other features, and so another head.
        assert same is not ("head/" in path), path
    for path in (p for p in found[0] if p.endswith("/mean")):
        assert not found[0][path].any(), "running statistics of a fresh batch norm are 0 and 1"


@pytest.fixture
def net() -> Task:
    """Four dense layers, wide enough that their products are nearly all of the arithmetic."""

    def init(key):
        keys = jax.random.split(key, 4)
        sizes = {"dense0": (64, 256), "dense1": (256, 256), "dense2": (256, 256), "head": (256, 8)}
        params = {
            name: {"kernel": 0.1 * jax.random.normal(k, shape), "bias": jnp.zeros(shape[1])}
            for k, (name, shape) in zip(keys, sizes.items(), strict=True)
        }
        return params, {}

    def layer(params, x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def trunk(params, batch):
        x = batch["x"]
        for name in ("dense0", "dense1", "dense2"):
            x = jnp.maximum(layer(params, x, name), 0)
        return x

    def loss(params, model_state, batch, rngs):
        x = batch["features"] if "features" in batch else trunk(params, batch)
        logits = layer(params, x, "head")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return LossOutput(losses, batch["mask"], model_state, {})

    blank = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    return Task(
        **{**blank, "init": init, "loss": loss, "features": trunk, "layers": ("dense", "head")}
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(512, 64)).astype(np.float32),
        "y": rng.integers(0, 8, 512),
        "mask": np.ones(512, np.float32),
    }


def head_only(path):
    return path.startswith("head/")


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("clip", [False, True])
def test_a_frozen_trunk_costs_its_forward_pass(net, batch, clip):
    tx = (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
        if clip
        else optax.adamw(1e-3)
    )
    state = create(net, tx, seed=0, ema=0.9, trainable=head_only)
    frozen = flops(make_train_step(net, tx, seed=0, ema=0.9, trainable=head_only), state, batch)
    features = net.features(state.params, batch)
    alone = {"features": features, "y": batch["y"], "mask": batch["mask"]}
    head_state = state.replace(params={"head": state.params["head"]})
    head = flops(
        make_train_step(net, tx, seed=0, ema=0.9, trainable=head_only),
        head_state.replace(ema={"head": state.ema["head"]}, opt_state=tx.init(head_state.params)),
        alone,
    )
    trunk = flops(net.features, state.params, batch)
    assert frozen == pytest.approx(trunk + head, rel=0.02)
    whole = create(net, tx, seed=0, ema=0.9)
    assert flops(make_train_step(net, tx, seed=0, ema=0.9), whole, batch) > 2 * frozen


def test_what_is_frozen_above_is_passed_through_and_has_no_weight_gradient(net, batch):
    tx = optax.sgd(0.1)

    def only(path):
        return path.startswith("dense0/")

    state = create(net, tx, seed=0, ema=0.0, trainable=only)
    step = make_train_step(net, tx, seed=0, trainable=only)
    after, metrics = jax.jit(step)(state, batch)
    # The same gradient as where everything is trained, and the norm of that one alone.
    whole = make_train_step(net, tx, seed=0)
    everything, _ = jax.jit(whole)(create(net, tx, seed=0, ema=0.0), batch)
    moved = state.params["dense0"]["kernel"] - after.params["dense0"]["kernel"]
    expected = state.params["dense0"]["kernel"] - everything.params["dense0"]["kernel"]
    np.testing.assert_allclose(moved, expected, atol=1e-7)  # two sums of 512 terms, other orders
    bias = state.params["dense0"]["bias"] - after.params["dense0"]["bias"]
    norm = np.sqrt((np.float64(moved) ** 2).sum() + (np.float64(bias) ** 2).sum()) / 0.1
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    # Forward, the path down, and one weight gradient out of four.
    layers = (64 * 256, 256 * 256, 256 * 256, 256 * 8)
    expected = 2 * 512 * (2 * sum(layers) - layers[0] + layers[0])
    assert flops(step, state, batch) == pytest.approx(expected, rel=0.03)


def test_clipping_is_by_the_norm_of_what_is_trained(net, batch):
    def update(tx, trainable):
        state = create(net, tx, seed=0, ema=0.0, trainable=trainable)
        after, _ = jax.jit(make_train_step(net, tx, seed=0, trainable=trainable))(state, batch)
        return np.float64(after.params["head"]["kernel"]) - np.float64(
            state.params["head"]["kernel"]
        )

    plain = update(optax.sgd(1.0), head_only)
    gradients, _ = split(
        jax.grad(lambda p: net.loss(p, {}, batch, {}).losses.mean())(
            create(net, optax.sgd(1.0), seed=0, ema=0.0).params
        ),
        head_only,
    )
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    clipped = update(optax.chain(optax.clip_by_global_norm(norm / 4), optax.sgd(1.0)), head_only)
    np.testing.assert_allclose(clipped, plain / 4, rtol=1e-3, atol=1e-8)


def section(groups, name="adam"):
    config = load("configs/digits_cnn.py")[0].optimizer
    values = config.to_dict()
    values |= {"name": name, "groups": groups, "learning_rate": 0.1}
    values["schedule"] = {"name": "linear", "warmup": "steps=0"}
    for key in ("b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov"):
        values.pop(key, None)
    from ml_collections import ConfigDict

    return ConfigDict(values)


def test_a_group_that_thaws_begins_like_a_new_optimizer_at_the_runs_learning_rate():
    params = {"a": {"kernel": np.float32([1.0, 2.0])}, "b": {"kernel": np.float32([3.0])}}
    groups = ((r"a/", {}), (r"b/", {"unfreeze_at": "steps=3", "lr": 0.5}))
    table = treatments(groups, list(named_leaves(params)), (), lambda d: int(d.split("=")[1]), 10)
    config = section(groups)

    def at(step):
        return optim.make_optimizer(
            config, total_steps=10, to_steps=lambda d: int(d.split("=")[1]), table=table, at=step
        )[0]

    def gradient(step, path):
        return np.float32(np.sin(step + len(path) + np.arange(len(params[path]["kernel"]))))

    def by_hand(path, start, factor):
        value, m, v = np.float64(params[path]["kernel"]), 0.0, 0.0
        for step in range(start, 6):
            g, t = np.float64(gradient(step, path)), step - start + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            rate = 0.1 * (1 - step / 10) * factor  # the line of the whole run
            value = value - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return value

    state = None
    for step in range(6):
        live = {"a", "b"} if step >= 3 else {"a"}
        trained, _ = split(params, lambda path, live=live: path[0] in live)
        tx = at(step)
        if step in (0, 3):
            fresh = tx.init(trained)
            old = named_leaves(state) if state is not None else {}
            state = jax.tree_util.tree_map_with_path(
                lambda path, leaf, old=old: old.get(path_name(path), leaf), fresh
            )
        grads = jax.tree_util.tree_map_with_path(
            lambda path, _, step=step: gradient(step, path[0].key), trained
        )
        updates, state = tx.update(grads, state, trained)
        params = pretrained.overlay(params, optax.apply_updates(trained, updates))
        if step == 2:
            assert "b" not in {p for path in named_leaves(state) for p in path.split("/")}
    start = {"a": {"kernel": np.float32([1.0, 2.0])}, "b": {"kernel": np.float32([3.0])}}
    changed, params = params, start
    np.testing.assert_allclose(changed["a"]["kernel"], by_hand("a", 0, 1.0), rtol=1e-5)
    np.testing.assert_allclose(changed["b"]["kernel"], by_hand("b", 3, 0.5), rtol=1e-5)
