"""Adapters against PEFT's, for copied values: the layers' outputs and the merged weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.config import defaults
from research.models.layers import Conv, Dense
from research.task import Task
from research.transfer import lora

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

RANK, ALPHA = 2, 3.0
LAYERS = {
    "dense": (partial(Dense, 7), torch.nn.Linear(5, 7), (4, 5)),
    "conv": (partial(Conv, 6, 3, 1, 1), torch.nn.Conv2d(3, 6, 3, 1, 1), (4, 8, 8, 3)),
    "strided": (partial(Conv, 6, 3, 2, 1), torch.nn.Conv2d(3, 6, 3, 2, 1), (4, 8, 8, 3)),
    "embed": (partial(nn.Embed, 11, 4), torch.nn.Embedding(11, 4), (4, 3)),
}


@pytest.fixture(scope="module", autouse=True)
def library(torchvision_imports):
    """PEFT imports torchvision, which may need help first."""
    global peft
    peft = pytest.importorskip("peft")


class One(nn.Module):
    make: partial

    @nn.compact
    def __call__(self, x, *, train, keys=None):
        return self.make(name="layer")(x)


def theirs_of(layer, **how):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layer": layer})
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["layer"], init_lora_weights=True, **how
    )
    return peft.get_peft_model(model, config).eval().base_model.model["layer"]


def values(layer, kind, dora):
    """PEFT's values under our names and in our layouts."""
    p = {k: np.asarray(v.detach()) for k, v in layer.named_parameters()}
    weight = p["base_layer.weight"]
    if kind == "embed":
        ours = {"embedding": weight, "lora_a": p["lora_embedding_A.default"].T}
        ours["lora_b"] = p["lora_embedding_B.default"].T
        norm = np.linalg.norm(weight, axis=0)
    else:
        turn = (lambda w: w.T) if kind == "dense" else (lambda w: w.transpose(2, 3, 1, 0))
        ours = {"kernel": turn(weight), "bias": p["base_layer.bias"]}
        ours["lora_a"] = turn(p["lora_A.default.weight"])
        ours["lora_b"] = p["lora_B.default.weight"].reshape(-1, RANK).T
        norm = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    if dora:  # ours is relative to the norm of the base's columns
        ours["lora_m"] = p["lora_magnitude_vector.default.weight"].ravel() / norm
    return {"layer": ours}


@pytest.mark.parametrize("how", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_merged_weights_are_those_of_peft(kind, how):
    make, layer, shape = LAYERS[kind]
    kind_of = "conv" if kind == "strided" else kind
    theirs = theirs_of(layer, use_rslora=how == "rslora", use_dora=how == "dora")
    config = defaults().lora
    config.update(
        dict(rank=RANK, alpha=ALPHA, rslora=how == "rslora", dora=how == "dora", train=())
    )
    model, rng = One(make), np.random.default_rng(0)
    x = rng.integers(0, 11, shape) if kind == "embed" else rng.standard_normal(shape)
    x = x.astype(np.int32 if kind == "embed" else np.float32)

    def apply(params, state, batch):
        return model.apply({"params": params}, batch, train=False)

    task = Task(
        **{**dict.fromkeys(Task._fields), **Task._field_defaults}
        | dict.fromkeys(("init", "loss", "predict"), apply)
    )
    task = task._replace(
        init=lambda key: model.init(key, jnp.asarray(x), train=False),
        intermediates=apply,
        features=apply,
    )
    adapted = lora.adapt(task, config)

    for name, p in theirs.named_parameters():  # as if trained
        if "lora_" in name:
            with torch.no_grad():
                factor = 0.3 * torch.randn_like(p)
                p.copy_(p * (1 + factor) if "magnitude" in name else p + factor)
    ours = values(theirs, kind_of, how == "dora")
    made = jax.eval_shape(adapted.init, jax.random.key(0))["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(np.shape, ours)

    there = torch.from_numpy(x if kind_of != "conv" else x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = theirs(there).numpy()
        plain = theirs.base_layer(there).numpy()
    if kind_of == "conv":
        want, plain = want.transpose(0, 2, 3, 1), plain.transpose(0, 2, 3, 1)
    assert np.abs(want - plain).max() > 0.1  # the adapter does something
    got = adapted.predict(ours, {}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)  # up to 27 terms of size 1 in float32

    merged = lora.merge(ours, config)
    theirs.merge()
    whole = values(theirs, kind_of, False)["layer"]
    name = "embedding" if kind == "embed" else "kernel"
    np.testing.assert_allclose(merged["layer"][name], whole[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_first_values_are_drawn_as_pefts(kind):
    make, shape = {
        "dense": (partial(Dense, 400), (1, 300)),
        "conv": (partial(Conv, 400, 3), (1, 4, 4, 30)),
    }[kind]
    layer = {"dense": torch.nn.Linear(300, 400), "conv": torch.nn.Conv2d(30, 400, 3)}[kind]
    theirs = values(theirs_of(layer), kind, False)["layer"]
    config = defaults().lora
    config.update(dict(rank=RANK, train=()))
    task = Task(**{**dict.fromkeys(Task._fields), **Task._field_defaults})._replace(
        init=lambda key: One(make).init(key, jnp.zeros(shape), train=False),
        **dict.fromkeys(("loss", "predict", "intermediates", "features"), len),
    )
    ours = lora.adapt(task, config).init(jax.random.key(0))["params"]["layer"]
    assert not np.any(ours["lora_b"]) and not np.any(theirs["lora_b"])
    a, b = np.asarray(ours["lora_a"]), theirs["lora_a"]
    assert a.shape == b.shape
    # 540 or more draws of a uniform: the extremes are within 3% of the bound, the deviation within 10%.
    assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.03)
    assert a.std() == pytest.approx(b.std(), rel=0.1)
