"""--mode=export as a user meets it: programs that run without the project, files of weights, mistakes."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """The workdir of a finished run of two seconds, with EMA and batch norm."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def pictures(trained, launch, tmp_path_factory):
    """Pictures as PNG files, as an array, and what --mode=predict says of them: {class: probability} of the best."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    images = np.rint(load_digits().images[:5] * 255 / 16).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    assert launch(f"--workdir={trained}", "--mode=predict", f"--inputs={folder}") == 0
    rows = [json.loads(row) for row in (trained / "predictions.jsonl").read_text().splitlines()]
    return images[..., None], [row["best"] for row in rows]


def export(launch, trained, format, out):
    return launch(f"--workdir={trained}", "--mode=export", f"--format={format}", f"--output={out}")


def elsewhere(code, cwd, *arguments):
    """Runs code in a Python that cannot import this project, and returns the JSON that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOAD = """
import json, sys, numpy, jax.export
try:
    import research
    sys.exit("the project can be imported")
except ImportError:
    pass
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
outputs = program.call(numpy.load(sys.argv[2]))
print(json.dumps({
    "platforms": program.platforms,
    "one": program.call(numpy.load(sys.argv[2])[:1])["logits"].shape,
    "probabilities": outputs["probabilities"].tolist(),
    "logits": outputs["logits"].tolist(),
}))
"""


def test_a_stablehlo_program_predicts_the_same_without_the_project(
    launch, trained, pictures, tmp_path, capsys
):
    images, best = pictures
    assert export(launch, trained, "stablehlo", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"written to {tmp_path}/out/model.stablehlo" in printed and "deserialize" in printed
    np.save(tmp_path / "images.npy", images)
    found = elsewhere(LOAD, tmp_path, tmp_path / "out/model.stablehlo", tmp_path / "images.npy")
    assert found["platforms"] == ["cpu", "cuda", "tpu"] and found["one"] == [1, 10]
    about = json.loads((tmp_path / "out/preprocess.json").read_text())
    for probabilities, expected in zip(found["probabilities"], best, strict=True):
        for name, probability in expected.items():
            # Normalised by NumPy there and by XLA here, which may fuse product and sum: the last bits of float32.
            assert probabilities[about["classes"].index(name)] == pytest.approx(
                probability, abs=1e-5
            )
    logits = np.array(found["logits"])
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    # float32 against float64: a few units in the last of 24 bits.
    np.testing.assert_allclose(
        found["probabilities"], odds / odds.sum(-1, keepdims=True), atol=1e-6
    )


def test_preprocess_says_what_a_program_or_a_file_of_weights_needs(launch, trained, tmp_path):
    from sklearn.datasets import load_digits

    assert export(launch, trained, "safetensors", tmp_path) == 0
    about = json.loads((tmp_path / "preprocess.json").read_text())
    assert about["inputs"] == {"image": [8, 8, 1]}
    assert about["classes"] == [str(i) for i in range(10)] and about["naming"] == "own"
    assert about["model"]["name"] == "cnn" and about["model"]["features"] == [4, 8]
    assert about["config"] == json.loads((trained / "config.json").read_text())
    # Over the training split, which is most of them: the digits are alike.
    assert about["mean"][0] == pytest.approx(load_digits().images.mean() / 16, abs=0.01)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == about["classes"]
    assert metadata["params_sha256"] == about["params_sha256"]
    assert json.loads(metadata["config"]) == about["config"]


def test_the_weights_are_those_that_evaluation_uses(launch, trained, tmp_path):
    """EMA is on in this run: the average goes out, and not what was trained last."""
    from research.engine.checkpoint import Checkpoints

    assert export(launch, trained, "safetensors", tmp_path) == 0
    checkpoints = Checkpoints(trained, read_only=True)
    _, tree = checkpoints.variables(best=False)
    checkpoints.close()
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        head, mean = file.get_tensor("head/kernel"), file.get_tensor("stage1_norm1/mean")
    np.testing.assert_array_equal(head, tree["ema"]["head"]["kernel"])
    assert not np.array_equal(head, tree["params"]["head"]["kernel"])
    np.testing.assert_array_equal(mean, tree["model_state"]["batch_stats"]["stage1_norm1"]["mean"])


def test_keras_weights_have_keras_names(launch, trained, tmp_path):
    from research.transfer import formats

    assert export(launch, trained, "keras", tmp_path) == 0
    arrays = formats.read(f"keras:{tmp_path / 'model.keras'}")
    assert arrays["stage1_conv1/kernel"].shape == (3, 3, 1, 4)
    assert arrays["stage1_norm1/moving_variance"].shape == (4,)


def test_several_formats_lie_side_by_side_and_each_may_be_written_again(launch, trained, tmp_path):
    for format in ("safetensors", "torch:own", "keras", "safetensors"):
        assert export(launch, trained, format, tmp_path) == 0, format
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "README.md",
        "model.keras",
        "model.pth",
        "model.safetensors",
        "preprocess.json",
    ]


