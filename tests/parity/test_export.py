"""Programs of every family against the runtimes that they are written for: ONNX Runtime and TensorFlow."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.config import find_module
from research.transfer import programs

pytestmark = pytest.mark.parity

MODELS = {
    "mlp": ("mlp", (9, 7, 2), {}),
    "cnn": ("cnn", (20, 20, 3), {}),
    "cnn, batch norm and mean": (
        "cnn",
        (9, 11, 1),
        dict(norm="batch", padding="SAME", head="avg", pool=(1,)),
    ),
    "resnet 18": ("resnet", (16, 16, 3), dict(width=8)),
    "resnet 50, stem of ImageNet": (
        "resnet",
        (45, 33, 3),
        dict(depth=50, width=8, stem="imagenet"),
    ),
    "vit": ("vit", (16, 16, 3), dict(width=48, depth=2)),
    "vit, mean": ("vit", (16, 16, 1), dict(width=48, depth=2, pool="gap")),
    "efficientnet": ("efficientnet", (40, 40, 3), {}),
}


@pytest.fixture(params=MODELS)
def program(request):
    """A model of random weights whose batch norms have random statistics, as a program, and its pictures."""
    name, shape, options = MODELS[request.param]
    model = find_module("models", name).Model(
        num_classes=7, dtype=jnp.dtype("float32"), axis_name=None, **options
    )
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    variables.pop("intermediates", None)
    keys = iter(jax.random.split(jax.random.key(1), 2000))
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.uniform(next(keys), x.shape), variables)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    mean, std = np.linspace(0.3, 0.6, shape[-1]).tolist(), np.linspace(0.2, 0.3, shape[-1]).tolist()
    made = programs.make(
        lambda x: model.apply(variables, x, train=False),
        shape=shape,
        mean=mean,
        std=std,
        metadata={"classes": "seven"},
    )
    pixels = (images / 255 - np.array(mean)) / np.array(std)
    logits = jax.jit(lambda x: model.apply(variables, x, train=False))(pixels.astype(np.float32))
    return made, images, np.asarray(logits)


def compare(outputs, logits):
    # Random weights far from zero cost digits: JAX's own float32 is up to 3e-5 of the largest logit away from float64
    # (the ViT), ONNX Runtime's 2e-5.
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4 * np.abs(logits).max())
    exact = logits.astype(np.float64)
    odds = np.exp(exact - exact.max(-1, keepdims=True))
    # A difference of the logits is a relative one of the probabilities.
    np.testing.assert_allclose(
        outputs["probabilities"],
        odds / odds.sum(-1, keepdims=True),
        atol=1e-4 * max(1.0, np.abs(logits).max()),
    )


@pytest.mark.parametrize("size", [5, 1])
def test_onnx_runtime_predicts_the_same(program, size, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from research.transfer.programs import onnx as format

    made, images, logits = program
    format.write(made, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["logits", "probabilities"], {"image": images[:size]})
    compare(dict(zip(["logits", "probabilities"], found, strict=True)), logits[:size])
    props = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert props == {"classes": "seven"}


def test_weights_are_in_an_onnx_file_once(program, tmp_path):
    pytest.importorskip("onnx")
    from research.transfer.programs import onnx, stablehlo

    made, *_ = program
    onnx.write(made, tmp_path / "model.onnx")
    stablehlo.write(made, tmp_path / "model.stablehlo")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "model.stablehlo")]
    assert sizes[0] < 1.2 * sizes[1] + 50_000


def test_an_operation_without_translation_is_named(tmp_path):
    pytest.importorskip("onnx")
    from research.errors import UserError
    from research.transfer.programs import onnx

    made = programs.make(
        lambda x: jnp.sort(x.reshape(x.shape[0], -1)),
        shape=(2, 2, 1),
        mean=[0.5],
        std=[0.5],
        metadata={},
    )
    with pytest.raises(UserError, match="the operation 'sort' of this model has no translation"):
        onnx.write(made, tmp_path / "model.onnx")


def test_tensorflow_predicts_the_same(program, tmp_path):
    tf = pytest.importorskip("tensorflow")
    from research.transfer.programs import savedmodel

    made, images, logits = program
    savedmodel.write(made, tmp_path / "savedmodel")
    loaded = tf.saved_model.load(str(tmp_path / "savedmodel"))
    found = loaded.signatures["serving_default"](image=tf.constant(images))
    compare({name: x.numpy() for name, x in found.items()}, logits)


@pytest.mark.parametrize("format", ["onnx", "savedmodel"])
def test_the_command_writes_and_checks_it(format, launch, small, tmp_path, capsys):
    pytest.importorskip({"onnx": "onnx", "savedmodel": "tensorflow"}[format])
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    assert launch(*small, f"--workdir={tmp_path / 'run'}") == 0
    command = (f"--workdir={tmp_path / 'run'}", "--mode=export", f"--format={format}")
    for _ in range(2):  # also over an older one
        capsys.readouterr()
        assert launch(*command, f"--output={tmp_path / 'out'}") == 0
        assert "8 test pictures its logits differ" in capsys.readouterr().out
    module = importlib.import_module(f"research.transfer.programs.{format}")
    assert (tmp_path / "out" / module.FILE).exists()
