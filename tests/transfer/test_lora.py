"""Adapters against their formulas in NumPy, the plain models and brute force over layouts."""

import math
import re
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from research.config import defaults
from research.errors import UserErrors
from research.models import cnn, mlp, resnet, vit
from research.models.layers import Conv, Dense
from research.task import LossOutput, Task
from research.transfer import lora

B, CLASSES = 4, 5
KEY = jax.random.key(3, impl="unsafe_rbg")  # compiles in a quarter of the time
MODELS = {
    "mlp": (mlp, dict(widths=(16, 12))),
    "cnn": (cnn, dict(features=(4, 8), dense=(16,), padding="SAME")),
    "resnet": (resnet, dict(width=4)),
    "vit": (vit, dict(width=16, depth=2, heads=2)),
}


class DepthwiseConv(nn.Module):
    """A kernel [K, K, 1, C], one picture for each channel."""

    stride: int = 1

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (3, 3, 1, c), jnp.float32)
        how = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=c)
        return lax.conv_general_dilated(x, kernel, (self.stride,) * 2, "SAME", **how)


class One(nn.Module):
    """A model of one layer, named 'layer'."""

    make: Any

    @nn.compact
    def __call__(self, x, *, train, keys=None):
        return self.make(name="layer")(x)


def section(**options):
    given = dict(rank=2, alpha=3.0, train=()) | options
    config = defaults().lora
    config.update(given)
    return config


def task_of(model, shape, dtype=jnp.float32) -> Task:
    """The part of a task that adapters touch."""

    def init(key):
        variables = dict(model.init(key, jnp.zeros((1, *shape), dtype), train=False))
        variables.pop("intermediates", None)
        return variables.pop("params"), variables

    def apply(params, state, batch, keys, **how):
        return model.apply({"params": params, **state}, batch["x"], keys=keys, **how)

    def loss(params, state, batch, rngs):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rngs["dropout"], batch["id"])
        out, state = apply(params, state, batch, keys, train=True, mutable=list(state))
        losses = jnp.sum(jnp.square(out.astype(jnp.float32)), range(1, out.ndim))
        return LossOutput(losses, jnp.ones(len(losses)), state, {}, {"logits": out})

    def predict(params, state, batch):
        return {"logits": apply(params, state, batch, None, train=False)}

    def intermediates(params, state, batch, rngs):
        how = dict(train=False, capture_intermediates=True, mutable=["intermediates"])
        return apply(params, state, batch, None, **how)[1]["intermediates"]

    none = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    given = dict(init=init, loss=loss, predict=predict, intermediates=intermediates)
    return Task(**none | given | {"features": predict})


def layer_task(make, shape, dtype=jnp.float32) -> Task:
    return task_of(One(make), shape, dtype)


def model_task(name, **options) -> Task:
    module, usual = MODELS[name]
    given = dict(num_classes=CLASSES, dtype=jnp.float32, axis_name=None) | usual | options
    return task_of(module.Model(**given), (16, 16, 3))


def pictures(b=B, side=16, c=3):
    x = np.random.default_rng(0).standard_normal((b, side, side, c)).astype(np.float32)
    return {"x": x, "id": np.arange(b)}


def paths(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(k.key for k in path): leaf for path, leaf in flat}


def shuffled(params, seed=1):
    """The adapters as if they had been trained a while."""
    rng = np.random.default_rng(seed)

    def change(path, x):
        name = path[-1].key
        if not lora.is_adapter(name):
            return x
        noise = rng.standard_normal(x.shape).astype(np.float32)
        return 1.0 + 0.3 * noise if name == "lora_m" else 0.2 * noise

    return jax.tree_util.tree_map_with_path(change, params)


def split(params):
    """-> adapters, base: each the whole tree, with None for the other's leaves."""

    def keep(wanted):
        return jax.tree_util.tree_map_with_path(
            lambda p, x: x if lora.is_adapter(p[-1].key) == wanted else None, params
        )

    return keep(True), keep(False)


def joined(a, b):
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def column_norm(w):
    return np.sqrt(np.square(w).sum(axis=tuple(range(w.ndim - 1))))


