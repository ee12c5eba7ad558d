"""Each family's tables: names and layouts as their libraries have them, and the same bytes back."""

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.transfer.families import cnn
from research.transfer.load import namings

CASES = [
    (model, options, naming)
    for model, variants in {
        "cnn": ({}, {"norm": "none", "convs": 2, "dense": ()}),
        "efficientnet": ({"variant": 0}, {"variant": 1}),
        "mlp": ({},),
        "resnet": ({}, {"depth": 34}, {"depth": 50, "stem": "small"}),
        "vit": ({}, {"pool": "gap"}),
    }.items()
    for options in variants
    for naming in namings(model)
]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("model, options, naming", CASES)
def test_import_and_export_give_the_same_bytes(build, model, options, naming):
    model = build(model, **options)
    trees = model.trees()
    arrays = model.dump(trees, naming)
    bare = naming == "hf_bare"
    imported = model.load(arrays, naming=naming, rules=((r"^head/", "skip"),) if bare else ())
    assert imported.naming == naming
    assert imported.skipped == (["head/bias", "head/kernel"] if bare else [])
    if bare:
        imported.params["head"] = trees[0]["head"]
    same(model.dump((imported.params, imported.model_state), naming), arrays)
    before = jax.tree_util.tree_leaves_with_path(trees)
    after = jax.tree_util.tree_leaves_with_path((imported.params, imported.model_state))
    for (path, a), (path_after, b) in zip(before, after, strict=True):
        assert path == path_after and a.tobytes() == b.tobytes() and a.dtype == b.dtype


@pytest.mark.parametrize("model, options, naming", CASES)
def test_names_are_recognised(build, model, options, naming):
    model = build(model, **options)
    arrays = model.dump(model.trees(), naming)
    taken = model.load(arrays, rules=((r"^head/", "skip"),) if naming == "hf_bare" else ()).naming
    # Names that two namings share are read in the same way by both; the first is taken.
    same(model.dump(model.trees(), taken), arrays)


def test_what_there_is():
    assert namings("mlp") == ("own",)
    assert namings("resnet") == ("own", "torchvision", "timm")
    assert namings("vit") == ("own", "timm", "hf", "hf_bare", "hf5")
    assert namings("efficientnet") == ("own", "lukemelas", "timm")
    assert namings("cnn") == ("own", "keras")


def test_a_naming_that_is_not_there(build):
    model = build("vit")
    with pytest.raises(UserError, match=r"model vit has no naming 'tim' \(did you mean 'timm'\?\)"):
        model.dump(model.trees(), "tim")
    assert "there are own, torchvision, timm" in str(build("resnet").refuses({"a": 0}, naming="x"))


def test_a_resnet_as_torchvision_has_it(build):
    model = build("resnet")
    params, state = model.trees()
    arrays = model.dump((params, state), "torchvision")
    assert len(arrays) == 122  # of torchvision's resnet18().state_dict()
    kernel = params["layer2_0"]["conv1"]["kernel"]
    weight = arrays["layer2.0.conv1.weight"]
    for h, w, i, o in [(0, 1, 2, 3), (2, 0, 1, 7)]:
        assert weight[o, i, h, w] == kernel[h, w, i, o]
    np.testing.assert_array_equal(arrays["fc.weight"], params["head"]["kernel"].T)
    stats = state["batch_stats"]["layer2_0"]["downsample_bn"]
    np.testing.assert_array_equal(arrays["layer2.0.downsample.1.running_mean"], stats["mean"])
    np.testing.assert_array_equal(arrays["layer2.0.downsample.1.running_var"], stats["var"])
    counter = arrays["bn1.num_batches_tracked"]
    assert counter.dtype == np.int64 and counter.shape == () and counter == 0


