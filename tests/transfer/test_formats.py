"""Weight files in and out: the bytes that were written, and one clear line for every file that is none."""

import io
import json
import struct
import sys
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from research.errors import UserError
from research.transfer import formats
from research.transfer.formats import keras, safetensors

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a": np.array([1.5, -2, 0], ml_dtypes.bfloat16),
    "half": np.ones((1, 2), np.float16),
    "count": np.array(3, np.int64),
    "none": np.zeros((0, 2), np.float32),
}


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def refused(read, path, *words):
    with pytest.raises(UserError) as error:
        read(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line, line
    for word in words:
        assert word in line
    return line


# safetensors


def test_safetensors_holds_what_its_specification_says(tmp_path):
    path, metadata = tmp_path / "new" / "f.safetensors", {"z": "é", "format": "pt", "a": "1"}
    safetensors.write(path, ARRAYS, metadata)
    same(safetensors.read(path), ARRAYS)
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    assert header.pop("__metadata__") == metadata
    for name, about in header.items():
        start, end = (8 + length + offset for offset in about["data_offsets"])
        assert whole[start:end] == ARRAYS[name].tobytes() and about["shape"] == [
            *ARRAYS[name].shape
        ]
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    assert list(safetensors.read(path)) == order
    for _ in range(5):  # the library alone shuffles the metadata
        safetensors.write(path, ARRAYS, metadata)
        assert path.read_bytes() == whole


def test_safetensors_written_by_hand(tmp_path):
    header = json.dumps({"w": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00\x3c\x00\xc0")
    same(safetensors.read(path), {"w": np.array([1, -2], np.float16)})


def test_shards_are_read_together(tmp_path):
    safetensors.write(tmp_path / "m-2.safetensors", {"b": ARRAYS["b"], "spare": ARRAYS["a"]}, {})
    safetensors.write(tmp_path / "m-1.safetensors", {"a": ARRAYS["a"]}, {})
    index = tmp_path / "model.safetensors.index.json"
    places = {"b": "m-2.safetensors", "a": "m-1.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for read in (safetensors.read, lambda path: formats.read(f"hf:{path}")):
        assert list(read(tmp_path)) == ["a", "b"]
        same(read(tmp_path), {"a": ARRAYS["a"], "b": ARRAYS["b"]})
    same(safetensors.read(index), {"a": ARRAYS["a"], "b": ARRAYS["b"]})
    index.write_text(json.dumps({"weight_map": places | {"c": "m-1.safetensors"}}))
    refused(safetensors.read, tmp_path, "'c' should be in m-1.safetensors")
    index.write_text(json.dumps({"weight_map": places | {"c": "m-3.safetensors"}}))
    refused(safetensors.read, tmp_path, "1 of 3 shards are missing: m-3.safetensors")
    index.write_text(json.dumps({"weight_map": {"c": "../m-1.safetensors"}}))
    refused(safetensors.read, tmp_path, "outside")
    for wrong in ("[]", "[" * 100_000):
        index.write_text(wrong)
        refused(safetensors.read, tmp_path, "weight_map")
    index.unlink()
    refused(safetensors.read, tmp_path, "holds neither")


def test_what_is_no_safetensors_file_says_what_it_is(tmp_path):
    path = tmp_path / "f.safetensors"
    safetensors.write(path, ARRAYS, {"format": "pt"})
    whole = path.read_bytes()
    for end in range(0, len(whole), 10):
        path.write_bytes(whole[:end])
        refused(safetensors.read, path)
    path.write_bytes(whole[:-4])
    refused(safetensors.read, path, "truncated", str(len(whole)), str(len(whole) - 4))
    path.write_bytes(b"<!DOCTYPE html><html>")
    refused(safetensors.read, path, "a web page")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(safetensors.read, path, "git lfs pull")
    with pytest.raises(UserError, match="'w'"):
        safetensors.write(path, {"w": np.array(["text"])}, {})


# Keras

LAYERS = [
    {"class_name": "InputLayer", "config": {"name": "in", "batch_shape": [None, 8, 8, 3]}},
    {"class_name": "Conv2D", "config": {"name": "z", "filters": 4, "kernel_size": [3, 3]}},
    {"class_name": "BatchNormalization", "config": {"name": "norm", "scale": False}},
    {"class_name": "ReLU", "config": {"name": "act"}},
    {"class_name": "Conv2D", "config": {"name": "a", "filters": 2, "use_bias": False}},
    {"class_name": "GlobalAveragePooling2D", "config": {"name": "pool"}},
    {"class_name": "Dense", "config": {"name": "head", "units": 2}},
]
SHAPES = {
    "z/kernel": (3, 3, 3, 4), "z/bias": (4,), "norm/beta": (4,), "norm/moving_mean": (4,),
    "norm/moving_variance": (4,), "a/kernel": (3, 3, 4, 2), "head/kernel": (2, 2), "head/bias": (2,),
}  # fmt: skip
# Where saving_lib.py puts them: by class, numbered from the second of a class on.
PLACES = {
    "z/kernel": "conv2d/vars/0", "z/bias": "conv2d/vars/1", "norm/beta": "batch_normalization/vars/0",
    "norm/moving_mean": "batch_normalization/vars/1", "norm/moving_variance": "batch_normalization/vars/2",
    "a/kernel": "conv2d_1/vars/0", "head/kernel": "dense/vars/0", "head/bias": "dense/vars/1",
}  # fmt: skip
WEIGHTS = {
    name: np.random.default_rng(k).normal(size=shape).astype(np.float32)
    for k, (name, shape) in enumerate(SHAPES.items())
}


def h5(fill):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        fill(file)
    return out.getvalue()


def archive(path, weights, layers=LAYERS, kind="Sequential"):
    with zipfile.ZipFile(path, "w") as file:
        config = {"class_name": kind, "config": {"name": "m", "layers": layers}}
        file.writestr("config.json", json.dumps(config))
        file.writestr("model.weights.h5", weights)
    return path


def keras_3(file):
    for name, place in PLACES.items():
        file[f"layers/{place}"] = WEIGHTS[name]
    file["optimizer/vars/0"] = np.zeros(3)


def with_dropout(file):
    keras_3(file)
    file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)


def test_keras_groups_get_the_names_of_their_layers(tmp_path):
    layers = [*LAYERS, {"class_name": "Dropout", "config": {"name": "drop"}}]
    found = keras.read(archive(tmp_path / "f.keras", h5(with_dropout), layers))
    same(found, WEIGHTS)
    assert list(found) == list(WEIGHTS)  # in layer order, where HDF5 sorts by name


def test_keras_weights_alone_are_named_by_their_groups_or_what_is_noted_there(tmp_path):
    path = tmp_path / "f.weights.h5"
    shown = {"z": "conv2d", "a": "conv2d_1", "head": "dense", "norm": "norm"}

    def fill(file, scale=True):
        keras_3(file)
        file["layers/batch_normalization/vars"].attrs["name"] = "norm"
        if scale:
            file["layers/batch_normalization/vars/3"] = np.ones(4, np.float32)

    path.write_bytes(h5(fill))
    found = keras.read(path)
    for name in ("z/kernel", "z/bias", "a/kernel", "head/kernel", "head/bias"):
        layer, variable = name.split("/")
        np.testing.assert_array_equal(found[f"{shown[layer]}/{variable}"], WEIGHTS[name])
    assert [n for n in found if n.startswith("norm/")] == [
        "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance",
    ]  # fmt: skip
    path.write_bytes(h5(lambda file: fill(file, scale=False)))
    refused(keras.read, path, "'norm' holds 3", "read the .keras file instead")


@pytest.mark.parametrize("top", ["", "model_weights"])
def test_keras_2_files_list_their_layers(tmp_path, top):
    def fill(file):
        group = file.require_group(top) if top else file
        group.attrs["layer_names"] = [b"z", b"block/norm", b"empty"]
        for layer, weights in (
            ("z", ["z/kernel:0", "z/bias:0"]),
            ("block/norm", ["block/norm/beta:0"]),
        ):
            group.require_group(layer).attrs["weight_names"] = [w.encode() for w in weights]
            for weight in weights:
                group[layer][weight] = WEIGHTS[weight.removesuffix(":0").removeprefix("block/")]
        group.require_group("empty").attrs["weight_names"] = []

    path = tmp_path / "f.h5"
    path.write_bytes(h5(fill))
    found = keras.read(path)
    assert list(found) == ["z/kernel", "z/bias", "block/norm/beta"]
    for name, array in found.items():
        np.testing.assert_array_equal(array, WEIGHTS[name.removeprefix("block/")])


def test_keras_files_that_are_not_read_say_why(tmp_path):
    f = tmp_path / "f.keras"
    inner = [*LAYERS, {"class_name": "Functional", "config": {"name": "inner", "layers": []}}]
    refused(keras.read, archive(f, h5(keras_3), inner), "'inner'", "model of its own")
    refused(keras.read, archive(f, h5(keras_3), kind="MyNet"), "MyNet", "Sequential and Functional")
    refused(keras.read, archive(f, h5(keras_3), LAYERS[:-1]), "dense")
    scaled = [{**layer, "config": {**layer["config"], "scale": True}} for layer in LAYERS]
    refused(keras.read, archive(f, h5(keras_3), scaled), "'norm' should hold gamma")

    def links(**targets):
        return h5(lambda file: file.require_group("layers/dense/vars").update(targets))

    head = LAYERS[-1:]
    for target, word in (
        (h5py.ExternalLink("other.h5", "/x"), "a link to another place"),
        (h5py.SoftLink("/layers"), "a link to another place"),
        (np.array(["text"], object), "no numbers"),
    ):
        weights = links(**{"0": target, "1": WEIGHTS["head/bias"]})
        refused(keras.read, archive(f, weights, head), word)

    def claims(file):
        options = dict(shape=(2**36,), dtype="f4", chunks=(2**10,), compression="gzip")
        file.create_dataset("layers/dense/vars/0", **options)
        file["layers/dense/vars/1"] = WEIGHTS["head/bias"]

    refused(keras.read, archive(f, h5(claims), head), "claim")

    def many(file):  # 4 MiB each, of which nothing is stored
        for i in range(20):
            options = dict(shape=(2**20,), dtype="f4", chunks=(2**10,))
            file.create_dataset(f"layers/own/vars/{i}", **options)

    refused(keras.read, archive(f, h5(many), [{"class_name": "Own", "config": {}}]), "claim")

    def twice(file):  # 2 MiB, under 40 names
        array = np.zeros(2**19, np.float32)
        array[: 2**15] = np.random.default_rng(0).random(2**15)  # or it would pack too well
        file["layers/own/vars/0"] = array
        for i in range(1, 40):
            file[f"layers/own/vars/{i}"] = file["layers/own/vars/0"]

    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as file:
        own = [{"class_name": "Own", "config": {}}]
        file.writestr(
            "config.json", json.dumps({"class_name": "Sequential", "config": {"layers": own}})
        )
        file.writestr("model.weights.h5", h5(twice))
    refused(keras.read, f, "claim")

    def ring(file):
        file["layers/dense/vars/0"] = WEIGHTS["head/bias"]
        file["layers/dense/vars/again"] = file["layers/dense"]

    refused(keras.read, archive(f, h5(ring), head), "also lies elsewhere")
    f.write_bytes(h5(lambda file: file.create_group("data")))
    refused(keras.read, f, "none of Keras: it holds data")
    f.write_bytes(b"\x80\x02}.")
    refused(keras.read, f, "a pickle")
    with zipfile.ZipFile(f, "w") as file:
        file.writestr("x", b"")
    refused(keras.read, f, "config.json")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_unpacks_to_more_than_it_claims_is_not_unpacked(tmp_path, how):
    import tracemalloc

    path = tmp_path / "f.keras"
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", bytes(2**27))
    content = bytearray(path.read_bytes())
    size = content.rfind(b"PK\x01\x02") + 24
    content[size : size + 4] = struct.pack("<I", 1000)
    path.write_bytes(content)
    tracemalloc.start()
    refused(keras.read, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_lambda_layer_is_read_past(tmp_path):
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None}}
    layers = [*LAYERS, {"class_name": "Lambda", "config": {"name": "l", "function": code}}]
    same(keras.read(archive(tmp_path / "f.keras", h5(keras_3), layers)), WEIGHTS)


@pytest.mark.parametrize("name", ["f.keras", "f.weights.h5"])
def test_truncated_keras_files_are_told_in_one_line(tmp_path, name):
    keras.write(
        tmp_path / "f.keras", {"name": "m", "layers": LAYERS[-1:]}, dict([*WEIGHTS.items()][-2:])
    )
    whole = (tmp_path / "f.keras").read_bytes()
    if name != "f.keras":
        with zipfile.ZipFile(tmp_path / "f.keras") as file:
            whole = file.read("model.weights.h5")
    path = tmp_path / name
    for end in range(0, len(whole), 40):
        path.write_bytes(whole[:end])
        refused(keras.read, path)


def test_a_keras_file_of_ours_has_the_groups_that_keras_looks_for(tmp_path):
    path = tmp_path / "f.keras"
    keras.write(path, {"name": "m", "layers": LAYERS}, WEIGHTS)
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))
        weights = h5py.File(io.BytesIO(file.read("model.weights.h5")))
    assert config["class_name"] == "Sequential" and config["config"]["name"] == "m"
    assert [layer["config"] for layer in config["config"]["layers"]] == [
        x["config"] for x in LAYERS
    ]
    for name, place in PLACES.items():
        assert weights[f"layers/{place}"][()].tobytes() == WEIGHTS[name].tobytes()
    whole = path.read_bytes()
    keras.write(path, {"name": "m", "layers": LAYERS}, keras.read(path))
    assert path.read_bytes() == whole
    wrong = {name: array for name, array in WEIGHTS.items() if name != "z/bias"} | {
        "y/bias": SHAPES
    }
    with pytest.raises(UserError) as error:
        keras.write(path, {"name": "m", "layers": LAYERS}, wrong)
    assert "'z/bias' is missing" in str(error.value) and "'y/bias'" in str(error.value)
    brain = {"head/kernel": np.ones((2, 2), ml_dtypes.bfloat16), "head/bias": ARRAYS["a"][:2]}
    keras.write(path, {"name": "m", "layers": LAYERS[-1:]}, brain)
    same(keras.read(path), brain)


