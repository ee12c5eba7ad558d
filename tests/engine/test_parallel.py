"""One device, a mesh of four, pmap over four and accumulation: one and the same training.

Bounds: all layouts add the same float32 terms in another order, which moves a gradient by some 1e-7 of its size. SGD
with learning rate 0.1 carries that linearly: after 10 steps the parameters (of size 1) were seen up to 2.4e-7 apart,
and ten times that is allowed. Adam would divide by gradients near 0 and amplify it.
"""

import jax
import numpy as np
import pytest

from research import modes
from research.config import defaults, resolve
from research.engine import program
from research.engine.program import durations, make_program

BOUND = 2.5e-6
STEPS = 10


@pytest.fixture(scope="module")
def trained():
    """Trains 10 steps, once: `trained(*overrides) -> (state on the host, ids of the examples, losses)`."""
    done = {}

    def run(*overrides):
        if overrides not in done:
            done[overrides] = train(*overrides)
        return done[overrides]

    def train(*overrides):
        config, mistakes = resolve(
            defaults(),
            [
                ("model.padding", "SAME"),
                ("model.features", "(4, 8)"),
                ("model.dense", "(16,)"),
                ("train.batch_size", "64"),
                ("train.ema", "0.9"),
                ("data.augment.mixup", "0.2"),
                ("optimizer.name", "sgd"),
                ("optimizer.learning_rate", "0.1"),
                *overrides,
            ],
        )
        assert not mistakes
        layout, task = modes.build(config)
        made = make_program(config, task, layout, durations(config, task))
        state = layout.put_state(made.create())
        rows = layout.rows(64)
        ids, losses, step = [], [], None
        for n in range(STEPS):
            host = task.data.train_batch(n, rows)
            batch = layout.put_batch(host)
            step = step or layout.compile_train(made.step, state, batch)
            state, metrics = step(state, batch)
            ids.append(host["id"].tolist())
            losses.append(float(layout.take(metrics)["loss"]))
        return layout.take_state(state), ids, losses

    return run


ONE, FOUR = ("parallel.devices", "1"), ("parallel.devices", "4")
PMAP = ("parallel.kind", "pmap")
DROPOUT, NORM = ("model.dropout", "0.3"), ("model.norm", "batch")


@pytest.mark.parametrize(
    "model", [(DROPOUT,), (DROPOUT, NORM)], ids=["dropout", "dropout and batch norm"]
)
def test_layouts_train_the_same(trained, tree_distance, model):
    one, ids, losses = trained(ONE, *model)
    assert int(one.step) == STEPS
    for layout in ((FOUR,), (FOUR, PMAP), (ONE, PMAP)):
        other, other_ids, other_losses = trained(*layout, *model)
        assert other_ids == ids
        np.testing.assert_allclose(other_losses, losses, atol=BOUND)
        for part in ("params", "ema", "opt_state", "model_state"):
            if jax.tree.leaves(getattr(one, part)):
                assert tree_distance(getattr(one, part), getattr(other, part)) < BOUND, (
                    layout,
                    part,
                )


def test_accumulation_equals_the_whole_batch(trained, tree_distance):
    one, ids, _ = trained(ONE, DROPOUT)
    for layout in ((ONE,), (FOUR,), (FOUR, PMAP)):
        other, other_ids, _ = trained(*layout, DROPOUT, ("train.micro_batches", "4"))
        assert other_ids == ids
        assert tree_distance(one.params, other.params) < BOUND, layout


def test_batch_norm_sees_the_same_micro_batches_on_every_layout(trained, tree_distance):
    one, _, _ = trained(ONE, NORM, ("train.micro_batches", "4"))
    for layout in ((FOUR,), (FOUR, PMAP)):
        other, _, _ = trained(*layout, NORM, ("train.micro_batches", "4"))
        assert (
            tree_distance((one.params, one.model_state), (other.params, other.model_state)) < BOUND
        ), layout


def test_the_bound_would_see_a_difference(trained, tree_distance):
    """Dropout masks of other examples, the likeliest defect of a layout, move the parameters by far more."""
    one, _, _ = trained(ONE, DROPOUT)
    other, _, _ = trained(ONE, DROPOUT, ("seed", "1"))
    assert tree_distance(one.params, other.params) > 100 * BOUND


@pytest.mark.parametrize("model", ["cnn", "resnet", "mlp"])
def test_fresh_parameters_are_the_same_bits_however_they_are_compiled(monkeypatch, model):
    # A run is given again by its seed: how much care the compiler takes must not be seen.
    config, mistakes = resolve(defaults(), [("model.name", model), ("data.image_size", "28")])
    assert not mistakes
    layout, task = modes.build(config)

    def fresh():
        made = make_program(config, task, layout, durations(config, task)).create()
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(made)]

    quick = fresh()
    monkeypatch.setattr(program, "COMPILED_ONCE", {})
    assert fresh() == quick
