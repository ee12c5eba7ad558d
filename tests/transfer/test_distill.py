"""Distillation against its formulas written out in NumPy, and what must not move while it goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from research.config import defaults, resolve
from research.engine.pretrained import with_constants
from research.engine.state import create
from research.engine.step import make_train_step
from research.errors import UserError
from research.task import LossOutput, Task
from research.tasks import classification
from research.transfer.distill import class_order, distill, view

CLASSES = ["cat", "dog", "eel", "fox"]


def about(classes=CLASSES, shape=(2, 3, 1), mean=0.0, std=1.0):
    ones = np.ones(shape[2])
    return {
        "inputs": {"image": list(shape)},
        "classes": list(classes),
        "mean": (mean * ones).tolist(),
        "std": (std * ones).tolist(),
    }


def linear(**of_about) -> Task:
    """logits = flat image @ w; the model state counts batches, and must hold nothing else."""
    about_it = about(**of_about)
    inputs = int(np.prod(about_it["inputs"]["image"]))

    def logits(params, model_state, batch):
        assert set(model_state) == {"seen"}
        return batch["image"].reshape(-1, inputs) @ params["w"]

    def loss(params, model_state, batch, rngs):
        z = logits(params, model_state, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(z, batch["label"])
        state = {"seen": model_state["seen"] + 1}
        return LossOutput(losses, batch["mask"], state, {}, {"logits": z})

    def predict(params, model_state, batch, *_):
        return {"logits": logits(params, model_state, batch)}

    empty = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    return Task(
        **{
            **empty,
            "init": lambda key: (
                {"w": jax.random.normal(key, (inputs, len(about_it["classes"])))},
                {"seen": jnp.int32(0)},
            ),
            "loss": loss,
            "predict": predict,
            "intermediates": predict,
            "features": predict,
            "about": about_it,
            "constants": dict,
        }
    )


def taught(student, teacher, seed=7, **how):
    """The student's task, distilled from a teacher with the parameters of a seed; and these."""
    variables = jax.device_get(jax.jit(teacher.init)(jax.random.key(seed)))
    return distill(student, teacher, lambda: variables, variables, **how), variables


def variables_of(task, seed=1):
    params, model_state = jax.jit(task.init)(jax.random.key(seed))
    return params, {**model_state, **task.constants()}


def softmax(z):
    odds = np.exp(z - z.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(8, 2, 3, 1)).astype(np.float32),
        "label": rng.integers(0, 4, 8).astype(np.int32),
        "mask": np.float32([1, 1, 0, 1, 0, 0, 1, 1]),
        "id": np.arange(8, dtype=np.int32),
    }


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (3.0, 0.3), (3.0, 1.0)])
def test_loss_and_gradient_by_hand(batch, temperature, weight):
    task, (theirs, _) = taught(linear(), linear(), temperature=temperature, weight=weight)
    params, model_state = variables_of(task)

    def total(params):
        out = task.loss(params, model_state, batch, {})
        return jnp.sum(out.losses * out.weights), out

    gradient, out = jax.grad(total, has_aux=True)(params)
    x = batch["image"].reshape(8, 6).astype(np.float64)
    z, t = x @ np.float64(params["w"]), x @ np.float64(theirs["w"])
    target, soft = softmax(t / temperature), softmax(z / temperature)
    kl = (target * np.log(target / soft)).sum(-1)
    ce = -np.log(softmax(z)[np.arange(8), batch["label"]])
    losses = (1 - weight) * ce + weight * temperature**2 * kl
    # float32 arithmetic against float64, logits of size up to ten.
    np.testing.assert_allclose(out.losses, losses, rtol=1e-5, atol=1e-5)
    of_labels = softmax(z) - np.eye(4)[batch["label"]]
    by_logits = (1 - weight) * of_labels + weight * temperature * (soft - target)
    by_hand = x.T @ (by_logits * batch["mask"][:, None])
    np.testing.assert_allclose(gradient["w"], by_hand, rtol=1e-4, atol=1e-5)
    mask = batch["mask"]
    np.testing.assert_allclose(out.sums["distill"], (temperature**2 * kl * mask).sum(), rtol=1e-5)
    assert out.sums["agreement"] == ((z.argmax(-1) == t.argmax(-1)) * mask).sum()


def test_a_copy_of_the_teacher_has_nothing_to_learn(batch):
    task, variables = taught(linear(), linear(), temperature=2.0, weight=0.25)
    _, model_state = variables_of(task)
    out = task.loss(variables[0], model_state, batch, {})
    alone = linear().loss(*variables, batch, {})
    assert out.sums["distill"] == 0 and out.sums["agreement"] == batch["mask"].sum()
    np.testing.assert_array_equal(out.losses, np.float32(0.75) * alone.losses)