# Sources


def test_sources_lead_to_their_readers(tmp_path):
    safetensors.write(tmp_path / "f.safetensors", ARRAYS, {})
    formats.torch.write(tmp_path / "pytorch_model.bin", ARRAYS)
    keras.write(tmp_path / "f.keras", {"name": "m", "layers": LAYERS}, WEIGHTS)
    same(formats.read(f"safetensors:{tmp_path}/f.safetensors"), ARRAYS)
    same(formats.read(f"torch:{tmp_path}/pytorch_model.bin"), ARRAYS)
    same(formats.read(f"hf:{tmp_path}"), ARRAYS)
    same(formats.read(f"keras:{tmp_path}/f.keras"), WEIGHTS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("troch:x.pth", ["did you mean 'torch'", "orbax:RUN", "package:NAME", "safetensors:"]),
        ("x.pth", ["torch:FILE"]),
        ("keras:", ["keras:FILE"]),
        ("orbax:runs/a", ["not a weight file"]),
        ("hf:nowhere", ["no such folder"]),
        *(
            (f"{kind}:{'a' * 300}", ["too long"])
            for kind in ("hf", "keras", "torch", "safetensors")
        ),
        ("package:no-such_package", ["pip install no-such-package"]),
        ("package:../x", ["begin with the name"]),
    ],
)
def test_wrong_sources_are_told_with_the_mend(source, words):
    with pytest.raises(UserError) as error:
        formats.read(source)
    line = str(error.value)
    assert source[:80] in line and "\n" not in line
    assert all(word in line for word in words), line