def correlated(x, kernel, stride, pad):
    """Convolution by its definition, in float64; a kernel [K, N, C, D]."""
    k, n = kernel.shape[:2]
    x = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    h, w = (x.shape[1] - k) // stride + 1, (x.shape[2] - n) // stride + 1
    y = np.zeros((len(x), h, w, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + n]
            y[:, i, j] = np.einsum("bknc,kncd->bd", patch, kernel)
    return y


@pytest.mark.parametrize("rslora, s", [(False, 3.0 / 2), (True, 3.0 / math.sqrt(2))])
@pytest.mark.parametrize("dora", [False, True])
def test_a_dense_layer_is_as_the_formula_says(rslora, s, dora):
    task = lora.adapt(layer_task(partial(Dense, 7), (5,)), section(rslora=rslora, dora=dora))
    params = shuffled(task.init(jax.random.key(0))[0])
    params["layer"]["bias"] = np.arange(7.0, dtype=np.float32)
    x = np.random.default_rng(2).standard_normal((B, 5)).astype(np.float32)
    p = {key: np.asarray(value, np.float64) for key, value in params["layer"].items()}
    assert p["lora_a"].shape == (5, 2) and p["lora_b"].shape == (2, 7)
    ba = p["lora_a"] @ p["lora_b"]
    want = x @ p["kernel"] + s * (x @ ba)
    if dora:
        want *= column_norm(p["kernel"]) * p["lora_m"] / column_norm(p["kernel"] + s * ba)
    got = task.predict(params, {}, {"x": x})["logits"]
    # Sums of 5 terms of size 1 in float32, against float64.
    np.testing.assert_allclose(got, want + p["bias"], atol=5e-6)


@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 1), (2, 0), (3, 2)])
@pytest.mark.parametrize("dora", [False, True])
def test_a_convolution_is_as_the_formula_says(stride, padding, dora):
    make = partial(Conv, 6, 3, stride, padding)
    task = lora.adapt(layer_task(make, (9, 9, 4)), section(dora=dora))
    params = shuffled(task.init(jax.random.key(0))[0])
    params["layer"]["bias"] = np.arange(6.0, dtype=np.float32)
    x = pictures(side=9, c=4)["x"]
    p = {key: np.asarray(value, np.float64) for key, value in params["layer"].items()}
    assert p["lora_a"].shape == (3, 3, 4, 2) and p["lora_b"].shape == (2, 6)
    want = correlated(x, p["kernel"], stride, padding)
    want += 1.5 * correlated(x, p["lora_a"], stride, padding) @ p["lora_b"]
    if dora:
        changed = p["kernel"] + 1.5 * np.einsum("kncr,rd->kncd", p["lora_a"], p["lora_b"])
        want *= column_norm(p["kernel"]) * p["lora_m"] / column_norm(changed)
    got = task.predict(params, {}, {"x": x})["logits"]
    np.testing.assert_allclose(got, want + p["bias"], atol=2e-5)  # 36 terms in float32


@pytest.mark.parametrize("dora", [False, True])
def test_a_depthwise_convolution_is_as_the_formula_says(dora):
    task = lora.adapt(layer_task(partial(DepthwiseConv, 2), (9, 9, 4)), section(dora=dora))
    params = shuffled(task.init(jax.random.key(0))[0])
    x = pictures(side=9, c=4)["x"]
    p = {key: np.asarray(value, np.float64) for key, value in params["layer"].items()}
    assert p["lora_a"].shape == (9, 2) and p["lora_b"].shape == (2, 4)
    changed = p["kernel"] + 1.5 * (p["lora_a"] @ p["lora_b"]).reshape(3, 3, 1, 4)
    if dora:
        changed *= column_norm(p["kernel"]) * p["lora_m"] / column_norm(changed)
    each = [correlated(x[..., c : c + 1], changed[..., c : c + 1], 2, 1) for c in range(4)]
    got = task.predict(params, {}, {"x": x})["logits"]
    np.testing.assert_allclose(got, np.concatenate(each, -1), atol=2e-5)  # 9 terms in float32


