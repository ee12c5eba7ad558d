"""Keras files, without Keras: .keras and .weights.h5 of Keras 3, whole-model .h5 of Keras 2, and a writer of .keras.

A .keras file is a zip of config.json and model.weights.h5, whose groups are named by class and number
('layers/conv2d_1/vars/0'); keras/src/saving/saving_lib.py says how. Nothing in a file is built or run: of the
configuration only names, classes and flags are looked at, so a Lambda layer is as harmless as any other.
"""

import io
import json
import os
import re
import zipfile
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError, UserErrors
from research.transfer.formats.files import existing, looks_like, one_line, plain, write_bytes
from research.transfer.formats.hdf5 import EXPANSION, datasets, strings, values

_WEIGHTS = "model.weights.h5"
_TOPS = ("layers", "_layer_checkpoint_dependencies")  # of Keras 3; of Keras 2.13
_MODELS = ("Sequential", "Functional", "Model")
# The variables of a layer in the order of their numbers, by group name; `_FLAGS` are the options that leave one out.
_KERNEL = ("kernel", "bias")
_VARIABLES = {
    **dict.fromkeys(("dense", "conv1d", "conv2d", "conv3d"), _KERNEL),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _KERNEL),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), _KERNEL),
    **dict.fromkeys(
        ("separable_conv1d", "separable_conv2d"), ("depthwise_kernel", "pointwise_kernel", "bias")
    ),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "layer_normalization": ("gamma", "beta"),
    "group_normalization": ("gamma", "beta"),
    "embedding": ("embeddings",),
}
_FLAGS = {"bias": "use_bias", "gamma": "scale", "beta": "center"}


class _Layer(NamedTuple):
    group: str  # 'conv2d_1'
    name: str  # 'stem'
    config: dict[str, Any] | None  # None: not in the file


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the weights in a Keras file, named 'LAYER/kernel', 'LAYER/moving_mean' and so on, in layer order.

    A .weights.h5 doesn't hold the order of its layers: they come by class and number. Variables of layers whose classes
    are not known here keep their place as name ('LAYER/query_dense/vars/0'). Random states of dropout and optimizer
    states are left out. The zip of a .keras file notices any damage; in a bare .h5, the HDF5 library itself may hang or
    crash on a flipped byte of its structure (about one in a thousand did), though not on a truncated file.

    Raises:
      UserError: no such file, truncated, not of Keras, a model inside a model, or a model class of one's own.
    """
    path = existing(path)
    content = path.read_bytes()
    try:
        if content.startswith(b"PK\x03\x04"):
            return _read_archive(content)
        if content.startswith(b"\x89HDF"):
            return _read_h5(content, None, len(content))
        raise UserError(f"is no Keras file but {looks_like(path)}")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{path}: is truncated or damaged: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: is truncated or damaged: {one_line(error)}") from error


def layers(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the layers that a .keras file configures, {'class_name', 'config'} each; [] of any other file.

    Only for a file that `read` has read: it looks for no damage.
    """
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        config = json.loads(_unpacked(archive, "config.json", os.path.getsize(path)))
    return config["config"]["layers"]


