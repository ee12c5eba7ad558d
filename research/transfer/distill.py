"""Distillation: a student learns from labels and from what a trained teacher says of the same pictures.

B examples in a batch, H, W, K height, width and channels of a picture, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.ops.losses import distillation
from research.task import Array, Batch, LossOutput, Params, Task

KEY = "teacher"  # where the teacher's variables lie in the student's model_state
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow makes a picture grey
SHOWN = 5  # classes that an error lists


def distill(
    task: Task,
    teacher: Task,
    variables: Callable[[], tuple[Params, Params]],
    shapes: tuple[Params, Params],
    *,
    temperature: float,
    weight: float,
) -> Task:
    """Wraps a classification task so that its student also learns what a teacher predicts.

        loss = (1 - weight) * the task's own + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    for each example, with T the temperature (Hinton, Vinyals and Dean 2015). The teacher sees the batch that the
    student sees, augmented and mixed, in its own normalisation, size and number of channels; it predicts without
    randomness and by its running statistics. Its variables are constants in model_state[KEY], {'params',
    'model_state'}: `init` makes them zeros, `constants` holds them, and they pass through every loss as they are.
    The student's functions do not see them.

    Args:
      task: the student's; its loss gives outputs['logits'].
      teacher: with the same classes, in any order.
      variables: returns the teacher's parameters and model_state, host arrays; called by `constants` alone.
      shapes: of these (arrays or ShapeDtypeStructs).
      temperature: T, more than 0.
      weight: of the teacher's part, from 0 to 1.

    Returns:
      The task, whose sums also hold 'distill', the second term without its weight, and 'agreement', how often
      student and teacher have the same best class.

    Raises:
      UserError: one of the two is not a classification of pictures, or the classes are not the same.
    """
    order = class_order(task.about, teacher.about)  # [C]
    look = view(task.about, teacher.about)

    def init(key: Array) -> tuple[Params, Params]:
        params, model_state = task.init(key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return params, {**model_state, KEY: _named(*zeros)}

    def constants() -> Params:
        return {**task.constants(), KEY: _named(*variables())}

    def teach(model_state: Params, batch: Batch) -> jax.Array:
        if "image" not in batch:
            raise ValueError("a teacher needs the pictures, not what a frozen trunk makes of them")
        mine = {name: batch[name] for name in ("label", "id", "mask")}
        mine["image"] = look(batch["image"])
        known = model_state[KEY]
        logits = teacher.predict(known["params"], known["model_state"], mine)["logits"]
        return jax.lax.stop_gradient(logits[:, order])  # [B, C]

    def loss(
        params: Params, model_state: Params, batch: Batch, rngs: dict[str, Array]
    ) -> LossOutput:
        out = task.loss(params, _own(model_state), batch, rngs)
        student, taught = out.outputs["logits"], teach(model_state, batch)
        terms = distillation(student, taught, temperature)  # [B]
        agreed = (jnp.argmax(student, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        return out._replace(
            losses=(1 - weight) * out.losses + weight * terms,
            model_state={**out.model_state, KEY: model_state[KEY]},
            sums={
                **out.sums,
                "distill": jnp.sum(terms * out.weights),
                "agreement": jnp.sum(agreed * out.weights),
            },
        )

    def hidden(function: Callable) -> Callable:
        return lambda params, model_state, *rest: function(params, _own(model_state), *rest)

    return task._replace(
        init=init,
        loss=loss,
        predict=hidden(task.predict),
        intermediates=hidden(task.intermediates),
        features=hidden(task.features),
        constants_in=(*task.constants_in, KEY),
        constants=constants,
    )


def class_order(student: dict[str, Any], teacher: dict[str, Any]) -> np.ndarray:
    """Returns int32 [C]: which of the teacher's classes is each of the student's; from `Task.about` of both.

    Raises:
      UserError: one of them classifies no pictures, or the classes are not the same.
    """
    for about, who in ((teacher, "it"), (student, "config.task")):
        if not about or "classes" not in about or "image" not in about.get("inputs", {}):
            raise UserError(
                f"{who} is no classification of pictures, which is all that can be distilled"
            )
    ours, theirs = list(student["classes"]), list(teacher["classes"])
    unknown = [name for name in ours if name not in set(theirs)]
    surplus = [name for name in theirs if name not in set(ours)]
    if unknown or surplus:
        raise UserError(
            f"has other classes: it lacks {_some(unknown)} of config.data and has {_some(surplus)} beside; "
            "name a run with the same classes, in any order"
        )
    return np.array([theirs.index(name) for name in ours], np.int32)


def view(student: dict[str, Any], teacher: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """Returns what turns the student's pictures, float32 [B, H, W, K], into the teacher's, [B, H', W', K'].

    Pixels go back to 0..1 by the student's mean and std, colour becomes grey by luma or grey colour by repeating,
    the size changes bilinearly (smoothed first where it shrinks), and the teacher's mean and std are applied.

    Args:
      student, teacher: `Task.about` of both: inputs['image'] [H, W, K], 'mean' and 'std' (of K values, or of one).
    """
    shape, wanted = (tuple(about["inputs"]["image"]) for about in (student, teacher))
    values = [
        np.asarray(a[name], np.float32) for a in (student, teacher) for name in ("mean", "std")
    ]
    mean, std, new_mean, new_std = values
    if shape == wanted and np.array_equal(mean, new_mean) and np.array_equal(std, new_std):
        return lambda images: images

    def look(images: jax.Array) -> jax.Array:
        pixels = images * std + mean
        if shape[2] == 3 and wanted[2] == 1:
            pixels = jnp.sum(pixels * np.asarray(LUMA, np.float32), -1, keepdims=True)
        if shape[:2] != wanted[:2]:
            size = (len(pixels), *wanted[:2], pixels.shape[-1])
            pixels = jax.image.resize(pixels, size, "bilinear")
        if pixels.shape[-1] < wanted[2]:
            pixels = jnp.repeat(pixels, wanted[2], -1)
        return (pixels - new_mean) / new_std

    return look


def _own(model_state: Params) -> Params:
    """The student's part."""
    return {name: x for name, x in model_state.items() if name != KEY}


def _named(params: Params, model_state: Params) -> Params:
    return {"params": params, "model_state": _own(model_state)}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(repr, names[:SHOWN])) or "none") + more
