"""What a frozen transformer costs, counted by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.engine.state import create
from research.engine.step import make_train_step
from research.models.transformer import Model
from research.ops.losses import softmax_cross_entropy
from research.task import LossOutput, Task

B, T, D, C = 8, 32, 64, 8


def task_of(**options):
    m = Model(
        *(32, C, "classify", jnp.float32, None), width=D, depth=3, heads=4, context=T, **options
    )

    def forward(params, batch):
        return m.apply({"params": params}, batch["tokens"], train=False)

    def loss(params, model_state, batch, rngs):
        losses = softmax_cross_entropy(forward(params, batch), batch["label"], 0.0)
        return LossOutput(losses, batch["mask"], model_state, {})

    def init(key):
        return m.init(key, jnp.zeros((1, T), jnp.int32), train=False)["params"], {}

    blank = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    return Task(**{**blank, "init": init, "loss": loss}), forward


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize("scan", [False, True])
def test_frozen_blocks_cost_their_forward_pass(scan):
    task, forward = task_of(scan=scan)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 32, (B, T)).astype(np.int32),
        "label": rng.integers(0, C, B),
        "mask": np.ones(B, np.float32),
        "id": np.arange(B),
    }
    tx = optax.sgd(0.1)

    def cost(trainable):
        state = jax.eval_shape(lambda: create(task, tx, seed=0, ema=0.0, trainable=trainable))
        return flops(make_train_step(task, tx, seed=0, trainable=trainable), state, batch)

    frozen = cost(lambda path: path.startswith("head/"))
    once = flops(forward, jax.eval_shape(task.init, jax.random.key(0))[0], batch)
    # The head's gradient is 2 B D C of some millions, the loss and the update less.
    assert frozen == pytest.approx(once + 2 * B * D * C, rel=0.02)
    assert cost(lambda path: True) > 2 * frozen


def test_the_blocks_below_those_that_are_trained_cost_their_forward_pass():
    """And those above, as well as the trained one itself, two or three times as much."""
    task, forward = task_of()
    batch = {
        "tokens": np.zeros((B, T), np.int32),
        "label": np.zeros(B, np.int32),
        "mask": np.ones(B, np.float32),
        "id": np.arange(B),
    }
    tx = optax.sgd(0.1)

    def cost(*starts):
        def trainable(path):
            return path.startswith(starts)

        state = jax.eval_shape(lambda: create(task, tx, seed=0, ema=0.0, trainable=trainable))
        return flops(make_train_step(task, tx, seed=0, trainable=trainable), state, batch)

    head, top, second = (
        cost(*s) for s in (("head/",), ("head/", "block_2/"), ("head/", "block_1/"))
    )
    block = flops(forward, jax.eval_shape(task.init, jax.random.key(0))[0], batch) / 3
    # A block's way back is two products for each of its own; one where its matrices are frozen. Activations' slopes are
    # computed again (see Mlp), hence the width of the band.
    assert 1.8 * block < top - head < 2.3 * block
    assert 0.9 * block < second - top < 1.4 * block