def test_the_student_does_not_see_the_teacher(batch):
    task, (theirs, _) = taught(linear(), linear(), temperature=2.0, weight=0.5)
    params, model_state = variables_of(task)
    alone = linear().predict(params, {"seen": 0}, batch)["logits"]  # asserts what it is given
    np.testing.assert_array_equal(task.predict(params, model_state, batch)["logits"], alone)
    np.testing.assert_array_equal(task.features(params, model_state, batch)["logits"], alone)
    inside = task.intermediates(params, model_state, batch, {})
    np.testing.assert_array_equal(inside["logits"], alone)
    # The state of a checkpoint that leaves constants out is enough to predict from.
    np.testing.assert_array_equal(task.predict(params, {"seen": 0}, batch)["logits"], alone)
    zeros = task.init(jax.random.key(0))[1]["teacher"]
    assert jax.tree.map(np.shape, zeros) == jax.tree.map(np.shape, task.constants()["teacher"])
    assert not zeros["params"]["w"].any() and theirs["w"].any()


def test_a_student_of_a_student_teaches_without_its_own_teacher(batch):
    second, _ = taught(linear(), linear(), temperature=2.0, weight=0.5)
    third, known = taught(linear(), second, temperature=2.0, weight=0.5)
    assert "teacher" in known[1]
    constants = third.constants()["teacher"]
    assert set(constants["model_state"]) == {"seen"}
    params, model_state = variables_of(third)
    simple, _ = taught(linear(), linear(), temperature=2.0, weight=0.5)
    state = model_state | {"teacher": {"params": known[0], "model_state": {"seen": 0}}}
    expected = simple.loss(params, state, batch, {}).losses
    np.testing.assert_array_equal(third.loss(params, model_state, batch, {}).losses, expected)


def test_classes_in_another_order(batch):
    theirs = ["fox", "cat", "eel", "dog"]
    np.testing.assert_array_equal(
        class_order(about(), about(classes=theirs)), [theirs.index(name) for name in CLASSES]
    )
    task, variables = taught(linear(), linear(classes=theirs), temperature=2.0, weight=1.0)
    params, model_state = variables_of(task)
    x = batch["image"].reshape(8, 6).astype(np.float64)
    by_name = dict(zip(theirs, (x @ np.float64(variables[0]["w"])).T, strict=True))
    target = softmax(np.stack([by_name[name] for name in CLASSES], -1) / 2)
    kl = (target * np.log(target / softmax(x @ np.float64(params["w"]) / 2))).sum(-1)
    out = task.loss(params, model_state, batch, {})
    np.testing.assert_allclose(out.losses, 4 * kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (about(classes=["cat", "dog", "eel"]), "it lacks 'fox' of config.data and has none beside"),
        (about(classes=[*CLASSES, "gnu"]), "it lacks none of config.data and has 'gnu' beside"),
        (about(classes=map(str, range(9))), "'cat', 'dog', 'eel', 'fox' .*'4' and 4 more beside"),
        ({"inputs": {"text": [9]}, "classes": CLASSES}, "it is no classification of pictures"),
        ({}, "it is no classification of pictures"),
    ],
)
def test_what_cannot_teach_is_told_in_one_line(theirs, words):
    with pytest.raises(UserError, match=words) as caught:
        class_order(about(), theirs)
    assert "\n" not in str(caught.value)


def test_pictures_are_normalised_anew():
    rng = np.random.default_rng(1)
    pixels = rng.random((4, 5, 6, 3))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    ours = about(shape=(5, 6, 3)) | {"mean": mean, "std": std}
    images = ((pixels - mean) / std).astype(np.float32)
    same = view(ours, dict(ours))(images)
    assert np.asarray(same).tobytes() == images.tobytes()
    other = about(shape=(5, 6, 3), mean=0.1, std=0.5)
    np.testing.assert_allclose(view(ours, other)(images), (pixels - 0.1) / 0.5, atol=1e-6)
    # Grey by luma, and colour by repeating.
    grey = pixels @ [0.299, 0.587, 0.114]
    seen = view(ours, about(shape=(5, 6, 1), mean=0.1, std=0.5))(images)
    np.testing.assert_allclose(seen[..., 0], (grey - 0.1) / 0.5, atol=1e-6)
    back = view(about(shape=(5, 6, 1)), ours)(grey[..., None].astype(np.float32))
    np.testing.assert_allclose(back, (grey[..., None] - mean) / std, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 11), (16, 5), (32, 32), (3, 3)])