def test_an_efficientnet_as_its_libraries_have_it(build):
    model = build("efficientnet")
    params, state = model.trees()
    port = model.dump((params, state), "lukemelas")
    assert len(port) == 296  # of efficientnet-lite0's published weights
    kernel = params["block_3"]["depthwise_conv"]["kernel"]  # [5, 5, 1, 144]
    assert port["_blocks.3._depthwise_conv.weight"].shape == (144, 1, 5, 5)
    assert port["_blocks.3._depthwise_conv.weight"][100, 0, 1, 4] == kernel[1, 4, 0, 100]
    np.testing.assert_array_equal(port["_fc.weight"], params["head"]["kernel"].T)
    # timm numbers within stages, of 1, 2, 2, 3 ... blocks; its first stage lacks the expansion.
    timm = model.dump((params, state), "timm")
    for name, same_name in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.weight": "bn1.weight",
        "_bn1.weight": "bn2.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.3._bn0.running_var": "blocks.2.0.bn1.running_var",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.num_batches_tracked": "blocks.6.0.bn3.num_batches_tracked",
        "_fc.bias": "classifier.bias",
    }.items():
        np.testing.assert_array_equal(port[name], timm[same_name])
    squeezing = port | {"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1), np.float32)}
    assert "squeezes and excites" in model.refuses(squeezing)[0]


def test_counters_of_batches_may_be_there_or_not(build):
    model = build("resnet")
    arrays = model.dump(model.trees(), "timm")
    counted = {n: a + 7 if n.endswith("tracked") else a for n, a in arrays.items()}
    old = {n: a for n, a in arrays.items() if not n.endswith("tracked")}  # of PyTorch before 0.4
    for given in (counted, old):
        imported = model.load(given)
        same(model.dump((imported.params, imported.model_state), "timm"), arrays)


def test_query_key_and_value_are_apart_in_transformers(build):
    model = build("vit")
    params, state = model.trees()
    arrays = model.dump((params, state), "hf")
    qkv = params["block_1"]["qkv"]  # [12, 36]: queries, keys, values
    for i, part in enumerate(("query", "key", "value")):
        name = f"vit.encoder.layer.1.attention.attention.{part}"
        np.testing.assert_array_equal(
            arrays[f"{name}.weight"], qkv["kernel"][:, 12 * i : 12 * (i + 1)].T
        )
        np.testing.assert_array_equal(arrays[f"{name}.bias"], qkv["bias"][12 * i : 12 * (i + 1)])
    assert arrays["vit.embeddings.patch_embeddings.projection.weight"].shape == (12, 3, 4, 4)


def test_a_pooler_that_no_classifier_uses_is_left(build):
    model = build("vit")
    arrays = model.dump(model.trees(), "hf_bare")
    assert not any(name.startswith("classifier") for name in arrays)
    pooler = {"pooler.dense.weight": np.zeros((12, 12), np.float32)}
    imported = model.load(arrays | pooler, rules=((r"^head/", "skip"),))
    assert imported.naming == "hf_bare" and imported.params["head"] == {
        "kernel": None,
        "bias": None,
    }
    assert model.refuses(arrays)[0] == (
        "the pretrained arrays: a ViTModel of transformers has no 'head/bias'; add (r'^head/', 'skip') to keep the "
        "fresh value"
    )


@pytest.mark.parametrize(
    "name, says",
    [
        ("dist_token", "(a distilled DeiT)"),
        ("fc_norm.weight", "norms after the mean"),
        ("blocks.0.ls1.gamma", "LayerScale"),
    ],
)
def test_vits_that_compute_something_else_are_refused(build, name, says):
    model = build("vit")
    arrays = model.dump(model.trees(), "timm") | {name: np.zeros((1, 1, 12), np.float32)}
    (line,) = model.refuses(arrays, source="torch:deit.pth")
    assert line.startswith(f"torch:deit.pth: holds '{name}'") and says in line


def test_a_cnn_as_keras_has_it(build):
    model = build("cnn")
    params, state = model.trees()
    arrays = model.dump((params, state), "keras")
    assert set(arrays) == {
        *(f"stage{i}_conv1/kernel" for i in (1, 2)),
        *(
            f"stage{i}_norm1/{name}"
            for i in (1, 2)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        ),
        *(f"{name}/{leaf}" for name in ("dense1", "head") for leaf in ("kernel", "bias")),
    }
    assert arrays["stage2_norm1/gamma"] is not None
    norm = params["stage2_norm1"], state["batch_stats"]["stage2_norm1"]
    np.testing.assert_array_equal(arrays["stage2_norm1/beta"], norm[0]["bias"])
    np.testing.assert_array_equal(arrays["stage2_norm1/moving_variance"], norm[1]["var"])
    np.testing.assert_array_equal(arrays["stage2_conv1/kernel"], params["stage2_conv1"]["kernel"])


def renamed(arrays, names):
    """Arrays of Keras with other layer names, in the order of `names`."""
    return {
        f"{new}/{name.partition('/')[2]}": array
        for old, new in names.items()
        for name, array in arrays.items()
        if name.partition("/")[0] == old
    }


OTHERS = {
    "stage1_conv1": "conv2d_9",
    "stage1_norm1": "batch_normalization_9",
    "stage2_conv1": "conv2d_10",
    "stage2_norm1": "a_norm",
    "dense1": "z",
    "head": "a",
}


def test_a_keras_file_with_other_names_is_read_by_order_and_kind(build):
    model = build("cnn")
    arrays = model.dump(model.trees(), "keras")
    imported = model.load(renamed(arrays, OTHERS))
    assert imported.naming == "keras"
    same(model.dump((imported.params, imported.model_state), "keras"), arrays)


def test_the_tenth_layer_comes_after_the_second(build):
    model = build("cnn", norm="none", features=tuple(range(1, 12)), pool=(), dense=())
    arrays = model.dump(model.trees(), "keras")
    order = [f"stage{i}_conv1" for i in range(1, 12)]
    other = renamed(arrays, {name: f"conv2d_{i}" for i, name in enumerate(order)} | {"head": "d"})
    imported = model.load(other)
    same(model.dump((imported.params, imported.model_state), "keras"), arrays)


def test_layers_that_have_our_names_are_those_in_any_order(build, tmp_path):
    """A safetensors file lies in the order of names, where stage10 comes before stage2."""
    from research.transfer.formats import safetensors

    model = build("cnn", norm="none", features=(4,) * 11, pool=(), dense=())
    arrays = model.dump(model.trees(), "keras")
    other = {name.replace("head/", "a/"): array for name, array in arrays.items()}
    safetensors.write(tmp_path / "f.safetensors", other, {})
    read = safetensors.read(tmp_path / "f.safetensors")
    assert list(read).index("stage10_conv1/kernel") < list(read).index("stage2_conv1/kernel")
    imported = model.load(read)
    same(model.dump((imported.params, imported.model_state), "keras"), arrays)


def test_messages_about_a_keras_file_use_its_own_names(build):
    model = build("cnn")
    arrays = renamed(model.dump(model.trees(), "keras"), OTHERS)
    arrays["a/kernel"] = np.zeros((6, 3), np.float32)
    arrays["third/kernel"] = np.zeros((3, 3, 8, 8), np.float32)
    shape, extra = model.refuses(arrays)
    assert "'a/kernel' is [6, 3], but 'head/kernel' needs [6, 5]" in shape
    assert "nothing here takes array 'third/kernel'" in extra
    skip = ((r"^head/", "skip"), (r"^third/", "skip"))
    assert model.load(arrays, rules=skip).skipped == ["head/bias", "head/kernel"]


def test_the_layers_of_a_keras_model():
    from research.transfer.families.cnn import architecture

    options = {"features": (4, 8), "norm": "batch", "dense": (6,), "dropout": 0.25, "pool": (2,)}
    config = architecture(options, (28, 20, 1), 5)
    assert [(layer["class_name"], layer["config"]["name"]) for layer in config["layers"]] == [
        ("InputLayer", "input"),
        ("Conv2D", "stage1_conv1"),
        ("BatchNormalization", "stage1_norm1"),
        ("ReLU", "stage1_relu1"),
        ("Conv2D", "stage2_conv1"),
        ("BatchNormalization", "stage2_norm1"),
        ("ReLU", "stage2_relu1"),
        ("MaxPooling2D", "stage2_pool"),
        ("Flatten", "pooled"),
        ("Dropout", "dropout1"),
        ("Dense", "dense1"),
        ("Dropout", "dropout_head"),
        ("Dense", "head"),
    ]
    by_name = {layer["config"]["name"]: layer["config"] for layer in config["layers"]}
    assert by_name["stage1_norm1"]["epsilon"] == 1e-5
    assert by_name["stage1_norm1"]["momentum"] == 0.9
    assert by_name["input"]["batch_shape"] == [None, 28, 20, 1]
    assert by_name["head"]["units"] == 5


def test_what_a_keras_file_says_beside_its_arrays_is_compared():
    options = {"norm": "batch", "padding": "SAME", "norm_epsilon": 1e-5, "dropout": 0.1}
    same = cnn.architecture(options, (8, 8, 1), 3)["layers"]
    assert cnn.mismatches(same, options) == []

    def changed(kind, **config):
        layers = [dict(layer, config=dict(layer["config"])) for layer in same]
        next(x for x in layers if x["class_name"] == kind)["config"].update(config)
        (line,) = cnn.mismatches(layers, options)
        return line

    assert "set config.model.norm_epsilon=0.001" in changed("BatchNormalization", epsilon=1e-3)
    assert "set config.model.padding=VALID" in changed("Conv2D", padding="valid")
    assert "no strides" in changed("Conv2D", strides=[2, 2])
    assert "pools 2x2" in changed("MaxPooling2D", pool_size=[3, 3])
    assert "no gelu" in changed("Dense", activation="gelu")
    other = [*same, {"class_name": "LSTM", "config": {"name": "lstm"}}]
    assert "LSTM" in cnn.mismatches(other, options)[0]
