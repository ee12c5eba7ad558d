"""Adapters in PEFT's format without PEFT: what files say by its formula, what comes back, and what is refused."""

import importlib
import json
import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from research.config import defaults
from research.errors import UserError
from research.transfer import peft
from research.transfer.formats import safetensors
from research.transfer.load import flat
from research.transfer.recognise import named
from research.transfer.tables import entries, written

SMALL = {
    "vit": (dict(patch_size=4, width=12, depth=2, heads=2), dict(num_classes=5)),
    "resnet": (dict(depth=18, width=4, stem="imagenet"), dict(num_classes=5)),
    "efficientnet": (dict(variant=0), dict(num_classes=5)),
    "transformer": (
        dict(width=12, depth=2, heads=2, hidden=16, context=8),
        dict(vocab_size=11, outputs=5, head="lm"),
    ),
}
DISTILBERT = dict(
    width=12, depth=2, heads=2, hidden=16, context=8, causal=False, prenorm=False, final_norm=False,
    embed_norm=True, pool="first", pooler="relu",
)  # fmt: skip
RANK = 2
PREFIX = "base_model.model."


@cache
def shapes_of(model):
    """{path: shape} of the plain model's parameters."""
    options, given = SMALL[model]
    module = importlib.import_module(f"research.models.{model}").Model(
        dtype=jnp.float32, axis_name=None, **given, **options
    )
    x = jnp.zeros((1, 6), jnp.int32) if model == "transformer" else jnp.zeros((1, 16, 16, 3))
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))["params"]
    return {path: leaf.shape for path, leaf in flat(made).items()}


def section(**how):
    config = defaults().lora
    config.update(dict(rank=RANK, alpha=3.0, train=(r"^head/",)) | how)
    return config


def adapted_shapes(model, lora):
    """What research/transfer/lora_layers.py would make, written out."""
    shapes = dict(shapes_of(model))
    for path, shape in shapes_of(model).items():
        layer, _, leaf = path.rpartition("/")
        chosen = any(re.match(pattern, layer) for pattern in lora.layers)
        kept = any(re.match(pattern, path) for pattern in lora.train)
        if leaf not in ("kernel", "embedding") or kept or not chosen or not lora.rank:
            continue
        depthwise = len(shape) == 4 and shape[2] == 1
        inputs = (math.prod(shape[:2]),) if depthwise else shape[:-1]
        shapes[f"{layer}/lora_a"] = (*inputs, lora.rank)
        shapes[f"{layer}/lora_b"] = (lora.rank, shape[-1])
        if lora.dora:
            shapes[f"{layer}/lora_m"] = shape[-1:]
    return shapes


class Setting:
    """A model with random adapters, and how it is written and read."""

    def __init__(self, model, naming, **how):
        self.lora = section(**how)
        self.shapes = adapted_shapes(model, self.lora)
        generator = np.random.default_rng(0)
        self.leaves = {
            path: generator.standard_normal(shape).astype(np.float32)
            for path, shape in self.shapes.items()
        }
        self.base = {path: leaf for path, leaf in self.leaves.items() if "/lora_" not in path}
        for path in self.base:
            if any(re.match(pattern, path) for pattern in self.lora.train):
                self.base[path] = self.base[path] / 2  # what was trained is no longer the base's
        self.about = dict(model=model, options=SMALL[model][0])
        self.naming = naming

    def write(self, folder, **how):
        given = dict(naming=self.naming) | self.about | how
        peft.write(folder, _nested(self.leaves), self.lora, **given)
        return safetensors.read(folder / peft.ARRAYS), json.loads(
            (folder / peft.SETTINGS).read_text()
        )

    def read(self, folder, lora=None, **how):
        lora = lora or self.lora
        shapes = adapted_shapes(self.about["model"], lora)
        return peft.read(folder, lora, shapes=shapes, **(dict(base=self.base) | self.about | how))

    def refuses(self, folder, lora=None, **how):
        with pytest.raises(UserError) as caught:
            self.read(folder, lora, **how)
        return str(caught.value).split("\n")


def _nested(leaves):
    nested = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        inside = nested
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[name] = leaf
    return nested