@pytest.mark.parametrize("dora", [False, True])
def test_an_embedding_is_as_the_formula_says_both_ways(dora):
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, keys=None):
            embed = nn.Embed(11, 4, name="layer")
            return jnp.concatenate([embed(x), embed(x)], -1), embed.attend(jnp.ones((1, 4)) * 2)

    chosen = section(dora=dora, dropout=0.5)
    task = lora.adapt(task_of(Tied(), (3,), jnp.int32), chosen)
    params = shuffled(task.init(jax.random.key(0))[0])
    p = {key: np.asarray(value, np.float64) for key, value in params["layer"].items()}
    assert p["lora_a"].shape == (11, 2) and p["lora_b"].shape == (2, 4)
    table = p["embedding"] + 1.5 * p["lora_a"] @ p["lora_b"]
    if dora:
        table *= column_norm(p["embedding"]) * p["lora_m"] / column_norm(table)
    x = np.array([[0, 10, 3], [5, 5, 1]])
    rows, scores = task.predict(params, {}, {"x": x})["logits"]
    # A few terms in float32.
    np.testing.assert_allclose(rows, np.concatenate([table[x]] * 2, -1), atol=2e-6)
    np.testing.assert_allclose(scores, 2 * np.ones((1, 4)) @ table.T, atol=5e-6)
    merged = lora.merge(params, chosen)
    assert list(merged["layer"]) == ["embedding"]
    np.testing.assert_allclose(merged["layer"]["embedding"], table, atol=2e-6)


@cache
def compiled(name, dora):
    """-> base, adapted task, parameters at the start, model_state; what is jitted here compiles once."""
    base = model_task(name)
    task = lora.adapt(base, section(dora=dora))
    base, task = (
        t._replace(predict=jax.jit(t.predict), init=jax.jit(t.init)) for t in (base, task)
    )
    if dora:
        params, state = task.init(KEY)
    else:  # the same without 'lora_m', which saves a compilation
        params, state = compiled(name, True)[2:]
        params = without(params, "lora_m")
    return base, task, params, state


def without(tree, leaves=r"lora_[abm]"):
    if not isinstance(tree, dict):
        return tree
    return {k: without(v, leaves) for k, v in tree.items() if not re.fullmatch(leaves, k)}


@pytest.mark.parametrize("name", MODELS)
def test_adapters_stand_beside_every_kernel_and_the_bases_parameters_are_as_ever(name):
    base, _, params, _ = compiled(name, True)
    old, new = paths(base.init(KEY)[0]), paths(params)
    assert set(old) == {path for path in new if not lora.is_adapter(path)}
    assert all(np.array_equal(old[path], new[path]) for path in old)
    layers = [path.removesuffix("kernel") for path in old if path.endswith("/kernel")]
    leaves = ("lora_a", "lora_b", "lora_m")
    want = {layer + leaf for layer in layers for leaf in leaves}
    assert {path for path in new if lora.is_adapter(path)} == want
    assert {x.dtype for x in new.values()} == {jnp.dtype("float32")}
    names = {"base": base.init, "task": lora.adapt(model_task(name), section()).init}
    shapes = {key: jax.eval_shape(init, jax.random.key(0))[0] for key, init in names.items()}
    more = set(paths(shapes["task"])) - set(paths(shapes["base"]))
    assert more == {layer + leaf for layer in layers for leaf in leaves[:2]}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_at_first_an_adapted_model_computes_what_its_base_does(name, dora):
    base, task, params, state = compiled(name, dora)
    a = base.predict(without(params), state, pictures())["logits"]
    b = task.predict(params, state, pictures())["logits"]
    if dora:  # ||W|| / ||W + 0|| may be one ulp off 1, in each of up to 20 layers
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(a).max())
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_merged_parameters_compute_the_same_in_the_plain_model(name, dora):
    base, task, params, state = compiled(name, dora)
    trained = shuffled(params)
    merged = lora.merge(trained, section(dora=dora))
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, without(params))
    a = task.predict(trained, state, pictures())["logits"]
    b = base.predict(merged, state, pictures())["logits"]
    c = base.predict(without(params), state, pictures())["logits"]
    assert np.abs(a - c).max() > 0.05 * np.abs(a).max()  # the adapters do something
    # The same sums in another order, float32's 6e-8 carried through up to 20 layers of up to 1000 terms.
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())


def test_merging_leaves_the_rest_alone():
    chosen = section(layers=(r"dense1$",))
    params = shuffled(lora.adapt(model_task("mlp"), chosen).init(jax.random.key(0))[0])
    merged = lora.merge(params, chosen)
    assert merged["head"]["kernel"] is params["head"]["kernel"]
    assert not np.array_equal(merged["dense1"]["kernel"], params["dense1"]["kernel"])
    assert not any(map(lora.is_adapter, paths(merged)))


