"""Classification of pictures: softmax cross-entropy over C classes.

B examples in a batch, N in a split, H, W, K height, width and channels of a picture, C classes.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.config import find_module, first_line
from research.data import batches, store
from research.data.pictures import SUFFIXES, picture
from research.errors import UserError, UserErrors
from research.evaluation import classification as metrics
from research.ops.losses import softmax_cross_entropy
from research.task import Batch, Data, Inputs, LossOutput, Params, Section, Task

WORST = 30  # mistakes shown in the report


def build(
    config: Any, *, axis_name: str | None, label_smoothing: float = 0.0, top_k: int = 5
) -> Task:
    """Prepares the data and builds the model that the config names.

    Args:
      config: reads data, model, train.batch_size, train.precision, eval and seed.
      axis_name: what the devices' axis is called inside a step; None where there is none.
      label_smoothing: the share of a label's weight that is spread over all classes.
      top_k: also measured is how often the label is among so many best guesses.

    Raises:
      UserErrors: the data cannot be had, or the model does not fit it.
    """
    data = store.prepare(config.data)
    shape = data.images.shape[1:]  # H, W, K
    train_batch, eval_batch = batches.make_batches(
        data,
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
    )
    options = {key: value for key, value in config.model.items() if key != "name"}
    module = find_module("models", config.model.name)
    model = module.Model(
        num_classes=len(data.class_names),
        dtype=jnp.dtype(config.train.precision),
        axis_name=axis_name,
        **options,
    )

    def init(key: jax.Array) -> tuple[Params, Params]:
        variables = dict(model.init(key, jnp.zeros((1, *shape)), train=False))
        variables.pop("intermediates", None)
        return variables.pop("params"), variables

    try:
        jax.eval_shape(init, jax.random.key(0))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"config.model: does not fit pictures of {'x'.join(map(str, shape))}: {first_line(error)}"
        ) from error

    def example_keys(batch: Batch, rngs: dict[str, jax.Array]) -> jax.Array:
        """Keys [B] that depend on the example and not on where in the batch it lies."""
        return jax.vmap(jax.random.fold_in, (None, 0))(rngs["dropout"], batch["id"])

    def apply(params: Params, model_state: Params, batch: Batch, keys, **how) -> Any:
        variables = {"params": params, **model_state, "given": batch.get("given", {})}
        images = batch.get("image")  # left out where features are given
        if images is None:
            images = jnp.zeros((len(batch["label"]), *shape))
        return model.apply(variables, images, keys=keys, **how)

    def loss(
        params: Params, model_state: Params, batch: Batch, rngs: dict[str, jax.Array]
    ) -> LossOutput:
        logits, changed = apply(
            params,
            model_state,
            batch,
            example_keys(batch, rngs),
            train=True,
            mutable=list(model_state),
        )
        losses = softmax_cross_entropy(logits, batch["label"], label_smoothing)  # [B]
        hits = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
        if "mix" in batch:  # mixup or cutmix: two labels, weighted
            other = softmax_cross_entropy(logits, batch["label_b"], label_smoothing)
            losses = batch["mix"] * losses + (1 - batch["mix"]) * other
        return LossOutput(
            losses,
            batch["mask"],
            dict(changed),
            {"accuracy": jnp.sum(hits * batch["mask"])},
            {"logits": logits},
        )

    def predict(params: Params, model_state: Params, batch: Batch) -> dict[str, jax.Array]:
        logits = apply(params, model_state, batch, None, train=False)
        losses = softmax_cross_entropy(logits, batch["label"], 0.0)
        return {"logits": logits, "loss": losses, "label": batch["label"], "id": batch["id"]}

    def intermediates(
        params: Params, model_state: Params, batch: Batch, rngs: dict[str, jax.Array]
    ):
        _, variables = apply(
            params,
            model_state,
            batch,
            example_keys(batch, rngs),
            train=True,
            capture_intermediates=True,
            mutable=["intermediates", *model_state],
        )
        return dict(_in_order(variables["intermediates"]))

    def features(params: Params, model_state: Params, batch: Batch) -> dict[str, jax.Array]:
        _, variables = apply(
            params, model_state, batch, None, train=False, mutable=["intermediates"]
        )
        own = variables["intermediates"].items()
        return {name: x[0] for name, x in own if isinstance(x, tuple) and name != "logits"}

    def measure(outputs: dict[str, np.ndarray], final: bool) -> dict[str, float]:
        given = outputs["logits"], outputs["label"], outputs["loss"], top_k
        if final:
            return metrics.full(*given, resamples=config.eval.bootstrap, seed=config.seed)
        return metrics.quick(*given)

    def describe(outputs: dict[str, np.ndarray], split: str) -> list[Section]:
        rows = metrics.per_class(outputs["logits"], outputs["label"], data.class_names)
        matrix = metrics.confusion(outputs["logits"], outputs["label"])
        return [
            Section(
                f"Classes ({split})",
                "table",
                (("class", "examples", "precision", "recall", "F1"), rows),
            ),
            Section(f"Confusion matrix ({split})", "matrix", (list(data.class_names), matrix)),
            Section(f"Worst mistakes ({split})", "images", _worst(outputs, data)),
        ]

    def read_inputs(paths: list[str]) -> Inputs:
        files = _expand(paths)
        images, problems = [], []
        for path in files:
            try:
                images.append(picture(path, *shape))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserErrors(problems)
        return batches.inputs(
            np.stack(images), [str(path) for path in files], data, config.eval.batch_size
        )

    def decode(outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        logits = outputs["logits"].astype(np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = odds / odds.sum(-1, keepdims=True)  # [N, C]
        rows = []
        for p in probabilities:
            best = np.argsort(-p, kind="stable")[:3]
            rows.append(
                {
                    "label": data.class_names[best[0]],
                    "probability": float(p[best[0]]),
                    "best": {data.class_names[i]: float(p[i]) for i in best},
                }
            )
        return rows

    return Task(
        data=Data(
            sizes={split: len(indices) for split, indices in data.splits.items()},
            train_batch=train_batch,
            eval_batch=eval_batch,
            fingerprints=data.fingerprints,
            report=data.report,
            repeats=not any(v for k, v in config.data.augment.items() if k != "magnitude"),
        ),
        init=init,
        loss=loss,
        predict=predict,
        intermediates=intermediates,
        features=features,
        layers=module.LAYERS,
        about={
            "inputs": {"image": list(shape)},
            "classes": list(data.class_names),
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
        },
        measure=measure,
        describe=describe,
        read_inputs=read_inputs,
        decode=decode,
    )


def _in_order(tree: Any, path: tuple[str, ...] = ()):
    """Yields ('conv_0/out', array) in the order in which a model computed its intermediates."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _in_order(value, (*path, key))
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from _in_order(value, (*path, str(i)) if len(tree) > 1 else path)
    else:
        yield "/".join(path).replace("/__call__", ""), tree


def _worst(outputs: dict[str, np.ndarray], data: store.Store) -> list[tuple[np.ndarray, str]]:
    guesses = outputs["logits"].argmax(-1)
    wrong = np.flatnonzero(guesses != outputs["label"])
    wrong = wrong[np.argsort(-outputs["loss"][wrong], kind="stable")][:WORST]
    names = data.class_names
    return [
        (
            np.asarray(data.images[outputs["id"][i]]),
            f"{names[outputs['label'][i]]}, taken for {names[guesses[i]]} ({data.keys[outputs['id'][i]]})",
        )
        for i in wrong
    ]


def _expand(paths: list[str]) -> list[Path]:
    """Returns the files named, and the pictures inside the folders named."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                raise UserError(
                    f"--inputs={path}: an empty folder: it holds no picture ({', '.join(sorted(SUFFIXES))})"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"--inputs={path}: no such file or folder")
    if not files:
        raise UserError("give --inputs=a.png,b.png,folder/: the pictures to predict")
    return files