def test_nothing_of_another_kind_is_overwritten(launch, trained, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert export(launch, trained, "safetensors", tmp_path) == 2
    assert "holds other files (thesis.tex)" in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    other = tmp_path / "other"
    assert export(launch, trained, "keras", other) == 0
    about = json.loads((other / "preprocess.json").read_text())
    (other / "preprocess.json").write_text(json.dumps({**about, "params_sha256": "0" * 64}))
    capsys.readouterr()
    assert export(launch, trained, "safetensors", other) == 2
    assert "holds model.keras of other weights" in one_line(capsys)

    (tmp_path / "file").write_text("")
    assert export(launch, trained, "safetensors", tmp_path / "file") == 2
    assert "is a file" in one_line(capsys)


def one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--format=stablhlo", "--output=out"), "did you mean 'stablehlo'"),
        (("--output=out",), "give --format=NAME; there are safetensors, torch, keras, onnx"),
        (("--format=onnx",), "give --output=DIR"),
        (("--format=torch:timm", "--output=out"), "no such naming"),
        (("--format=torch", "--output=out"), "use --format=torch:own, --format=safetensors"),
        (("--format=stablehlo:timm", "--output=out"), "a program has no naming"),
        (("--format=peft", "--output=out"), "--format=peft: the run has no adapters"),
    ],
)
def test_a_mistake_is_one_clear_line(launch, trained, tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    assert launch(f"--workdir={trained}", "--mode=export", *flags) == 2
    assert said in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_family_without_names_in_a_library(launch, small, root, tmp_path, capsys):
    flags = (f"--config={root}/configs/digits_cnn.py", "--config.model.name=vit")
    command = (*flags, f"--workdir={tmp_path / 'run'}", "--mode=export", "--format=keras")
    assert launch(*command, f"--output={tmp_path / 'out'}") == 2
    assert "model vit has no names in that library" in one_line(capsys)


def test_an_untrained_run_has_nothing_to_export(launch, small, tmp_path, capsys):
    assert export(launch, tmp_path, "stablehlo", tmp_path / "out") == 2
    assert "holds no run" in one_line(capsys)
    command = (*small, f"--workdir={tmp_path}", "--mode=export", "--format=stablehlo")
    assert launch(*command, f"--output={tmp_path / 'out'}") == 2
    assert "train first" in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("savedmodel", "tensorflow")])
def test_a_missing_package_is_named_with_its_command(
    launch, trained, tmp_path, monkeypatch, capsys, format, package
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert export(launch, trained, format, tmp_path / "out") == 2
    line = one_line(capsys)
    assert package in line and "pip install -r requirements-export.txt" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_program_that_predicts_otherwise_is_not_left_behind(
    launch, trained, tmp_path, monkeypatch, capsys
):
    from research.transfer.programs import stablehlo

    right = stablehlo.load
    monkeypatch.setattr(
        stablehlo, "load", lambda path: lambda x: {"logits": right(path)(x)["logits"] + 1}
    )
    assert export(launch, trained, "stablehlo", tmp_path / "out") == 1
    assert "nothing was written" in one_line(capsys)
    assert not list((tmp_path / "out").iterdir())