def test_everything_a_task_computes_has_the_adapters_in_it():
    chosen = section()
    base, batch = model_task("mlp"), pictures()
    task = lora.adapt(base, chosen)
    params, state = task.init(jax.random.key(0))
    params = shuffled(params)
    merged, rngs = lora.merge(params, chosen), {"dropout": jax.random.key(1)}
    for name, more in dict(predict=(), features=(), intermediates=(rngs,), loss=(rngs,)).items():
        got = jax.tree.leaves(getattr(task, name)(params, state, batch, *more))
        want = jax.tree.leaves(getattr(base, name)(merged, state, batch, *more))
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):  # as above; losses are squares of up to 100
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_by_the_adapters_are_those_of_the_whole_with_constant_norms(dora):
    """Against differentiating a kernel made of W, A, B and m, DoRA's norms held constant."""
    task = lora.adapt(layer_task(partial(Dense, 7), (5,)), section(dora=dora))
    params = shuffled(task.init(jax.random.key(0))[0])
    adapters, base = split(params)
    batch = {"x": pictures(side=1, c=5)["x"].reshape(B, 5), "id": np.arange(B)}

    def summed(adapters):
        out = task.loss(joined(adapters, base), {}, batch, {"dropout": jax.random.key(0)})
        return out.losses.sum()

    got = jax.grad(summed)(adapters)["layer"]
    p = {key: np.asarray(value, np.float64) for key, value in params["layer"].items()}
    x, s = batch["x"].astype(np.float64), 1.5
    unscaled = p["kernel"] + s * p["lora_a"] @ p["lora_b"]
    ratio = column_norm(p["kernel"]) / column_norm(unscaled) if dora else np.ones(7)
    g = ratio * p["lora_m"] if dora else ratio
    dy = 2 * (x @ unscaled * g + p["bias"])
    want = {
        "lora_a": s * x.T @ (dy * g) @ p["lora_b"].T,
        "lora_b": s * (x @ p["lora_a"]).T @ (dy * g),
    }
    if dora:
        want["lora_m"] = (dy * (x @ unscaled)).sum(0) * ratio
    for leaf, value in want.items():
        np.testing.assert_allclose(got[leaf], value, rtol=1e-4, atol=1e-4)  # float32, values to 100
    assert got["kernel"] is None


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_no_gradient_by_a_base_kernel_is_computed(name):
    """The FLOPs of adapters' gradients are those of forward and backward by the input, and a little."""
    wide = {
        "cnn": dict(features=(32, 64), dense=(64,)),
        "vit": dict(width=128, heads=4, depth=1),
    }[name]
    base = model_task(name, **wide)
    task = lora.adapt(base, section(rank=1))
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    plain = jax.eval_shape(base.init, jax.random.key(0))[0]
    batch, rngs = pictures(16), {"dropout": jax.random.key(0)}
    adapters, frozen = split(params)

    def summed(task, params, x):
        return task.loss(params, state_of, {**batch, "x": x}, rngs).losses.sum()

    state_of = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    by_adapters = flops(
        jax.grad(lambda a, f, x: summed(task, joined(a, f), x)), adapters, frozen, batch["x"]
    )
    by_input = flops(jax.grad(lambda x, p: summed(base, p, x)), batch["x"], plain)
    by_all = flops(jax.grad(lambda p, x: summed(base, p, x)), plain, batch["x"])
    assert by_input < by_all / 1.3  # or the test would show nothing
    assert by_adapters < 1.15 * by_input


def test_so_many_parameters_are_trained_and_the_head_as_it_is():
    chosen = section(layers=(r"block_\d+/(qkv|proj)$", r"head"), train=(r"^head/",), rank=4)
    task = lora.adapt(model_task("vit"), chosen)
    new = paths(jax.eval_shape(task.init, jax.random.key(0))[0])
    adapters = [path for path in new if lora.is_adapter(path)]
    assert sum(math.prod(new[path].shape) for path in adapters) == 2 * 4 * ((16 + 48) + (16 + 16))
    assert {path.split("/")[1] for path in adapters} == {"qkv", "proj"}


def test_rank_0_is_off():
    chosen = section(rank=0, dora=True, layers=("nothing",))
    task = model_task("mlp")
    assert lora.adapt(task, chosen) is task
    assert lora.groups(chosen) == () and lora.problems(chosen, {}, {}) == []


