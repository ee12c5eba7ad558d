"""Classification, whatever is classified: softmax cross-entropy over C classes, its figures and its report.

B examples in a batch, N in a split, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.evaluation import classification as metrics
from research.ops.losses import softmax_cross_entropy
from research.task import Batch, Data, Inputs, LossOutput, Params, Section, Task
from research.tasks.shared import models

BEST = 3  # classes that a prediction lists


def task(
    config: Any,
    *,
    data: Data,
    class_names: Sequence[str],
    model: models.Built,
    apply: Callable[..., Any],
    worst: Callable[[dict[str, np.ndarray]], Section],
    read_inputs: Callable[[list[str], str | None], Inputs],
    about: dict[str, Any],
    label_smoothing: float,
    top_k: int,
    kept: Callable[[str], bool] = lambda name: True,
    files: dict[str, str] | None = None,
) -> Task:
    """Returns the task.

    Args:
      config: reads eval.bootstrap and seed.
      apply: (params, model_state, batch, keys, **how) -> logits [B, C], as `module.apply`.
      worst: predictions of a split -> the part of the report that shows the worst mistakes.
      label_smoothing: the share of a label's weight that is spread over all classes.
      top_k: also measured is how often the label is among so many best guesses.
      kept: which named intermediates have one shape for all examples, and so may be kept as features.
    """

    def loss(
        params: Params, model_state: Params, batch: Batch, rngs: dict[str, jax.Array]
    ) -> LossOutput:
        logits, changed = apply(
            params,
            model_state,
            batch,
            models.example_keys(batch, rngs),
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

    def features(params: Params, model_state: Params, batch: Batch) -> dict[str, jax.Array]:
        _, variables = apply(
            params, model_state, batch, None, train=False, mutable=["intermediates"]
        )
        own = variables["intermediates"].items()
        return {
            name: x[0]
            for name, x in own
            if isinstance(x, tuple) and name != "logits" and kept(name)
        }

    def measure(outputs: dict[str, np.ndarray], final: bool) -> dict[str, float]:
        given = outputs["logits"], outputs["label"], outputs["loss"], top_k
        if final:
            return metrics.full(*given, resamples=config.eval.bootstrap, seed=config.seed)
        return metrics.quick(*given)

    def describe(outputs: dict[str, np.ndarray], split: str) -> list[Section]:
        rows = metrics.per_class(outputs["logits"], outputs["label"], class_names)
        matrix = metrics.confusion(outputs["logits"], outputs["label"])
        header = ("class", "examples", "precision", "recall", "F1")
        return [
            Section(f"Classes ({split})", "table", (header, rows)),
            Section(f"Confusion matrix ({split})", "matrix", (list(class_names), matrix)),
            worst(outputs)._replace(title=f"Worst mistakes ({split})"),
        ]

    def decode(outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        logits = outputs["logits"].astype(np.float64)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = odds / odds.sum(-1, keepdims=True)  # [N, C]
        rows = []
        for p in probabilities:
            best = np.argsort(-p, kind="stable")[:BEST]
            rows.append(
                {
                    "label": class_names[best[0]],
                    "probability": float(p[best[0]]),
                    "best": {class_names[i]: float(p[i]) for i in best},
                }
            )
        return rows

    return Task(
        data=data,
        init=model.init,
        loss=loss,
        predict=predict,
        intermediates=models.intermediates(apply),
        features=features,
        layers=model.layers,
        about=about,
        measure=measure,
        describe=describe,
        read_inputs=read_inputs,
        decode=decode,
        joined=model.joined,
        files=files or {},
    )


def worst_mistakes(outputs: dict[str, np.ndarray], most: int) -> np.ndarray:
    """Returns the positions of the wrong predictions with the largest losses, int64 [<= most]."""
    wrong = np.flatnonzero(outputs["logits"].argmax(-1) != outputs["label"])
    return wrong[np.argsort(-outputs["loss"][wrong], kind="stable")][:most]
