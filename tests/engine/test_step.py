"""The step against its formulas written out in NumPy, on a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.engine.rng import step_keys
from research.engine.state import create, params_sha256
from research.engine.step import make_train_step
from research.task import LossOutput, Task


@pytest.fixture
def regression() -> Task:
    """y = x w by least squares; unequal weights, and a counter as model state."""

    def loss(params, model_state, batch, rngs):
        errors = batch["x"] @ params["w"] - batch["y"]  # [B]
        state = {"seen": model_state["seen"] + 1}
        return LossOutput(
            errors**2, batch["mask"], state, {"error": jnp.sum(errors * batch["mask"])}
        )

    empty = {**dict.fromkeys(Task._fields), **Task._field_defaults}
    return Task(
        **{**empty, "init": lambda key: ({"w": jnp.ones(3)}, {"seen": jnp.int32(0)}), "loss": loss}
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(8, 3)).astype(np.float32),
        "y": rng.normal(size=8).astype(np.float32),
        "mask": np.float32([1, 1, 0, 1, 0, 0, 1, 1]),
        "id": np.arange(8, dtype=np.int32),
    }


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_gradient_is_of_the_weighted_mean(regression, batch, micro_batches):
    tx = optax.sgd(0.1)
    state = create(regression, tx, seed=0, ema=0.0)
    step = jax.jit(make_train_step(regression, tx, seed=0, micro_batches=micro_batches))
    after, metrics = step(state, batch)
    x, y, m = (batch[k].astype(np.float64) for k in ("x", "y", "mask"))
    errors = x @ np.ones(3) - y
    gradient = 2 * x.T @ (errors * m) / m.sum()
    # float32 arithmetic against float64: eight terms of size one.
    np.testing.assert_allclose(after.params["w"], np.ones(3) - 0.1 * gradient, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], (errors**2 * m).sum() / m.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["error"], (errors * m).sum() / m.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((gradient**2).sum()), rtol=1e-6)
    assert int(after.model_state["seen"]) == micro_batches and int(after.step) == 1


def test_padding_alone_moves_nothing(regression, batch):
    tx = optax.sgd(0.1)
    state = create(regression, tx, seed=0, ema=0.0)
    after, _ = make_train_step(regression, tx, seed=0)(
        state, batch | {"mask": np.zeros(8, np.float32)}
    )
    assert params_sha256(after.params) == params_sha256(state.params)


def test_ema_by_hand(regression, batch):
    tx = optax.sgd(0.1)
    state = create(regression, tx, seed=0, ema=0.9)
    step = jax.jit(make_train_step(regression, tx, seed=0, ema=0.9))
    average = np.ones(3)
    for t in range(20):
        state, _ = step(state, batch)
        decay = min(0.9, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.asarray(state.params["w"], np.float64)
    # Twenty float32 roundings of values of size one.
    np.testing.assert_allclose(state.ema["w"], average, atol=3e-6)


def test_keys_depend_on_seed_stream_and_step_alone():
    def bits(seed, step, *streams):
        return {
            k: tuple(jax.random.key_data(v).tolist())
            for k, v in step_keys(seed, step, streams).items()
        }

    assert bits(0, 3, "dropout", "noise")["dropout"] == bits(0, 3, "dropout")["dropout"]
    every = [bits(s, t, n)[n] for s in range(3) for t in range(3) for n in ("dropout", "noise")]
    assert len(set(every)) == len(every)


def test_params_sha256_is_over_sorted_paths_and_raw_bytes():
    import hashlib

    params = {"b": {"kernel": np.float32([[1, 2]])}, "a": np.float32([3])}
    expected = hashlib.sha256(
        b"a" + np.float32([3]).tobytes() + b"b/kernel" + np.float32([[1, 2]]).tobytes()
    ).hexdigest()
    assert params_sha256(params) == params_sha256(jax.tree.map(jnp.asarray, params)) == expected