def write(
    path: str | os.PathLike, architecture_config: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Writes a .keras file that `keras.saving.load_model` reads; the same input gives the same bytes.

    Args:
      path: the file, whose name must end in .keras.
      architecture_config: {'name': model, 'layers': [{'class_name': 'Conv2D', 'config': {'name': 'stem', ...}}, ...]},
        as `Sequential.get_config()` would give it, where InputLayer comes first; what is left out takes Keras'
        defaults. With 'output_layers' in it, it is taken for the configuration of a Functional model.
      arrays: 'LAYER/variable' -> array, in Keras' layouts (a kernel of Conv2D is [height, width, in, out]).

    Raises:
      UserErrors: an array that a layer needs is missing, or there is one that no layer has.
    """
    import h5py

    layers = [_with_module(layer) for layer in architecture_config["layers"]]
    left = dict(arrays)
    problems = [] if str(path).endswith(".keras") else [f"{path}: the name must end in .keras"]
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for layer in _layers(layers):
            names = _names(layer, None) or ()
            group = file.create_group(f"layers/{layer.group}/vars")
            group.attrs["name"] = layer.name
            for number, name in enumerate(f"{layer.name}/{name}" for name in names):
                if name not in left:
                    problems.append(f"{path}: array '{name}' is missing")
                    continue
                array = plain(name, left.pop(name))
                dataset = group.create_dataset(str(number), data=array, track_times=False)
                if array.dtype.name == "bfloat16":  # HDF5 has no such type; Keras asks for this
                    dataset.attrs["dtype"] = "bfloat16"
    problems += [f"{path}: no layer of the configuration has an array '{name}'" for name in left]
    if problems:
        raise UserErrors(problems)
    functional = "output_layers" in architecture_config
    config = {
        "module": "keras.src.models.functional" if functional else "keras",
        "class_name": "Functional" if functional else "Sequential",
        "config": {**architecture_config, "layers": layers},
    }
    # No date, or the bytes would change; the version is that whose layout this is.
    metadata = {"keras_version": "3.15.1", "date_saved": "1980-01-01@00:00:00"}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("metadata.json", json.dumps(metadata).encode()),
            ("config.json", json.dumps({**config, "registered_name": None}).encode()),
            (_WEIGHTS, weights.getbuffer()),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    write_bytes(path, out.getbuffer())


def _read_archive(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in ("config.json", _WEIGHTS):
            if name not in archive.namelist():
                raise UserError(f"is a zip file without {name} in it, so none of Keras 3")
        config = json.loads(_unpacked(archive, "config.json", len(content)))
        weights = _unpacked(archive, _WEIGHTS, len(content))
    if config.get("class_name") not in _MODELS:
        raise UserError(
            f"holds a {config.get('class_name')}; only Sequential and Functional models can be read"
        )
    return _read_h5(weights, config["config"]["layers"], len(content))


def _unpacked(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    entry = archive.getinfo(name)
    # bzip2 and LZMA unpack to whatever they like, whatever size the entry claims.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"its {name} is packed in a way that Keras does not use")
    if entry.file_size > EXPANSION * size:
        raise UserError(f"its {name} unpacks to more than {EXPANSION} times the file")
    with archive.open(entry) as file:
        return file.read(entry.file_size)  # without a number it unpacks all before it counts


def _read_h5(
    content: bytes, config: list[dict[str, Any]] | None, size: int
) -> dict[str, np.ndarray]:
    """size: of the file on the disk, in bytes."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        top = next((top for top in _TOPS if top in file), None)
        if top and "layer_names" not in file.attrs:
            found = datasets(file, top)
            by_group: dict[str, dict[str, Any]] = {}
            for place, dataset in found.items():
                group, _, inner = place.partition("/")
                by_group.setdefault(group, {})[inner] = dataset
            layers = _layers(config) if config is not None else _unlisted(file[top], by_group)
            unknown = set(by_group) - {layer.group for layer in layers}
            if unknown:
                raise UserError(f"its config.json has no layers for {', '.join(sorted(unknown))}")
            pairs = [p for layer in layers for p in _arrays(layer, by_group.get(layer.group, {}))]
        else:
            pairs = list(_legacy(file))
        if len(dict(pairs)) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise UserError(f"several arrays are called {', '.join(twice)}; is a model inside it?")
        return values(dict(pairs), size)


def _layers(config: list[dict[str, Any]]) -> list[_Layer]:
    """The group of each layer: its class in snake case, numbered from the second on."""
    used: dict[str, int] = {}
    layers = []
    for layer in config:
        kind, inner = layer["class_name"], layer["config"]
        name = str(inner.get("name") or layer.get("name"))
        if kind in _MODELS:
            raise UserError(f"layer '{name}' is a model of its own; save that one by itself")
        if ".ops." in str(layer.get("module")):  # x + y in a Functional model: no layer
            continue
        group = _snake(kind)
        number = used[group] = used.get(group, -1) + 1
        layers.append(_Layer(f"{group}_{number}" if number else group, name, inner))
    return layers


def _unlisted(top, by_group: dict[str, dict[str, Any]]) -> list[_Layer]:
    """Layers by class and number, where no configuration lists them."""

    def order(group: str):
        number = re.search(r"_(\d+)$", group)
        return _class(group), int(number[1]) if number else 0

    names = {g: top[g]["vars"].attrs.get("name", g) if "vars" in top[g] else g for g in by_group}
    return [_Layer(group, names[group], None) for group in sorted(by_group, key=order)]


def _arrays(layer: _Layer, found: dict[str, Any]):
    """Names of one layer's datasets, and these."""
    found = {place: d for place, d in found.items() if "seed_generator" not in place.split("/")}
    if any(place.startswith("layers/") for place in found):
        raise UserError(f"layer '{layer.name}' is a model of its own; save that one by itself")
    own = {place: d for place, d in found.items() if re.fullmatch(r"vars/\d+", place)}
    names = _names(layer, len(own))
    if names is None:
        return [(f"{layer.name}/{place}", dataset) for place, dataset in found.items()]
    if len(names) != len(found):
        raise UserError(
            f"layer '{layer.name}' should hold {', '.join(names)}, but holds {len(found)} arrays"
        )
    ordered = [found[f"vars/{number}"] for number in range(len(names))]
    return [(f"{layer.name}/{name}", d) for name, d in zip(names, ordered, strict=True)]


def _names(layer: _Layer, count: int | None) -> tuple[str, ...] | None:
    """What a layer's variables are called; None where its class isn't known."""
    names = _VARIABLES.get(_class(layer.group))
    if names is None:
        return None
    if layer.config is not None:
        config = layer.config
        return tuple(n for n in names if config.get(_FLAGS.get(n, ""), True) is not False)
    optional = [n for n in names if n in _FLAGS]
    if count == len(names) - len(optional):
        return tuple(n for n in names if n not in optional)
    if count != len(names):  # gamma or beta? The .keras file says which.
        raise UserError(
            f"layer '{layer.name}' holds {count} of {', '.join(names)}, not said which; read the .keras file instead"
        )
    return names


def _legacy(file):
    """Keras 2: attributes list the layers and, in order, their weights."""
    group = file.get("model_weights", file)
    layers = strings(group, "layer_names")
    if layers is None:
        raise UserError(
            f"is an HDF5 file, but none of Keras: it holds {', '.join(group) or 'nothing'}"
        )
    for layer in layers:
        found = datasets(group, layer)
        for weight in strings(group[layer], "weight_names") or ():
            if weight not in found:
                raise UserError(f"layer '{layer}' lacks the weight '{weight}'")
            # 'model/stem/kernel' or 'stem/kernel:0'; without the layer's name in it only the end says something.
            _, named, inner = f"/{weight.removesuffix(':0')}".rpartition(f"/{layer}/")
            inner = inner if named else inner.rpartition("/")[2]
            if "seed_generator" not in inner:
                yield f"{layer}/{inner}", found[weight]


def _with_module(layer: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "registered_name": None, **layer}


def _class(group: str) -> str:
    return re.sub(r"_\d+$", "", group)


def _snake(name: str) -> str:
    """As keras/src/utils/naming.py spells group names: 'DepthwiseConv2D' -> 'depthwise_conv2d'."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
