"""The CNN as a Keras Sequential: its names, its layers, and files of others whose layers are named as they like.

Layouts are the same: kernels [height, width, in, out], matrices [in, out], pictures flattened by height, width,
channel. What arrays don't say (epsilon, padding, strides, activations) is compared where the file says it, which a
.keras does; the order of convolution, batch norm and relu must agree by itself.
"""

from typing import Any

from research.models.cnn import Model
from research.transfer.tables import KERAS, Arrays, Naming, Shapes, natural


def by_order(arrays: Arrays, shapes: Shapes) -> dict[str, str]:
    """Finds our layers in a file that calls them conv2d, conv2d_1, dense and so on, by kind and order.

    Args:
      arrays: 'LAYER/kernel', 'LAYER/gamma' and so on, in the order of the layers.
      shapes: ours.

    Returns:
      {our name in Keras' spelling, 'stage1_conv1/kernel': name found}. A layer that has our name is that one, wherever
      it stands. Layers left over on either side are not in it.
    """
    found = _by_kind({name: array.shape for name, array in arrays.items()})
    ours = _by_kind({path: shapes[path] for path in sorted(shapes, key=natural)})
    named = {
        layer: layer
        for kind in found.keys() & ours.keys()
        for layer in ours[kind]
        if layer in found[kind]
    }
    for kind in found.keys() & ours.keys():
        left = [[layer for layer in of[kind] if layer not in named] for of in (found, ours)]
        named |= dict(zip(*left, strict=False))
    pairs = {}
    for name in arrays:
        layer, _, leaf = name.rpartition("/")
        if layer in named:
            pairs[f"{named[layer]}/{leaf}"] = name
    return pairs


def _by_kind(shapes: Shapes) -> dict[str, list[str]]:
    """Layers of each kind, in order."""
    kinds: dict[str, list[str]] = {}
    for layer in dict.fromkeys(name.rpartition("/")[0] for name in shapes):
        leaves = {name.rpartition("/")[2] for name in shapes if name.rpartition("/")[0] == layer}
        if leaves & {"gamma", "moving_mean", "scale", "mean"}:
            kind = "norm"
        else:
            kind = f"kernel of {len(shapes.get(f'{layer}/kernel', ()))} dimensions"
        kinds.setdefault(kind, []).append(layer)
    return kinds


def architecture(
    options: dict[str, Any], shape: tuple[int, int, int], num_classes: int
) -> dict[str, Any]:
    """Returns the model as `keras.Sequential.get_config()` would: {'name', 'layers': [{'class_name', 'config'}]}.

    Args:
      options: the model's, as its config has them.
      shape: of a picture, (height, width, channels).
      num_classes: of the head, which gives logits.
    """
    model = Model(num_classes=num_classes, dtype=None, axis_name=None, **options)
    batch = model.norm == "batch"
    layers: list[dict[str, Any]] = []

    def add(kind: str, name: str, **config: Any) -> None:
        layers.append({"class_name": kind, "config": {"name": name, **config}})

    add("InputLayer", "input", batch_shape=[None, *shape], dtype="float32")
    for stage, features in enumerate(model.features, 1):
        for i in range(1, model.convs + 1):
            add(
                "Conv2D",
                f"stage{stage}_conv{i}",
                filters=features,
                kernel_size=[model.kernel] * 2,
                padding=model.padding.lower(),
                use_bias=not batch,
            )
            if batch:
                add(
                    "BatchNormalization",
                    f"stage{stage}_norm{i}",
                    momentum=0.9,
                    epsilon=model.norm_epsilon,
                )
            add("ReLU", f"stage{stage}_relu{i}")
        if stage in model.pool:
            add("MaxPooling2D", f"stage{stage}_pool", pool_size=[2, 2])
    flat = model.head == "flatten"
    add("Flatten" if flat else "GlobalAveragePooling2D", "pooled")
    for i, width in enumerate(model.dense, 1):
        if model.dropout:
            add("Dropout", f"dropout{i}", rate=model.dropout)
        add("Dense", f"dense{i}", units=width, activation="relu")
    if model.dropout:
        add("Dropout", "dropout_head", rate=model.dropout)
    add("Dense", "head", units=num_classes)
    return {"name": "cnn", "trainable": True, "layers": layers}


# Keras' layers that compute what a layer here does, or nothing, when a model predicts.
KNOWN = (
    *(
        "InputLayer",
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        "Activation",
        "MaxPooling2D",
        "Softmax",
    ),
    *("GlobalAveragePooling2D", "Flatten", "Dropout", "SpatialDropout2D", "Dense"),
)


def mismatches(layers: list[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    """Returns what a Keras model computes otherwise than ours, where its arrays don't show it; a line for each.

    Args:
      layers: as `keras.Sequential.get_config()['layers']` has them.
      options: the model's, as its config has them.
    """
    lines = []

    def differs(layer: dict[str, Any], key: str, ours: Any, mend: str) -> None:
        found = layer["config"].get(key, ours)
        found = tuple(found) if isinstance(found, list) else found
        if found != ours:
            name = layer["config"].get("name", layer["class_name"])
            lines.append(f"layer '{name}' has {key} {found!r}, ours {ours!r}; {mend}")

    last = max((i for i, layer in enumerate(layers) if layer["class_name"] == "Dense"), default=-1)
    for i, layer in enumerate(layers):
        kind = layer["class_name"]
        if kind not in KNOWN:
            lines.append(f"a {kind} layer: model cnn has none; there are {', '.join(KNOWN)}")
        if kind == "BatchNormalization":
            mend = f"set config.model.norm_epsilon={layer['config'].get('epsilon')}"
            differs(layer, "epsilon", options["norm_epsilon"], mend)
        if kind == "Conv2D":
            padding = layer["config"].get("padding", "valid")
            mend = f"set config.model.padding={padding.upper()}"
            differs(layer, "padding", options["padding"].lower(), mend)
            differs(layer, "strides", (1, 1), "model cnn has no strides")
            differs(layer, "dilation_rate", (1, 1), "model cnn has no dilation")
        if kind == "MaxPooling2D":
            differs(layer, "pool_size", (2, 2), "model cnn pools 2x2")
        if kind in ("Conv2D", "Dense", "Activation"):
            allowed = ("linear", "relu", "softmax") if i >= last else ("linear", "relu")
            if (activation := layer["config"].get("activation", "linear")) not in allowed:
                differs(layer, "activation", "relu", f"model cnn has no {activation}")
    return lines


NAMINGS = (
    Naming(
        "keras",
        "a Keras model of convolutions and dense layers",
        KERAS,
        ((r"stage\d+_(conv|norm)\d+|dense\d+|head", (r"\g<0>",)),),
        (r"^conv2d[^/]*/kernel$",),
        match=by_order,
    ),
)
