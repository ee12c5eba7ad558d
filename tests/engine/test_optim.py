"""Optimizers against their formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.config import defaults
from research.durations import Durations
from research.engine import optim
from research.engine.state import named_leaves
from research.engine.table import format_table, parameter_table, summarize
from research.errors import UserErrors
from research.groups import Treatment

PARAMS = {
    "conv": {"kernel": np.float32([[0.5, -1.0], [2.0, 0.25]]), "bias": np.float32([1.0, -2.0])},
    "norm": {"scale": np.float32([1.5, 0.5])},
}
# The gradients of three steps.
GRADS = [jax.tree.map(lambda p, s=s: np.float32(np.sin(s + 3 * p)), PARAMS) for s in (1, 2, 3)]
RATES = [0.1, 0.075, 0.05]  # of those steps: a line from 0.1 to 0 in four
B1, B2, EPS = 0.9, 0.999, 1e-8


def section(name, **keys):
    config = defaults().optimizer
    config.name = name
    config.learning_rate = 0.1
    config.schedule.name = "linear"
    with config.unlocked():
        for key, value in keys.items():
            config[key] = value
    return config


def build(name, **keys):
    to_steps = Durations(10, 100, total_steps=4).to_steps
    return optim.make_optimizer(section(name, **keys), total_steps=4, to_steps=to_steps)


def run(name, **keys):
    """Parameters after the three steps, compiled."""
    tx, schedule = build(name, **keys)
    np.testing.assert_allclose([schedule(n) for n in range(3)], RATES, rtol=1e-6)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for grads in GRADS:
        params, state = step(params, state, grads)
    return named_leaves(params)


def by_hand(rule, grads=GRADS):
    """Parameters after the three steps, by `rule(p, g, rate, t, memory, path) -> p` in float64."""
    params = {path: np.float64(p) for path, p in named_leaves(PARAMS).items()}
    memory = {path: {} for path in params}
    for t, rate in enumerate(RATES):
        flat = named_leaves(grads[t])
        params = {
            path: rule(p, np.float64(flat[path]), rate, t + 1, memory[path], path)
            for path, p in params.items()
        }
    return params


def adam_direction(g, t, memory):
    memory["m"] = B1 * memory.get("m", 0) + (1 - B1) * g
    memory["v"] = B2 * memory.get("v", 0) + (1 - B2) * g**2
    return memory["m"] / (1 - B1**t) / (np.sqrt(memory["v"] / (1 - B2**t)) + EPS)


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for path in result:
        np.testing.assert_allclose(result[path], expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_adam():
    def rule(p, g, rate, t, memory, path):
        return p - rate * adam_direction(g, t, memory)

    assert_same(run("adam"), by_hand(rule))


def test_adamw_decays_the_parameter_and_spares_biases_and_scales():
    def rule(p, g, rate, t, memory, path):
        decay = 0.3 if path.endswith("kernel") else 0.0
        return p - rate * (adam_direction(g, t, memory) + decay * p)

    assert_same(run("adamw", weight_decay=0.3), by_hand(rule))


def test_adam_with_decay_adds_it_to_the_gradient():
    def rule(p, g, rate, t, memory, path):
        return p - rate * adam_direction(g + (0.3 * p if path.endswith("kernel") else 0), t, memory)

    assert_same(run("adam", weight_decay=0.3), by_hand(rule))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_decay_is_that_of_pytorch(nesterov):
    def rule(p, g, rate, t, memory, path):
        g = g + 0.3 * p  # every parameter: nothing is excluded
        memory["b"] = 0.9 * memory["b"] + g if t > 1 else g
        return p - rate * (g + 0.9 * memory["b"] if nesterov else memory["b"])

    result = run("sgd", momentum=0.9, nesterov=nesterov, weight_decay=0.3, decay_exclude=())
    assert_same(result, by_hand(rule))


def test_clipping_is_by_the_norm_of_all_gradients_and_before_decay():
    def clipped(grads):
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        assert norm > 0.5
        return jax.tree.map(lambda g: g * 0.5 / norm, grads)

    def rule(p, g, rate, t, memory, path):
        return p - rate * (g + (0.3 * p if path == "conv/kernel" else 0))

    result = run("sgd", clip_norm=0.5, weight_decay=0.3)
    assert_same(result, by_hand(rule, [clipped(g) for g in GRADS]))


def test_decay_mask_follows_the_patterns():
    mask = optim.decay_mask((r"(^|/)bias$", "^norm/"))(PARAMS)
    assert mask == {"conv": {"kernel": True, "bias": False}, "norm": {"scale": False}}
    assert optim.unmatched_patterns(("bias$", "^head/", "conv"), ["conv/kernel", "conv/bias"]) == [
        "^head/"
    ]


def test_every_optimizer_on_offer_takes_a_schedule_decay_and_clipping():
    names = list(optim._optimizers())
    assert {"adam", "adamw", "adafactor", "lamb", "lion", "rmsprop", "sgd", "contrib.muon"} <= set(
        names
    )
    for name in names:
        tx, _ = build(name, weight_decay=0.1, clip_norm=1.0, **optim.optimizer_options(name))
        shapes = jax.eval_shape(lambda tx=tx: tx.update(GRADS[0], tx.init(PARAMS), PARAMS)[0])
        assert jax.tree.structure(shapes) == jax.tree.structure(PARAMS), name


def test_own_decay_is_zero_where_the_config_says_zero():
    assert_same(run("adamw"), run("adam"))  # optax's adamw has a default of 1e-4


def test_options_are_the_arguments_a_config_may_set():
    assert optim.optimizer_options("adamw") == {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "mu_dtype": None,
        "nesterov": False,
    }
    assert optim.optimizer_options("sgd") == {
        "momentum": None,
        "nesterov": False,
        "accumulator_dtype": None,
    }


def test_all_mistakes_are_listed_with_the_nearest_spelling():
    with pytest.raises(UserErrors) as caught:
        build(
            "sgd",
            momentun=0.9,
            nestrov=True,
            decay_exclude=("bias", "("),
            schedule={"name": "cosin"},
        )
    text = "\n".join(caught.value.lines)
    assert len(caught.value.lines) == 4
    for words in ("'momentum'", "'nesterov'", "'('", "'cosine'"):
        assert words in text
    with pytest.raises(UserErrors, match="did you mean 'rmsprop'"):
        build("rmspop")
    with pytest.raises(UserErrors, match="more than a gradient"):
        build("lbfgs")
    with pytest.raises(UserErrors, match="float31"):
        build("adam", mu_dtype="float31")


def test_parameter_table_counts_each_parameters_state():
    params = {  # one path is the end of another
        "dense": {"kernel": jnp.zeros((3, 4))},
        "head": {"dense": {"kernel": jnp.zeros((5, 2), jnp.bfloat16)}, "scale": jnp.zeros(())},
    }
    treated = dict.fromkeys(named_leaves(params), Treatment(".*", 1.0, 0))
    treated["head/scale"] = Treatment("head/scale", 0.0, None)

    def table(tx):
        return parameter_table(params, tx, treated)

    rows = {row.path: row for row in table(build("adam", clip_norm=1.0)[0])}
    assert {path: row.optimizer_bytes for path, row in rows.items()} == {
        "dense/kernel": 2 * 12 * 4,
        "head/dense/kernel": 2 * 10 * 2,
        "head/scale": 0,
    }
    assert rows["head/dense/kernel"][1:3] == ((5, 2), "bfloat16")
    assert rows["head/dense/kernel"].trainable and not rows["head/scale"].trainable
    assert sum(row.optimizer_bytes for row in table(build("sgd")[0])) == 0


def test_the_table_as_text_holds_every_parameter_and_the_totals():
    treated = dict.fromkeys(named_leaves(PARAMS), Treatment("conv", 0.5, 12))
    treated["norm/scale"] = Treatment(".*", 0.0, None)
    rows = parameter_table(PARAMS, build("adam")[0], treated)
    lines = format_table(rows).splitlines()
    row = next(line for line in lines if line.startswith("conv/kernel"))
    assert row.split() == [
        "conv/kernel",
        "2x2",
        "float32",
        "conv",
        "from",
        "step",
        "12",
        "0.5",
        "32",
    ]
    assert lines[-1] == "total: 8 parameters, 6 trainable, 2 frozen; 48 optimizer bytes"
    assert summarize(rows) == [
        "conv: 6 parameters in 2 arrays, from step 12, lr x 0.5",
        ".*: 2 parameters in 1 array, frozen",
        lines[-1],
    ]