def test_groups_train_the_adapters_and_what_is_named():
    assert lora.groups(section(train=(r"^head/",))) == (
        (r"(.*/)?lora_[abm]$", ()),
        (r"^head/", ()),
        (r".*", None),
    )
    for path, adapter in {
        "block_0/qkv/lora_a": True,
        "lora_m": True,
        "block_0/qkv/kernel": False,
        "lora_a/kernel": False,
        "block/lora_c": False,
    }.items():
        assert lora.is_adapter(path) is adapter, path


def mistakes(name="vit", **options):
    chosen, base = section(**options), model_task(name)
    before, after = (
        paths(jax.eval_shape(task.init, jax.random.key(0))[0])
        for task in (base, lora.adapt(base, chosen))
    )
    return lora.problems(chosen, before, after)


def test_patterns_that_fit_are_no_mistake():
    assert mistakes(train=(r"^head/",)) == []


def test_a_layer_pattern_without_a_layer_is_told_with_the_nearest():
    (line,) = mistakes(layers=(r"block_0/qvk", r"block_1/qkv"))
    assert line.startswith("config.lora.layers: 'block_0/qvk' matches no Dense, Conv")
    assert "block_1/qkv" in line


def test_other_mistakes_of_the_section_are_told_together():
    lines = mistakes(layers=(r"head$", "block"), train=(r"^head/", r"^haed/"), rank=17)
    assert len(lines) == 3
    assert "'head$' matches only what config.lora.train trains as it is (head)" in lines[0]
    assert "config.lora.train: '^haed/' matches no parameter (did you mean 'head/" in lines[1]
    assert "config.lora.rank=17: is more than there is in block_0/fc1 (16)" in lines[2]


def test_what_is_no_pattern_is_told():
    with pytest.raises(UserErrors, match=r"config.lora.layers: '\(' is no regular expression"):
        mistakes(layers=("(",))


def test_dropout_belongs_to_examples_and_not_to_their_place():
    chosen = section(dropout=0.5)
    _, undropped, params, state = compiled("cnn", False)
    task, batch, params = lora.adapt(model_task("cnn"), chosen), pictures(8), shuffled(params)
    rngs = {"dropout": jax.random.key(4)}
    loss = jax.jit(lambda b, rngs=rngs: task.loss(params, state, b, rngs).losses)
    whole = np.asarray(loss(batch))
    order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
    parts = [loss({k: v[order[i : i + 2]] for k, v in batch.items()}) for i in range(0, 8, 2)]
    # Other batch sizes sum in another order; a mask that differed would change a loss by tenths.
    np.testing.assert_allclose(np.concatenate(parts), whole[order], rtol=2e-5)
    other = np.asarray(loss(batch, {"dropout": jax.random.key(5)}))
    assert np.abs(whole / other - 1).min() > 1e-3
    few = pictures()
    np.testing.assert_array_equal(  # none in predictions
        jax.jit(task.predict)(params, state, few)["logits"],
        undropped.predict(params, state, few)["logits"],
    )


def test_dropout_leaves_the_base_path_alone_and_its_mean_is_the_whole():
    task = lora.adapt(layer_task(partial(Dense, 7), (50,)), section(dropout=0.25))
    params, _ = task.init(jax.random.key(0))
    x = np.broadcast_to(np.float32(1), (4000, 50))
    batch, rngs = {"x": x, "id": np.arange(4000)}, {"dropout": jax.random.key(0)}
    plain = task.predict(params, {}, batch)["logits"]
    first = task.loss(params, {}, batch, rngs).outputs["logits"]
    np.testing.assert_array_equal(first, plain)  # B is zero
    params = shuffled(params)
    whole = np.asarray(task.predict(params, {}, batch)["logits"])
    dropped = np.asarray(task.loss(params, {}, batch, rngs).outputs["logits"])
    assert (dropped.std(0) > 0.01).all()
    error = 5 * dropped.std(0) / math.sqrt(4000)  # five standard errors of the mean
    assert (np.abs(dropped.mean(0) - whole.mean(0)) < error).all()


