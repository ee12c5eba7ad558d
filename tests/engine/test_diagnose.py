"""Where a step stops being finite is named, on every layout."""

import jax
import numpy as np
import pytest

from research import modes
from research.config import defaults, resolve
from research.engine import diagnose
from research.engine.program import durations, make_program


@pytest.fixture(params=["mesh", "pmap"])
def step(request):
    """A task with batch norm, its state and its first batch, on the host."""
    config, mistakes = resolve(
        defaults(),
        [
            ("model.padding", "SAME"),
            ("model.features", "(4, 8)"),
            ("model.norm", "batch"),
            ("train.batch_size", "16"),
            ("parallel.kind", request.param),
        ],
    )
    assert not mistakes
    layout, task = modes.build(config)
    state = jax.device_get(make_program(config, task, layout, durations(config, task)).create())
    return task, state, task.data.train_batch(0, slice(None)), layout.axis_name


def test_a_bad_picture(step):
    task, state, batch, axis_name = step
    image = batch["image"].copy()
    image[3, 0, 0] = np.nan
    where, _ = diagnose.explain(task, state, batch | {"image": image}, 0, axis_name)
    assert where == "batch image (1 of 1,024 values are not finite)"


def test_a_layer_that_overflows(step):
    task, state, batch, axis_name = step
    params = jax.tree.map(np.array, state.params)
    params["dense1"]["kernel"][:] = 3e38
    where, ids = diagnose.explain(task, state.replace(params=params), batch, 0, axis_name)
    assert where.startswith("output of dense1") and ids


def test_nothing_bad(step):
    task, state, batch, axis_name = step
    where, ids = diagnose.explain(task, state, batch, 0, axis_name)
    assert where == "the updated state" and ids == batch["id"].tolist()
