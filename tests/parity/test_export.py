"""Programs of every family against the runtimes that they are written for: ONNX Runtime and TensorFlow."""

import importlib
import json

import jax
import jax.export
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


def exported(launch, tmp_path, *flags):
    """Trains for a moment, and exports: a run's program, which tells its logits, beside the weights."""
    run, out = tmp_path / "run", tmp_path / "out"
    *flags, format = flags
    assert launch(*flags, f"--workdir={run}") == 0
    for kind in ("stablehlo", format):
        assert (
            launch(f"--workdir={run}", "--mode=export", f"--format={kind}", f"--output={out}") == 0
        )
    about = json.loads((out / "preprocess.json").read_text())
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    pixels = (images / 255 - np.array(about["mean"])) / np.array(about["std"])
    program = jax.export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    return out, pixels.astype(np.float32), np.asarray(program.call(images)["logits"])


def test_keras_loads_what_the_command_writes(launch, small, tmp_path):
    keras = pytest.importorskip("keras")
    out, pixels, logits = exported(launch, tmp_path, *small, "keras")
    found = keras.saving.load_model(out / "model.keras").predict(pixels, verbose=0)
    assert np.ptp(logits, 0).max() > 1e-2
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4)  # float32 in another order of sums


@pytest.mark.parametrize("name", ["resnet", "vit", "efficientnet"])
def test_the_original_library_loads_what_the_command_writes(launch, root, name, tmp_path):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    options, theirs = {
        "resnet": (("stem=imagenet",), ("resnet18", {})),
        "vit": (
            ("patch_size=4", "width=48", "depth=2", "heads=3"),
            ("vit_tiny_patch16_224",)
            + (dict(img_size=8, patch_size=4, embed_dim=48, depth=2, num_heads=3),),
        ),
        "efficientnet": ((), ("tf_efficientnet_lite0", {})),
    }[name]
    config = tmp_path / "config.py"
    lines = (root / "configs/digits_cnn.py").read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "config.model." not in line))
    flags = (
        f"--config={config}",
        f"--config.model.name={name}",
        *(f"--config.model.{option}" for option in options),
        "--config.parallel.devices=1",
        "--config.train.batch_size=32",
        "--config.train.duration=steps=2",
        "--config.eval.bootstrap=20",
        "--config.log.tensorboard=false",
    )
    out, pixels, logits = exported(launch, tmp_path, *flags, "torch:timm")
    model = timm.create_model(theirs[0], num_classes=10, in_chans=1, **theirs[1])
    model.load_state_dict(torch.load(out / "model.pth", weights_only=True))
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    # After two steps logits are small, so the bound is relative: float32 in another order of sums.
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * np.abs(logits).max())


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
