"""The small CNN's stages in one (convolution, relu, max-pool) against the same model, step by step."""

import jax
import jax.numpy as jnp
import numpy as np

from research.models import cnn
from research.ops import conv_pool

BATCH = 24  # so many that both stages have a faster form


def test_stages_in_one_are_the_stages_step_by_step(monkeypatch):
    forms = []
    chosen = conv_pool._form
    monkeypatch.setattr(conv_pool, "_form", lambda *a: forms.append(chosen(*a)) or forms[-1])
    model = cnn.Model(num_classes=3, dtype=jnp.float32, axis_name=None, features=(32, 64))
    x = jax.random.normal(jax.random.key(0), (BATCH, 28, 28, 1))
    params = model.init(jax.random.key(1), x[:1], train=False)["params"]
    params = jax.tree.map(  # biases too
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    forms.clear()

    def loss(params, **more):
        out = model.apply({"params": params, **more.pop("also", {})}, x, train=True, **more)
        logits, seen = out if more else (out, {})
        return jnp.cos(logits).sum(), (logits, seen)

    in_one, (logits, _) = jax.grad(loss, has_aux=True)(params)
    assert forms == ["blocks", "tiles"]
    by_steps, (expected, seen) = jax.grad(loss, has_aux=True)(params, mutable=["intermediates"])
    assert len(forms) == 2
    stages = seen["intermediates"]
    assert stages["stage1"][0].shape == (BATCH, 26, 26, 32)
    # float32: sums of 288 terms in another order, and Winograd's; logits are of size 1 to 10
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    for found, wanted in zip(*map(jax.tree.leaves, (in_one, by_steps)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))

    given = {"given": {"stage1": jnp.zeros_like(stages["stage1"][0])}}
    _, (from_zeros, _) = loss(params, also=given)
    assert (
        float(jnp.ptp(from_zeros, axis=0).max()) == 0
    )  # all examples alike: what is given is used