def test_pictures_of_another_size_are_those_of_pillow(size):
    pixels = np.random.default_rng(2).random((2, 8, 8, 1)).astype(np.float32)
    seen = view(about(shape=(8, 8, 1)), about(shape=(*size, 1)))(pixels)
    for image, found in zip(pixels[..., 0], seen[..., 0], strict=True):
        theirs = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        # Pillow's weights and sums are float64, ours float32.
        np.testing.assert_allclose(found, np.asarray(theirs), atol=1e-6)


# From here on with real models, on augmented and mixed batches.
DATA = (
    ("data.validation_fraction", "0.1"),
    ("data.augment.shift", "1"),
    ("data.augment.mixup", "0.3"),
    ("train.batch_size", "32"),
)
CNN = (
    ("model.features", "(4,)"),
    ("model.pool", "(1,)"),
    ("model.dense", "(8,)"),
    ("model.norm", "batch"),
)
CNN += (("model.padding", "SAME"), ("model.dropout", "0.1"))
MLP = (("model.name", "mlp"), ("model.widths", "(16,)"), ("model.dropout", "0.1"))


def digits(*overrides):
    config, mistakes = resolve(defaults(), [*DATA, *overrides])
    assert not mistakes
    return classification.build(config, axis_name=None)


def test_the_teacher_keeps_its_bits():
    """With weight decay, clipping, EMA, micro-batches, and batch norm and dropout on both sides."""
    student, teacher = digits(*CNN), digits(*CNN)
    task, variables = taught(student, teacher, temperature=4.0, weight=0.5)
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2, weight_decay=0.1))
    state = with_constants(task, jax.jit(lambda: create(task, tx, seed=0, ema=0.9))())
    before = jax.device_get(state)
    step = make_train_step(task, tx, seed=0, micro_batches=2, ema=0.9)
    step = jax.jit(step, donate_argnums=0)
    for n in range(3):
        state, metrics = step(state, task.data.train_batch(n, slice(None)))
    after = jax.device_get(state)
    for old, new in zip(
        jax.tree.leaves({"params": variables[0], "model_state": variables[1]}),
        jax.tree.leaves(after.model_state["teacher"]),
        strict=True,
    ):
        assert old.tobytes() == new.tobytes()
    assert jax.tree.structure(after) == jax.tree.structure(before)
    # The optimizer knows the student alone: a count, and two moments of each of its arrays.
    assert len(jax.tree.leaves(after.opt_state)) == 1 + 2 * len(jax.tree.leaves(after.params))
    moved = jax.tree.map(lambda a, b: (a != b).any(), before.params, after.params)
    assert all(jax.tree.leaves(moved))
    own = {name: x for name, x in after.model_state.items() if name != "teacher"}
    assert all(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(own),
            jax.tree.leaves({name: before.model_state[name] for name in own}),
            strict=True,
        )
    )
    assert np.isfinite(metrics["distill"]) and 0 <= metrics["agreement"] <= 1


def test_mixed_batches_and_labels_as_the_task_has_them():
    student, teacher = digits(*MLP), digits(*CNN)
    task, variables = taught(student, teacher, temperature=2.0, weight=0.25)
    params, model_state = variables_of(task)
    batch = task.data.train_batch(0, slice(None))
    assert "mix" in batch
    rngs = {"dropout": jax.random.key(3)}
    out, alone = (
        jax.jit(t.loss)(params, state, batch, rngs)
        for t, state in ((task, model_state), (student, {}))
    )
    t = np.float64(jax.jit(teacher.predict)(*variables, batch)["logits"]) / 2
    z = np.float64(alone.outputs["logits"]) / 2
    kl = (softmax(t) * np.log(softmax(t) / softmax(z))).sum(-1)
    np.testing.assert_allclose(out.losses, 0.75 * alone.losses + 0.25 * 4 * kl, rtol=1e-4)
    assert out.sums["accuracy"] == alone.sums["accuracy"]


def test_micro_batches_and_masks_weigh_the_same():
    # A teacher with batch norm, whose batch statistics would differ between the parts.
    task, _ = taught(digits(*MLP), digits(*CNN), temperature=4.0, weight=0.7)
    batch = task.data.train_batch(0, slice(None))
    batch |= {"mask": np.float32(np.arange(32) % 3 > 0)}
    tx = optax.sgd(1.0)
    state = with_constants(task, jax.jit(lambda: create(task, tx, seed=0, ema=0.0))())
    whole, of_whole = jax.jit(make_train_step(task, tx, seed=0))(state, batch)
    for micro_batches in (2, 4):
        step = jax.jit(make_train_step(task, tx, seed=0, micro_batches=micro_batches))
        parts, of_parts = step(state, batch)
        # Sums of 32 float32 terms of size one in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole.params, parts.params
        )
        for name in ("loss", "distill", "agreement", "weight"):
            np.testing.assert_allclose(of_whole[name], of_parts[name], rtol=1e-5)