LAYERS = {
    ("vit", "timm"): (r".*",),
    ("vit", "hf5"): (r"block_0/.*", r"patch_embed$"),
    ("resnet", "torchvision"): (r"layer.*",),
    ("transformer", "gpt2"): (r"position$", r"block_0/attention/(query|value)$", r"block_1/.*"),
    ("transformer", "gpt2 whole"): (r"block_.*",),
}


@pytest.fixture(params=LAYERS, ids=" ".join)
def where(request):
    model, naming = request.param
    train = () if model == "transformer" else (r"^head/",)
    return model, naming.split()[0], dict(layers=LAYERS[request.param], train=train)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_what_is_written_comes_back(where, kind, tmp_path):
    model, naming, how = where
    setting = Setting(model, naming, **how, **({} if kind == "lora" else {kind: True}))
    setting.write(tmp_path)
    found = setting.read(tmp_path)
    # Neither the base nor the values may be needed to find out whose names these are.
    assert found.naming == naming or set(SMALL) & {model} == {"transformer"}
    expected = {
        path
        for path in setting.shapes
        if "/lora_" in path or any(re.match(p, path) for p in setting.lora.train)
    }
    assert found.values.keys() == expected
    for path, value in found.values.items():
        if path.endswith("lora_m"):  # times a norm and divided by it: the last bit
            np.testing.assert_allclose(value, setting.leaves[path], rtol=2.5e-7)
        else:
            assert value.tobytes() == setting.leaves[path].tobytes(), path