def test_two_layers_have_masks_of_their_own():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, keys=None):
            return jnp.stack([Dense(64, name=name)(x) for name in ("first", "second")], 1)

    task = lora.adapt(task_of(Two(), (64,)), section(dropout=0.5, rank=64, alpha=64.0))
    eye = np.eye(64, dtype=np.float32)
    one = {"kernel": 0 * eye, "bias": np.zeros(64, np.float32), "lora_a": eye, "lora_b": eye}
    batch = {"x": np.ones((2, 64), np.float32), "id": np.arange(2)}
    out = task.loss({"first": one, "second": one}, {}, batch, {"dropout": jax.random.key(0)})
    masks = np.asarray(out.outputs["logits"]).reshape(4, 64)  # the dropped inputs themselves
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert len(np.unique(masks, axis=0)) == 4


def test_dropout_where_rows_are_not_examples_is_refused():
    class Folded(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, keys=None):
            return Dense(3, name="layer")(x.reshape(-1, 2)).reshape(len(x), -1)

    task = lora.adapt(task_of(Folded(), (4,)), section(dropout=0.5))
    params, _ = task.init(jax.random.key(0))
    batch = {"x": np.ones((2, 4), np.float32), "id": np.arange(2)}
    with pytest.raises(ValueError, match="layer 'layer' is called with 4 rows for 2 examples"):
        task.loss(params, {}, batch, {"dropout": jax.random.key(0)})


def test_remat_pmap_and_micro_batches_change_nothing():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.relu(Dense(6, name="dense")(x))

    class Deep(nn.Module):
        wrap: Any

        @nn.compact
        def __call__(self, x, *, train, keys=None):
            for i in range(2):
                x = self.wrap(Block)(name=f"block_{i}")(x)
            return x

    chosen = section(dropout=0.5, dora=True)
    tasks = [lora.adapt(task_of(Deep(wrap), (6,)), chosen) for wrap in (lambda m: m, nn.remat)]
    made = [jax.jit(task.init)(KEY)[0] for task in tasks]
    assert "block_1/dense/lora_m" in paths(made[0])
    jax.tree.map(np.testing.assert_array_equal, *made)
    params = shuffled(made[0])
    batch = {"x": pictures(8, 1, 6)["x"].reshape(8, 6), "id": np.arange(8)}
    rngs = {"dropout": jax.random.key(0)}

    def gradient(task, params, batch):
        return jax.grad(lambda p: task.loss(p, {}, batch, rngs).losses.sum())(params)

    plain, remat = (jax.jit(partial(gradient, task))(params, batch) for task in tasks)
    cut = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    mapped = jax.pmap(partial(gradient, tasks[1]), in_axes=(None, 0))(params, cut)
    scanned = jax.lax.map(lambda part: gradient(tasks[1], params, part), cut)
    for other in (remat, *(jax.tree.map(lambda x: x.sum(0), g) for g in (mapped, scanned))):
        jax.tree.map(
            # Float32 sums of 8 terms in another order.
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max()),
            plain,
            other,
        )


@pytest.mark.parametrize("dora", [False, True])
def test_bfloat16_is_computed_in_and_float32_is_kept(dora):
    chosen = section(dora=dora)
    wide, narrow = (
        lora.adapt(model_task("cnn", dtype=d), chosen) for d in (jnp.float32, jnp.bfloat16)
    )
    made = jax.eval_shape(narrow.init, jax.random.key(0))[0]
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    _, _, params, state = compiled("cnn", dora)
    params, batch = shuffled(params), pictures()
    text = str(jax.make_jaxpr(narrow.predict)(params, state, batch))
    kernels = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(kernels) == 4 and all("bf16" in line for line in kernels)
    a, b = (jax.jit(t.predict)(params, state, batch)["logits"] for t in (wide, narrow))
    # bfloat16 keeps 8 bits: 0.4% for each of the roundings of four layers.
    np.testing.assert_allclose(a, b, atol=0.03 * np.abs(a).max())


def test_a_column_of_zeros_gives_no_nan_with_dora():
    task = lora.adapt(
        layer_task(partial(Dense, 3, nn.initializers.zeros), (5,)), section(dora=True)
    )
    params, _ = task.init(jax.random.key(0))
    batch = {"x": np.ones((B, 5), np.float32), "id": np.arange(B)}
    grads = jax.grad(lambda p: task.loss(p, {}, batch, {"dropout": jax.random.key(0)}).losses.sum())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads(shuffled(params))))


def test_parameters_of_another_rank_are_refused():
    base = model_task("mlp")
    params, state = lora.adapt(base, section(rank=2)).init(jax.random.key(0))
    with pytest.raises(Exception, match="lora_a"):
        lora.adapt(base, section(rank=3)).predict(params, state, pictures())
