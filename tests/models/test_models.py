"""What every model promises: parameters, dtypes, intermediates, dropout by example, clear errors."""

import importlib
from contextlib import contextmanager
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import efficientnet, resnet
from research.models.layers import Dropout, batch_norm

SMALL = {
    "cnn": {
        "features": (4, 8),
        "pool": (1,),
        "padding": "SAME",
        "norm": "batch",
        "dense": (8,),
        "dropout": 0.5,
    },
    "efficientnet": {"dropout": 0.5, "drop_path": 0.5},
    "mlp": {"widths": (8, 8), "dropout": 0.5},
    "resnet": {"depth": 18, "width": 4, "dropout": 0.5},
    "vit": {"patch_size": 4, "width": 16, "depth": 2, "heads": 2, "dropout": 0.2, "drop_path": 0.5},
}


def model(name, *, classes=10, dtype=jnp.float32, axis_name=None, **options):
    module = importlib.import_module(f"research.models.{name}")
    return module.Model(num_classes=classes, dtype=dtype, axis_name=axis_name, **options)


def shapes(module, *shape):
    return jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
    )


def filled(tree):
    """Arrays for a tree of shapes: quicker than the models' own initial values, and no residual branch is zero."""
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        fan_in = max(np.prod(leaf.shape[:-1]), 1)
        return generator.standard_normal(leaf.shape).astype(np.float32) / np.float32(
            np.sqrt(fan_in)
        )

    return jax.tree_util.tree_map_with_path(fill, tree)


def count(module, *shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, *shape)["params"]))


# torchvision's, timm's and efficientnet_lite_pytorch's own numbers; the CNN's is Keras' `count_params()`.
@pytest.mark.parametrize(
    ("name", "options", "classes", "shape", "parameters"),
    [
        ("cnn", {}, 10, (28, 28, 1), 93_322),
        ("mlp", {}, 10, (28, 28, 1), 784 * 256 + 256 + 256 * 256 + 256 + 2570),
        ("resnet", {"stem": "imagenet"}, 1000, (224, 224, 3), 11_689_512),
        ("resnet", {"depth": 34, "stem": "imagenet"}, 1000, (224, 224, 3), 21_797_672),
        ("resnet", {"depth": 50, "stem": "imagenet"}, 1000, (224, 224, 3), 25_557_032),
        ("efficientnet", {}, 1000, (64, 64, 3), 4_652_008),
        ("efficientnet", {"variant": 1}, 1000, (64, 64, 3), 5_416_680),
        ("efficientnet", {"variant": 2}, 1000, (64, 64, 3), 6_092_072),
        ("efficientnet", {"variant": 3}, 1000, (64, 64, 3), 8_197_096),
        ("efficientnet", {"variant": 4}, 1000, (64, 64, 3), 13_006_568),
        ("vit", {"patch_size": 16}, 1000, (224, 224, 3), 5_717_416),
    ],
)
def test_parameter_counts(name, options, classes, shape, parameters):
    assert count(model(name, classes=classes, **options), *shape) == parameters


def test_the_default_cnn_layer_by_layer():
    found = jax.tree.map(lambda leaf: leaf.shape, shapes(model("cnn"), 28, 28, 1)["params"])
    assert found == {
        "stage1_conv1": {"kernel": (3, 3, 1, 32), "bias": (32,)},
        "stage2_conv1": {"kernel": (3, 3, 32, 64), "bias": (64,)},
        "stage3_conv1": {"kernel": (3, 3, 64, 64), "bias": (64,)},
        "dense1": {"kernel": (576, 64), "bias": (64,)},
        "head": {"kernel": (64, 10), "bias": (10,)},
    }


