"""Batch norm and dropout on one device, on a mesh of four and under pmap: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.models import cnn

OPTIONS = {
    "features": (4, 8),
    "pool": (1,),
    "padding": "SAME",
    "norm": "batch",
    "dense": (8,),
    "dropout": 0.3,
}


def gradients(axis_name):
    module = cnn.Model(num_classes=3, dtype=jnp.float32, axis_name=axis_name, **OPTIONS)

    def loss(params, stats, x, keys):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = module.apply(variables, x, train=True, keys=keys, mutable=["batch_stats"])
        return jnp.sum(logits**2), changed["batch_stats"]

    def run(params, stats, x, keys):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, x, keys)
        return (jax.lax.psum(grads, axis_name) if axis_name else grads), stats

    return module, run


@pytest.fixture(scope="module")
def one_device():
    module, run = gradients(None)
    # Each device's share has another mean and scale, so that statistics of a share would show.
    x = np.random.default_rng(0).standard_normal((8, 6, 6, 1)) * np.arange(1, 9).reshape(8, 1, 1, 1)
    x = (x + np.arange(8).reshape(8, 1, 1, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 8)
    variables = jax.jit(lambda key: module.init(key, x, train=False))(jax.random.key(0))
    given = (variables["params"], variables["batch_stats"], jnp.asarray(x), keys)
    return given, jax.jit(run)(*given)


def test_running_statistics_are_the_whole_batchs(one_device):
    (params, _, x, _), (_, stats) = one_device
    first = np.pad(np.asarray(x, np.float64)[..., 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(first, (3, 3), (1, 2))
    y = np.einsum("bhwkl,kld->bhwd", windows, np.asarray(params["stage1_conv1"]["kernel"])[:, :, 0])
    found = stats["stage1_norm1"]
    np.testing.assert_allclose(found["mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-4)


def test_a_mesh_of_four(one_device, tree_distance):
    (params, stats, x, keys), expected = one_device
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    got = jax.jit(gradients(None)[1], out_shardings=(whole, whole))(
        *jax.device_put((params, stats), whole), *jax.device_put((x, keys), cut)
    )
    # Gradients are of the order of 100; only the order of summation differs.
    assert tree_distance(jax.device_get(got), jax.device_get(expected)) < 2e-3


def test_pmap_over_four(one_device, tree_distance):
    (params, stats, x, keys), expected = one_device
    run = jax.pmap(gradients("data")[1], axis_name="data", in_axes=(None, None, 0, 0))
    got = run(params, stats, x.reshape(4, 2, 6, 6, 1), keys.reshape(4, 2))
    for device in range(4):
        mine = jax.tree.map(lambda leaf, device=device: leaf[device], jax.device_get(got))
        assert tree_distance(mine, jax.device_get(expected)) < 2e-3
