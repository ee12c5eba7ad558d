"""Classification of pictures: softmax cross-entropy over C classes.

B examples in a batch, N in a split, H, W, K height, width and channels of a picture, C classes.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.data import batches, store
from research.data.pictures import SUFFIXES, picture
from research.errors import UserError, UserErrors
from research.task import Batch, Data, Inputs, Params, Section, Task
from research.tasks.shared import classifier, models
from research.tasks.shared.unread import demand_read

WORST = 30  # mistakes shown in the report


def prepare(config: Any) -> store.Store:
    """Returns the pictures.

    Raises:
      UserErrors: they cannot be had, or the config says something of texts.
    """
    demand_read(config, "pictures")
    return store.prepare(config.data)


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
    data = prepare(config)
    shape = data.images.shape[1:]  # H, W, K
    train_batch, eval_batch = batches.make_batches(
        data,
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
    )
    model = models.build(
        config,
        f"pictures of {'x'.join(map(str, shape))}",
        (jnp.zeros((1, *shape)),),
        {"num_classes": len(data.class_names)},
        axis_name,
    )

    def apply(params: Params, model_state: Params, batch: Batch, keys, **how) -> Any:
        variables = {"params": params, **model_state, "given": batch.get("given", {})}
        images = batch.get("image")  # left out where features are given
        if images is None:
            images = jnp.zeros((len(batch["label"]), *shape))
        return model.module.apply(variables, images, keys=keys, **how)

    def worst(outputs: dict[str, np.ndarray]) -> Section:
        names, guesses, shown = data.class_names, outputs["logits"].argmax(-1), []
        for i in classifier.worst_mistakes(outputs, WORST):
            number = outputs["id"][i]
            words = (
                f"{names[outputs['label'][i]]}, taken for {names[guesses[i]]} ({data.keys[number]})"
            )
            shown.append((np.asarray(data.images[number]), words))
        return Section("", "images", shown)

    def read_inputs(paths: list[str], prompt: str | None) -> Inputs:
        if prompt is not None:
            raise UserError("--prompt: pictures are predicted here: give --inputs=a.png,folder/")
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

    return classifier.task(
        config,
        data=Data(
            sizes={split: len(indices) for split, indices in data.splits.items()},
            train_batch=train_batch,
            eval_batch=eval_batch,
            fingerprints=data.fingerprints,
            report=data.report,
            repeats=not any(v for k, v in config.data.augment.items() if k != "magnitude"),
        ),
        class_names=data.class_names,
        model=model,
        apply=apply,
        worst=worst,
        read_inputs=read_inputs,
        about={
            "inputs": {"image": list(shape)},
            "classes": list(data.class_names),
            "mean": data.mean.tolist(),
            "std": data.std.tolist(),
        },
        label_smoothing=label_smoothing,
        top_k=top_k,
    )


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
