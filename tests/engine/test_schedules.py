"""Schedules against their formulas, written out in NumPy, at every step."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from research.durations import Durations
from research.engine.schedules import make_schedule, schedule_options
from research.errors import UserErrors

TOTAL, PEAK = 200, 0.3
TO_STEPS = Durations(batch_size=10, epoch_examples=95, total_steps=TOTAL).to_steps
STEPS = np.arange(TOTAL + 20)


def rates(name, warmup="steps=0", **options):
    config = ConfigDict({"name": name, "warmup": warmup, **options})
    schedule = make_schedule(config, peak=PEAK, total_steps=TOTAL, to_steps=TO_STEPS)
    compiled = np.asarray(jax.jit(jax.vmap(schedule))(STEPS))
    one_by_one = [float(schedule(int(n))) for n in STEPS[:30]]
    np.testing.assert_allclose(one_by_one, compiled[:30], rtol=1e-6)
    return compiled


@pytest.mark.parametrize(
    ("warmup", "warmup_steps"),
    [("steps=0", 0), ("steps=30", 30), ("percent=5", 10), ("epochs=2", 19)],
)
@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("constant", {}, lambda t, n: np.ones_like(t)),
        ("linear", {}, lambda t, n: 1 - t),
        ("linear", {"final": 0.25}, lambda t, n: (1 - t) + 0.25 * t),
        ("cosine", {}, lambda t, n: np.cos(np.pi * t / 2) ** 2),
        ("cosine", {"final": 0.1}, lambda t, n: 0.1 + 0.9 * np.cos(np.pi * t / 2) ** 2),
        ("rsqrt", {}, lambda t, n: 1 / np.sqrt(1 + n / 20)),
        ("rsqrt", {"timescale": "steps=7"}, lambda t, n: 1 / np.sqrt(1 + n / 7)),
    ],
)
def test_formulas(name, options, formula, warmup, warmup_steps):
    n = np.maximum(STEPS - warmup_steps, 0).astype(np.float64)
    progress = np.minimum(n / (TOTAL - warmup_steps), 1)
    expected = PEAK * formula(progress, n)
    expected[:warmup_steps] = PEAK * (STEPS[:warmup_steps] + 1) / max(warmup_steps, 1)
    np.testing.assert_allclose(rates(name, warmup, **options), expected, rtol=2e-6, atol=1e-7)


def test_step_falls_at_its_moments():
    expected = np.full(len(STEPS), PEAK)
    expected[100:] *= 0.1
    expected[150:] *= 0.1
    np.testing.assert_allclose(rates("step"), expected, rtol=1e-6)
    expected = np.where(STEPS < 19, PEAK, PEAK / 2)
    np.testing.assert_allclose(rates("step", at=("epochs=2",), factor=0.5), expected, rtol=1e-6)


def test_a_run_that_ends_in_its_warmup_is_a_part_of_it():
    np.testing.assert_allclose(rates("cosine", "steps=400"), PEAK * (STEPS + 1) / 400, rtol=1e-6)


def test_all_mistakes_are_listed_with_the_nearest_spelling():
    with pytest.raises(UserErrors) as caught:
        rates("cosine", "fortnights=2", finl=0.1, final=-1.0)
    text = "\n".join(caught.value.lines)
    assert len(caught.value.lines) == 3
    assert "finl" in text and "'final'" in text and "fortnights" in text and "0 or more" in text
    with pytest.raises(UserErrors, match="did you mean 'cosine'"):
        rates("cosin")
    with pytest.raises(UserErrors, match=r"schedule\.at"):
        rates("step", at=("steps=5", "percent=x"))


def test_options_are_what_a_config_may_set():
    assert schedule_options("cosine") == {"final": 0.0}
    assert schedule_options("step") == {"at": ("percent=50", "percent=75"), "factor": 0.1}
    assert schedule_options("constant") == {}