@contextmanager
def short(name):
    """Two of an EfficientNet's seven stages: it has no options that make it small, and pictures of 8x8 end there."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "efficientnet":
            patch.setattr(efficientnet, "STAGES", efficientnet.STAGES[:2])
        yield


@pytest.fixture(autouse=True)
def short_where_small(request):
    with short("ready" in request.fixturenames and request.node.callspec.params["ready"]):
        yield


@pytest.fixture(scope="module", params=SMALL)
def ready(request):
    """name, module, variables, x [6, 8, 8, 1], keys [6]"""
    module = model(request.param, **SMALL[request.param])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8, 8, 1)), jnp.float32)
    with short(request.param):
        variables = filled(shapes(module, 8, 8, 1))
    return request.param, module, variables, x, jax.random.split(jax.random.key(1), 6)


def test_intermediates(ready):
    _, module, variables, x, _ = ready
    logits, seen = jax.jit(lambda v: module.apply(v, x, train=False, mutable=["intermediates"]))(
        variables
    )
    seen = seen["intermediates"]
    np.testing.assert_array_equal(seen["logits"][0], logits)
    assert seen["pooled"][0].shape[0] == 6 and seen["pooled"][0].ndim == 2
    everything = jax.eval_shape(
        lambda: module.apply(
            variables, x, train=False, mutable=["intermediates"], capture_intermediates=True
        )
    )[1]
    assert set(seen) <= set(everything["intermediates"])


def test_evaluation_ignores_keys_and_neighbours(ready):
    _, module, variables, x, keys = ready
    run = jax.jit(lambda x, keys: module.apply(variables, x, train=False, keys=keys))
    whole = run(x, None)
    np.testing.assert_array_equal(run(x, keys), whole)
    np.testing.assert_allclose(run(x[2:4], None), whole[2:4], rtol=1e-4, atol=1e-5)


def test_training_masks_follow_the_example(ready):
    _, module, variables, x, keys = ready
    # A batch norm's statistics do not mind the order, up to rounding.
    run = jax.jit(
        lambda x, keys: module.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])[
            0
        ]
    )
    whole, order = run(x, keys), np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(run(x[order], keys[order]), whole[order], rtol=1e-3, atol=1e-4)
    assert np.abs(run(x, keys[order]) - whole).max() > 1e-3  # other keys, other masks
    assert np.abs(run(x, None) - whole).max() > 1e-3


def test_bfloat16_computes_and_float32_stays(ready):
    name, module, variables, x, _ = ready
    low = module.clone(dtype=jnp.bfloat16)
    found = shapes(low, 8, 8, 1)
    assert {
        leaf.dtype for leaf in jax.tree.leaves((found["params"], found.get("batch_stats")))
    } == {jnp.dtype("float32")}
    run = jax.jit(lambda v: low.apply(v, x, train=False, mutable=["intermediates"]))
    logits, seen = run(variables)
    assert logits.dtype == jnp.float32
    stage = {
        "cnn": "stage2",
        "efficientnet": "stage2",
        "mlp": "layer1",
        "resnet": "layer4",
        "vit": "block1",
    }[name]
    assert seen["intermediates"][stage][0].dtype == jnp.bfloat16
    # 8 bits of mantissa through some twenty layers.
    wide = jax.jit(lambda v: module.apply(v, x, train=False))(variables)
    np.testing.assert_allclose(logits, wide, rtol=0.1, atol=0.1)


def test_the_stages_of_an_efficientnet():
    # The paper's table 1 (Tan & Le 2019): strides and channels of B0, which Lite0 shares.
    module = model("efficientnet")
    x = jnp.zeros((1, 64, 64, 3))
    seen = jax.eval_shape(
        lambda v: module.apply(v, x, train=False, mutable=["intermediates"])[1]["intermediates"],
        shapes(module, 64, 64, 3),
    )
    assert {name: seen[name][0].shape[1:] for name in seen} == {
        "stem": (32, 32, 32),
        "stage1": (32, 32, 16),
        "stage2": (16, 16, 24),
        "stage3": (8, 8, 40),
        "stage4": (4, 4, 80),
        "stage5": (4, 4, 112),
        "stage6": (2, 2, 192),
        "stage7": (2, 2, 320),
        "pooled": (1280,),
        "logits": (10,),
    }


def test_attention_weights_can_be_asked_for():
    module = model("vit", **SMALL["vit"])
    variables, x = shapes(module, 8, 8, 1), jnp.zeros((3, 8, 8, 1))
    seen = jax.eval_shape(
        lambda v: module.apply(v, x, train=False, mutable=["intermediates"])[1]["intermediates"],
        variables,
    )
    assert seen["block_1"]["attention"][0].shape == (3, 2, 5, 5)  # four patches and the class token


@pytest.mark.parametrize(
    ("name", "options", "side", "match"),
    [
        ("cnn", {}, 8, "pictures of 8x8 are too small: nothing is left after stage 2 of 3"),
        ("cnn", {"padding": "SAME", "pool": (1, 2, 3), "features": (4, 4, 4)}, 4, "too small"),
        ("cnn", {"pool": (4,)}, 28, "names a stage that is not there"),
        ("cnn", {"head": "mean"}, 28, "config.model.head='mean' is none of flatten, avg"),
        ("efficientnet", {"variant": 5}, 28, "config.model.variant=5 is none of 0, 1, 2, 3, 4"),
        ("resnet", {"depth": 20}, 28, "config.model.depth=20 is none of 18, 34, 50"),
        ("vit", {"patch_size": 5}, 28, "cannot be cut into patches of config.model.patch_size=5"),
        ("vit", {"heads": 5}, 28, "does not divide by config.model.heads=5"),
    ],
)
def test_errors_are_one_clear_line(name, options, side, match):
    with pytest.raises(ValueError, match=match) as error:
        shapes(model(name, **options), side, side, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_new_residual_block_begins_as_its_shortcut(depth):
    conv = partial(resnet.Conv, use_bias=False)
    norm = batch_norm(train=False, dtype=jnp.float32, axis_name=None)
    block = (resnet.Basic if depth == 18 else resnet.Bottleneck)(4, 1, conv, norm)
    x = (
        np.random.default_rng(0)
        .uniform(0, 1, (2, 5, 5, 4 if depth == 18 else 16))
        .astype(np.float32)
    )
    np.testing.assert_array_equal(jax.jit(block.init_with_output)(jax.random.key(0), x)[0], x)


def test_a_batch_norm_with_another_decay_and_epsilon():
    norm = batch_norm(train=True, dtype=jnp.float32, axis_name=None, momentum=0.99, epsilon=1e-3)()
    x = np.random.default_rng(0).normal(3, 0.05, (64, 4)).astype(np.float32)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    # The variance is E[x**2] - E[x]**2 in float32, of numbers near 9.
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-3), rtol=1e-3, atol=1e-4)
    _, changed = norm.apply(variables, x, mutable=["batch_stats"])
    first, second = variables["batch_stats"]["mean"], changed["batch_stats"]["mean"]
    np.testing.assert_allclose(second, 0.99 * first + 0.01 * mean, rtol=1e-5)


def test_each_dropout_of_a_model_has_masks_of_its_own():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Dropout(0.5, name="a")(x, keys), Dropout(0.5, name="b")(x, keys)

    a, b = Two().apply({}, jnp.ones((4, 50)), jax.random.split(jax.random.key(0), 4))
    assert (a != b).any()