@pytest.mark.parametrize("rslora", [False, True])
def test_kernels_change_by_peft_s_formula_as_by_ours(where, rslora, tmp_path):
    model, naming, how = where
    setting = Setting(model, naming, **how, rslora=rslora)
    arrays, settings = setting.write(tmp_path)
    changes = {}
    for name, a in arrays.items():
        module = name.removeprefix(PREFIX)
        if ".lora_A." in name or name.endswith(".lora_embedding_A"):
            module = module.split(".lora_")[0]
            b = arrays[name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
            r = settings["rank_pattern"].get(module, settings["r"])
            alpha = settings["alpha_pattern"].get(module, settings["lora_alpha"])
            assert len(a) == r
            scale = alpha / (math.sqrt(r) if settings["use_rslora"] else r)
            change = scale * (b.reshape(len(b), r) @ a.reshape(r, -1))
            if a.ndim == 4:
                change = change.reshape(len(b), *a.shape[1:])
            if "lora_embedding" in name or settings["fan_in_fan_out"]:
                change = change.T
            changes[module] = change
    assert set(settings["target_modules"]) == changes.keys()
    plain = shapes_of(model)
    s = 3.0 / (math.sqrt(RANK) if rslora else RANK)
    ours = {path: np.zeros(shape, np.float32) for path, shape in plain.items()}
    for path in plain:
        layer = path.rpartition("/")[0]
        if path.endswith(("kernel", "embedding")) and f"{layer}/lora_a" in setting.leaves:
            a, b = (setting.leaves[f"{layer}/lora_{x}"] for x in "ab")
            ours[path] = (s * (a.reshape(-1, RANK) @ b)).reshape(plain[path])
    theirs = written(entries(named(model, naming), plain, SMALL[model][0]), ours)
    touched = {name.removesuffix(".weight") for name, x in theirs.items() if np.any(x)}
    assert touched == changes.keys()
    for module, change in changes.items():
        # Sums of two products in float32, and zeros beside them.
        np.testing.assert_allclose(change, theirs[f"{module}.weight"], rtol=1e-5, atol=1e-5)


def test_magnitudes_are_absolute_there(tmp_path):
    setting = Setting("vit", "hf5", layers=(r"block_0/qkv$", r"patch_embed$"), dora=True)
    arrays, settings = setting.write(tmp_path)
    assert settings["use_dora"]
    norms = np.linalg.norm(setting.leaves["block_0/qkv/kernel"], axis=0)
    m = norms * setting.leaves["block_0/qkv/lora_m"]
    for part, wanted in zip("qkv", np.split(m, 3), strict=True):
        name = f"{PREFIX}vit.layers.0.attention.{part}_proj.lora_magnitude_vector"
        np.testing.assert_allclose(arrays[name], wanted, rtol=1e-6)
    name = f"{PREFIX}vit.embeddings.patch_embeddings.projection.lora_magnitude_vector"
    assert arrays[name].shape == (1, 12, 1, 1)


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    for folder in "ab":
        Setting("vit", "hf5").write(tmp_path / folder, base="models/vit", task_type="")
    for name in (peft.ARRAYS, peft.SETTINGS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    settings = json.loads((tmp_path / "a" / peft.SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == "models/vit"
    assert settings["modules_to_save"] == ["classifier"] and settings["peft_type"] == "LORA"


def test_a_name_that_is_the_end_of_others_is_a_pattern(tmp_path):
    """PEFT takes 'conv1' for 'layer1.0.conv1' too."""
    _, settings = Setting("resnet", "torchvision", layers=(r"conv_stem$|conv1$|stem.*",)).write(
        tmp_path
    )
    targets = settings["target_modules"]
    assert isinstance(targets, str)
    assert re.fullmatch(targets, "conv1") and not re.fullmatch(targets, "layer1.0.conv1")


def test_bfloat16_and_what_peft_adds_for_embeddings_are_read(tmp_path):
    setting = Setting("transformer", "gpt2", layers=(r"block_0/mlp/up$",), train=())
    arrays, _ = setting.write(tmp_path)
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    narrow[f"{PREFIX}transformer.wte.base_layer.weight"] = setting.leaves["embed/embedding"]
    safetensors.write(tmp_path / peft.ARRAYS, narrow, {"format": "pt"})
    values = setting.read(tmp_path).values
    assert "embed/embedding" not in values
    wide = setting.leaves["block_0/mlp/up/lora_a"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(values["block_0/mlp/up/lora_a"], wide)
    narrow[f"{PREFIX}transformer.wte.base_layer.weight"] = setting.leaves["embed/embedding"] + 1
    safetensors.write(tmp_path / peft.ARRAYS, narrow, {"format": "pt"})
    (line,) = setting.refuses(tmp_path)
    assert "stands on another model" in line


def test_adapters_of_a_bare_model_are_read(tmp_path):
    setting = Setting("transformer", "gpt2", layers=(r"block_.*",), train=())
    arrays, _ = setting.write(tmp_path)
    bare = {name.replace("model.transformer.h", "model.h"): x for name, x in arrays.items()}
    assert bare.keys() != arrays.keys()
    safetensors.write(tmp_path / peft.ARRAYS, bare, {"format": "pt"})
    path = "block_1/attention/value/lora_b"
    np.testing.assert_array_equal(setting.read(tmp_path).values[path], setting.leaves[path])


REFUSED = {
    "peft_type": ("IA3", "only LORA"),
    "bias": ("all", "merge it in PEFT"),
    "init_lora_weights": ("pissa_niter_4", "path_initial_model_for_weight_conversion"),
    "lora_bias": (True, "biases in its factors"),
    "trainable_token_indices": ([1], "replaces rows"),
    "layer_replication": ([[0, 2]], "repeats layers"),
    "target_parameters": (["x"], "no layer's kernel"),
    "use_qalora": (True, "QALoRA"),
    "something_new": (3, "not known here"),
    "r": ("many", "as numbers"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_covered_is_refused_in_a_line(key, tmp_path):
    setting = Setting("vit", "timm")
    _, settings = setting.write(tmp_path)
    value, words = REFUSED[key]
    (tmp_path / peft.SETTINGS).write_text(json.dumps(settings | {key: value}))
    (line,) = setting.refuses(tmp_path)
    assert words in line and str(tmp_path) in line


MISMATCHES = {
    "rank": dict(rank=1),
    "alpha": dict(alpha=2.0),
    "rslora": dict(rslora=True),
    "dora": dict(dora=True),
    "layers": dict(layers=(r"block_1/.*",)),
    "train": dict(train=(r"^head/bias$",)),
    "none": dict(rank=0),
}


@pytest.mark.parametrize("key", MISMATCHES)
def test_a_line_says_what_to_set_and_that_is_enough(key, tmp_path):
    setting = Setting("vit", "hf5", layers=(r"block_\d+/(qkv|fc1)$",))
    setting.write(tmp_path)
    lora = section(layers=setting.lora.layers)
    lora.update(MISMATCHES[key])
    first, *_ = lines = setting.refuses(tmp_path, lora)
    assert first.startswith(f"config.lora.{'rank' if key == 'none' else key}")
    # What every line asks for, taken at its word.
    for line in lines:
        if given := re.search(r"--config\.lora\.(\w+)=(\"?)(.*)\2$", line):
            lora[given[1]] = eval(given[3])
    if key == "none":
        assert "all that it needs" in lines[-1]
        for text in lines[-1].partition("needs: ")[2].split("; "):
            name, _, value = text.removeprefix("config.lora.").partition(" = ")
            lora[name] = eval(value)
    found = setting.read(tmp_path, lora)
    assert found.values["block_0/qkv/lora_a"].tobytes() == (
        setting.leaves["block_0/qkv/lora_a"].tobytes()
    )


def spoil(arrays, how):
    arrays, name = dict(arrays), f"{PREFIX}blocks.0.attn.qkv.lora_A.weight"
    if how == "missing":
        del arrays[name]
    elif how == "extra":
        arrays[f"{PREFIX}blocks.7.attn.qkv.lora_A.weight"] = arrays[name]
    elif how == "misshapen":
        arrays[name] = arrays[name][:, :-1]
    elif how == "another rank":
        arrays[name] = arrays[name][:-1]
    elif how == "not finite":
        arrays[name] = np.full_like(arrays[name], np.nan)
    elif how == "other classes":
        arrays[f"{PREFIX}head.weight"] = arrays[f"{PREFIX}head.weight"][:-1]
    elif how == "no classifier":
        del arrays[f"{PREFIX}head.weight"]
    elif how == "unknown":
        arrays[f"{PREFIX}blocks.0.attn.qkv.lora_E"] = arrays[name]
    elif how == "integers":
        arrays[name] = arrays[name].astype(np.int32)
    return arrays


SPOILT = {
    "no classifier": "'head.weight' is missing, which is of the modules_to_save",
    "missing": "'blocks.0.attn.qkv' lacks lora_A",
    "extra": "adapts 'blocks.7.attn.qkv', which is no layer here",
    "misshapen": r"lora_A of 'blocks.0.attn.qkv' is \[2, 11\], where \[2, 12\] was expected",
    "another rank": r"is \[1, 12\], where \[2, 12\] was expected \(rank 2",
    "not finite": "NaN or infinity in what is block_0/qkv/lora_a",
    "other classes": r"'head.weight' is \[4, 12\], where \[5, 12\] was expected \(head/kernel\)",
    "unknown": "lora_E' is no array of an adapter",
    "integers": "is int32; floats were expected",
}


@pytest.mark.parametrize("how", SPOILT)
def test_arrays_that_do_not_fit_are_told(how, tmp_path):
    setting = Setting("vit", "timm")
    arrays, _ = setting.write(tmp_path)
    safetensors.write(tmp_path / peft.ARRAYS, spoil(arrays, how), {"format": "pt"})
    (line,) = setting.refuses(tmp_path)
    assert re.search(SPOILT[how], line)


def test_files_that_are_not_there_or_of_another_model(tmp_path):
    setting = Setting("vit", "timm")
    (line,) = setting.refuses(tmp_path / "nowhere")
    assert "config.lora.adapter=" in line and "no adapter_config.json" in line
    setting.write(tmp_path)
    (tmp_path / peft.SETTINGS).write_text("{'r': ")
    (line,) = setting.refuses(tmp_path)
    assert "is no adapter's settings" in line
    setting.write(tmp_path)
    file = tmp_path / peft.ARRAYS
    file.write_bytes(file.read_bytes()[:-9])
    (line,) = setting.refuses(tmp_path)
    assert "truncated" in line
    Setting("resnet", "torchvision").write(tmp_path)
    (line,) = setting.refuses(tmp_path)
    assert "none of which is in a vit" in line and "timm: " in line


NOT_SAID = {
    "depthwise": (("efficientnet", "timm"), {}, "no adapter of block_0/depthwise"),
    "no head there": (("vit", "hf_bare"), {}, "head/bias, head/kernel has no name in the naming"),
    "no layer": (("vit", "timm"), dict(train=(r"cls_token",)), "'cls_token' belongs to no layer"),
    "inside": (
        ("vit", "hf5"),
        dict(train=(r"cls_token",)),
        "PEFT saves vit.embeddings.patch_embeddings.projection whole",
    ),
    "tied": (("transformer", "gpt2"), dict(train=()), "the embedding is the output layer too"),
    "tied, trained": (
        ("transformer", "gpt2"),
        dict(train=(r"^embed/",)),
        "the embedding is the output layer too",
    ),
}


@pytest.mark.parametrize("case", NOT_SAID)
def test_what_peft_cannot_say_is_refused_in_a_line(case, tmp_path):
    place, how, words = NOT_SAID[case]
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        Setting(*place, **how).write(tmp_path)
    assert all(line.startswith("config.lora.") for line in str(caught.value).split("\n"))
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_text_goes_along_whole(tmp_path):
    """PEFT saves and expects it with every adapter of kind SEQ_CLS, trained or not."""
    arrays, settings = Setting("vit", "hf5", train=(r"^norm/",), layers=(r"block_.*",)).write(
        tmp_path, task_type="SEQ_CLS"
    )
    assert settings["modules_to_save"] == ["classifier", "vit.layernorm"]
    assert f"{PREFIX}classifier.weight" in arrays


@pytest.fixture
def distilbert(monkeypatch):
    given = (DISTILBERT, dict(vocab_size=11, outputs=5, head="classify"))
    monkeypatch.setitem(SMALL, "transformer", given)
    shapes_of.cache_clear()
    yield lambda **how: Setting("transformer", "distilbert", **how)
    shapes_of.cache_clear()


def test_what_peft_takes_for_the_classifier_goes_along(distilbert, tmp_path):
    """'pre_classifier' ends with 'classifier', which is all that PEFT looks at."""
    setting = distilbert(layers=(r"block_.*",))
    arrays, settings = setting.write(tmp_path, task_type="SEQ_CLS")
    assert settings["modules_to_save"] == ["classifier", "pre_classifier"]
    kernel = arrays[f"{PREFIX}pre_classifier.weight"]
    np.testing.assert_array_equal(kernel, setting.leaves["pooler/kernel"].T)
    assert setting.read(tmp_path).values.keys() >= {"head/kernel"}
    with pytest.raises(UserError, match="PEFT saves pre_classifier whole, where there is an adap"):
        distilbert(layers=(r"block_.*", r"pooler$")).write(tmp_path / "no", task_type="SEQ_CLS")


def test_what_the_base_lacks_goes_along(distilbert, tmp_path):
    setting = distilbert(layers=(r"block_.*/query$",))
    fresh = ["block_1/norm2/bias", "block_1/norm2/scale"]
    arrays, settings = setting.write(tmp_path, beside=fresh)
    (name,) = set(settings["modules_to_save"]) - {"classifier", "pre_classifier"}
    assert name == "distilbert.transformer.layer.1.output_layer_norm"
    np.testing.assert_array_equal(arrays[f"{PREFIX}{name}.bias"], setting.leaves[fresh[0]])
    with pytest.raises(
        UserError, match="layer.1.ffn.lin1, .* whole, where there is an adapter here"
    ):
        distilbert().write(tmp_path, beside=["block_1/mlp/up/bias"])


def test_refusals_are_known_from_shapes_alone(distilbert, tmp_path):
    setting = distilbert()
    how = dict(naming="distilbert", task_type="SEQ_CLS", **setting.about)
    (line,) = peft.problems(setting.shapes, setting.lora, **how)
    with pytest.raises(UserError, match=re.escape(line)):
        setting.write(tmp_path, task_type="SEQ_CLS")
    good = distilbert(layers=(r"block_.*",))
    assert peft.problems(good.shapes, good.lora, **how) == []