def test_a_package_is_searched_and_not_imported(tmp_path, monkeypatch):
    folder = tmp_path / "my_weights"
    formats.torch.write(folder / "models" / "small.pth", ARRAYS)
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my-weights", "my_weights", "my_weights/models/small.pth"):
        same(formats.read(f"package:{name}"), ARRAYS)
    assert "my_weights" not in sys.modules
    safetensors.write(folder / "large.safetensors", WEIGHTS, {})
    both = ("package:my-weights/large.safetensors", "package:my-weights/models/small.pth")
    refused(formats.read, "package:my-weights", *both)
    same(formats.read(both[0]), WEIGHTS)
    refused(formats.read, "package:my-weights/models/smal.pth", "did you mean 'models/small.pth'")
    for file in (folder / "large.safetensors", folder / "models" / "small.pth"):
        file.unlink()
    refused(formats.read, "package:my_weights", ".safetensors")


def test_a_package_whose_modules_have_other_names_is_found_by_its_list_of_files(
    tmp_path, monkeypatch
):
    safetensors.write(tmp_path / "other" / "w.safetensors", ARRAYS, {})
    info = tmp_path / "pip_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pip-name\nVersion: 1.0\n")
    (info / "RECORD").write_text("other/w.safetensors,,\nother/gone.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    same(formats.read("package:pip-name"), ARRAYS)
    same(formats.read("package:pip_name/other/w.safetensors"), ARRAYS)


def test_the_digest_tells_names_dtypes_shapes_and_bytes_apart():
    x = np.arange(6, dtype=np.float32)
    tables = [
        {"a": x}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.int32)}, {"a": x + 1}, {},
        {"a": x[:3], "b": x[3:]}, {"b": x[:3], "a": x[3:]},
    ]  # fmt: skip
    digests = [formats.digest(table) for table in tables]
    assert len(set(digests)) == len(tables)
    assert formats.digest({"b": x[3:], "a": x[:3]}) == digests[6]  # whatever the order
    turned = np.asfortranarray(x.reshape(2, 3))
    assert formats.digest({"a": turned}) == digests[2]
    assert formats.digest({"a": np.array(1.0)}) != formats.digest({"a": np.array([1.0])})
