"""Weights of torchvision, timm, transformers and Keras: the same logits after import, and theirs after export.

float32 throughout. Logits here are of size 1 to 5, and sums over up to 4,608 products in another order, layer after
layer, move them by some 1e-5 (ResNet-50: 4e-5): 1e-4 leaves room for other machines and is far below what a wrong
layout, epsilon or order of query, key and value would give.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.transfer.load import dump, load

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
CLASSES = 7


class Ours:
    """A model of this project, its shapes, and its logits for imported trees."""

    def __init__(self, name, shape, **options):
        module = importlib.import_module(f"research.models.{name}")
        self.module = module.Model(
            num_classes=CLASSES, dtype=jnp.float32, axis_name=None, **options
        )
        shapes = jax.eval_shape(
            lambda: self.module.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
        )
        self.params = shapes.pop("params")
        self.model_state = shapes
        self.name, self.options = name, options
        self._apply = jax.jit(lambda v, x: self.module.apply(v, x, train=False))

    def load(self, arrays, **how):
        return load(
            arrays,
            model=self.name,
            options=self.options,
            params=self.params,
            model_state=self.model_state,
            **how,
        )

    def dump(self, params, model_state, naming):
        return dump(params, model_state, model=self.name, options=self.options, naming=naming)

    def logits(self, trees, x):
        return np.asarray(self._apply({"params": trees[0], **trees[1]}, x))


def pictures(*shape):
    return np.random.default_rng(1).standard_normal((3, *shape), np.float32)


def tuned(imported):
    """The trees after something like fine-tuning; variances stay positive."""
    generator = np.random.default_rng(2)

    def move(leaf):
        noise = generator.standard_normal(leaf.shape).astype(np.float32)
        return leaf * (1 + np.float32(0.02) * noise)

    return jax.tree.map(move, (imported.params, imported.model_state))


def randomise(module, x=None):
    """Random norms, biases and tables in a torch module; matrices keep its own random values.

    Batch statistics are those of pictures like x, moved at random: with others, nothing of the picture would be left
    after a few blocks, and those of three pictures alone have variances near 0, which magnify rounding.
    """
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith(("running_var", "running_mean", "num_batches_tracked")):
                continue
            if tensor.ndim == 1 and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1 or tensor.ndim == 3:
                tensor.normal_(0, 0.2, generator=generator)
            elif name.startswith(("fc.", "head.", "classifier.", "_fc.")):
                tensor.normal_(0, 0.4 / tensor.shape[1] ** 0.5, generator=generator)
            elif tensor.std() < 0.03:  # a Transformer's own: too small for a norm to be seen
                tensor.normal_(0, 1 / tensor[0].numel() ** 0.5, generator=generator)
        norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        if norms:
            many = torch.randn(16, x.shape[3], *x.shape[1:3], generator=generator)
            module.train()(many)
        for norm in norms:
            scale = torch.empty_like(norm.running_var)
            norm.running_var *= scale.uniform_(0.7, 1.4, generator=generator)
            norm.running_mean += 0.1 * scale.normal_(generator=generator)
    return module.eval()


def compare(theirs, ours, x, *, naming, run=None):
    """Import, compare; tune, export, load strictly there, compare. theirs: a torch module; x [B, H, W, K]."""
    torch = pytest.importorskip("torch")
    randomise(theirs, x)

    def run_theirs():
        with torch.no_grad():
            out = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        return (out if run is None else run(out)).numpy()

    arrays = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    imported = ours.load(arrays)
    assert imported.naming == naming
    before = run_theirs()
    assert 0.1 < np.abs(before).max() < 50  # or the bound would mean nothing
    assert len(x) == 1 or np.ptp(before, 0).max() > 1000 * TOLERANCE  # it depends on the picture
    np.testing.assert_allclose(ours.logits(imported, x), before, rtol=0, atol=TOLERANCE)

    trees = tuned(imported)
    exported = ours.dump(*trees, naming)
    state = {name: torch.from_numpy(array.copy()) for name, array in exported.items()}
    theirs.load_state_dict(state, strict=True)
    after = run_theirs()
    assert np.abs(after - before).max() > 100 * TOLERANCE
    np.testing.assert_allclose(ours.logits(trees, x), after, rtol=0, atol=TOLERANCE)
    return exported


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnets_of_torchvision(depth):
    pytest.importorskip("torch")
    models = pytest.importorskip("torchvision").models
    theirs = getattr(models, f"resnet{depth}")(num_classes=CLASSES)
    ours = Ours("resnet", (64, 64, 3), depth=depth, stem="imagenet")
    compare(theirs, ours, pictures(64, 64, 3), naming="torchvision")


@pytest.mark.parametrize("depth", [18, 50])
def test_resnets_of_timm(depth):
    pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"resnet{depth}", num_classes=CLASSES)
    ours = Ours("resnet", (64, 64, 3), depth=depth, stem="imagenet")
    exported = compare(theirs, ours, pictures(64, 64, 3), naming="torchvision")
    assert exported.keys() == theirs.state_dict().keys()


SMALL = {"patch_size": 8, "width": 48, "depth": 3, "heads": 3}


@pytest.mark.parametrize("pool", ["cls", "gap"])
def test_vits_of_timm(pool):
    pytest.importorskip("torch")
    vit = pytest.importorskip("timm").models.vision_transformer
    cls = pool == "cls"
    theirs = vit.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=CLASSES,
        class_token=cls,
        global_pool="token" if cls else "avg",
        fc_norm=False,
    )
    ours = Ours("vit", (32, 32, 3), pool=pool, **SMALL)
    compare(theirs, ours, pictures(32, 32, 3), naming="timm")


@pytest.mark.parametrize("name, width, heads", [("vit_tiny", 192, 3), ("deit_small", 384, 6)])
def test_vits_of_timm_in_full_size(name, width, heads):
    pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"{name}_patch16_224", num_classes=CLASSES)
    ours = Ours("vit", (224, 224, 3), patch_size=16, width=width, depth=12, heads=heads)
    compare(theirs, ours, pictures(224, 224, 3)[:1], naming="timm")


def hugging_face(kind="ViTForImageClassification", **options):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    return getattr(transformers, kind)(config, **options)


def test_vits_of_transformers_in_memory():
    pytest.importorskip("torch")
    theirs = hugging_face()
    if "vit.encoder.layer.0.attention.attention.query.weight" in theirs.state_dict():
        naming = "hf"  # transformers 4
    else:
        naming = "hf5"
    ours = Ours("vit", (32, 32, 3), **SMALL)
    compare(theirs, ours, pictures(32, 32, 3), naming=naming, run=lambda out: out.logits)


def test_vits_of_transformers_in_files(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = randomise(hugging_face())
    theirs.save_pretrained(tmp_path)
    arrays = safetensors.load_file(tmp_path / "model.safetensors")
    ours = Ours("vit", (32, 32, 3), **SMALL)
    imported = ours.load(arrays)
    assert imported.naming == "hf"
    trees = tuned(imported)
    safetensors.save_file(
        ours.dump(*trees, "hf"), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    again, info = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    x = pictures(32, 32, 3)
    with torch.no_grad():
        logits = again.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).logits.numpy()
    np.testing.assert_allclose(ours.logits(trees, x), logits, rtol=0, atol=TOLERANCE)


def test_a_bare_vit_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = randomise(hugging_face("ViTModel"))
    theirs.save_pretrained(tmp_path)
    ours = Ours("vit", (32, 32, 3), **SMALL)
    imported = ours.load(
        safetensors.load_file(tmp_path / "model.safetensors"), rules=((r"^head/", "skip"),)
    )
    assert (imported.naming, imported.skipped) == ("hf_bare", ["head/bias", "head/kernel"])
    # A head that shows the features themselves.
    imported.params["head"] = {
        "kernel": np.eye(48, CLASSES, dtype=np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    x = pictures(32, 32, 3)
    with torch.no_grad():
        out = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state
    features = out[:, 0, :CLASSES].numpy()
    np.testing.assert_allclose(ours.logits(imported, x), features, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", [0, 2])
def test_efficientnets_of_the_pytorch_port(variant):
    pytest.importorskip("torch")
    port = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = port.EfficientNet.from_name(
        f"efficientnet-lite{variant}", num_classes=CLASSES, image_size=64
    )
    ours = Ours("efficientnet", (64, 64, 3), variant=variant)
    compare(theirs, ours, pictures(64, 64, 3), naming="lukemelas")


@pytest.mark.parametrize("variant", [0, 1, 2, 3, 4])
def test_efficientnets_of_timm(variant):
    pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"tf_efficientnet_lite{variant}", num_classes=CLASSES)
    ours = Ours("efficientnet", (64, 64, 3), variant=variant)
    compare(theirs, ours, pictures(64, 64, 3), naming="timm")


@pytest.mark.parametrize("size", [(7, 14), (14, 7), (7, 10), (14, 24), (10, 9)])
@pytest.mark.parametrize("cls", [0, 1])
def test_positions_are_resampled_as_timm_does(size, cls):
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("timm").layers
    from research.transfer.resize import positions

    old, new = size
    table = np.random.default_rng(0).standard_normal((1, old**2 + cls, 8), np.float32)
    theirs = layers.resample_abs_pos_embed(
        torch.from_numpy(table), [new, new], num_prefix_tokens=cls
    )
    # Theirs computes in float32, of numbers of size 1: some 1e-6.
    np.testing.assert_allclose(positions(table, new**2 + cls), theirs.numpy(), atol=5e-6)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_first_convolutions_are_adapted_as_timm_does(count):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    from research.transfer.resize import channels

    kernel = np.random.default_rng(0).standard_normal((8, 3, 5, 5), np.float32)
    theirs = timm.models.adapt_input_conv(count, torch.from_numpy(kernel)).numpy()
    ours = channels(kernel.transpose(2, 3, 1, 0), count).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # three numbers are added
    assert ours.dtype == np.float32


CNNS = {
    "default": {},
    "batch": {"norm": "batch", "padding": "SAME", "features": (8, 16), "dense": (12, 6)},
    "average": {"norm": "batch", "head": "avg", "convs": 2, "kernel": 5, "padding": "SAME"},
    "bare": {"features": (6,), "pool": (), "dense": (), "dropout": 0.3},
    "dropout": {"dropout": 0.5, "dense": (9,), "pool": (1, 2), "features": (5, 7)},
}


def sequential(ours, shape):
    """Our architecture built by Keras from its configuration, with random variables."""
    keras = pytest.importorskip("keras")
    from research.transfer.families.cnn import architecture

    config = architecture(ours.options, shape, CLASSES)
    layers = [
        {"module": "keras.layers", "registered_name": None, **layer} for layer in config["layers"]
    ]
    model = keras.Sequential.from_config({**config, "layers": layers})
    generator = np.random.default_rng(4)
    for variable in model.weights:
        if "seed" in variable.path:
            continue
        fan_in = max(np.prod(variable.shape[:-1]), 1)
        value = generator.standard_normal(variable.shape) / np.sqrt(fan_in)
        if variable.name in ("gamma", "moving_variance"):
            value = generator.uniform(0.5, 1.5, variable.shape)
        variable.assign(value.astype(np.float32))
    return model


def variables(model):
    return {
        f"{layer.name}/{variable.name}": variable
        for layer in model.layers
        for variable in layer.weights
        if "seed" not in variable.path
    }


@pytest.mark.parametrize("case", CNNS)
def test_cnns_of_keras(case):
    ours = Ours("cnn", (28, 28, 1), **CNNS[case])
    theirs = sequential(ours, (28, 28, 1))
    x = pictures(28, 28, 1)
    arrays = {name: np.asarray(v.value) for name, v in variables(theirs).items()}
    imported = ours.load(arrays, naming="keras")
    before = np.asarray(theirs(x, training=False))
    np.testing.assert_allclose(ours.logits(imported, x), before, rtol=0, atol=TOLERANCE)

    trees = tuned(imported)
    exported = ours.dump(*trees, "keras")
    assert exported.keys() == arrays.keys()
    for name, variable in variables(theirs).items():
        variable.assign(exported[name])
    after = np.asarray(theirs(x, training=False))
    assert np.abs(after - before).max() > 10 * TOLERANCE
    np.testing.assert_allclose(ours.logits(trees, x), after, rtol=0, atol=TOLERANCE)


def test_dropout_of_keras_is_where_ours_is():
    ours = Ours("cnn", (28, 28, 1), **CNNS["dropout"])
    theirs = sequential(ours, (28, 28, 1))
    kinds = [(type(layer).__name__, layer.name) for layer in theirs.layers]
    assert kinds[-4:] == [
        ("Dropout", "dropout1"),
        ("Dense", "dense1"),
        ("Dropout", "dropout_head"),
        ("Dense", "head"),
    ]
    assert [layer.rate for layer in theirs.layers if "dropout" in layer.name] == [0.5, 0.5]


def test_a_keras_cnn_whose_layers_are_called_otherwise():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    theirs = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(epsilon=1e-5),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="second"),
            layers.BatchNormalization(epsilon=1e-5),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(12, activation="relu"),
            layers.Dense(CLASSES, name="logits"),
        ]
    )
    ours = Ours(
        "cnn",
        (28, 28, 1),
        norm="batch",
        padding="SAME",
        features=(8, 8),
        pool=(1,),
        dense=(12,),
        dropout=0.5,
    )
    generator = np.random.default_rng(0)
    for variable in variables(theirs).values():
        variable.assign(variable + generator.uniform(-0.1, 0.1, variable.shape).astype(np.float32))
    imported = ours.load({name: np.asarray(v.value) for name, v in variables(theirs).items()})
    assert imported.naming == "keras"
    x = pictures(28, 28, 1)
    np.testing.assert_allclose(
        ours.logits(imported, x), np.asarray(theirs(x, training=False)), rtol=0, atol=TOLERANCE
    )
