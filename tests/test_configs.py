"""Every shipped config, from the command to its summary, for two steps on tiny data made on the spot."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
# Sources that are not on every machine are stood in for by a folder of pictures of their size.
PICTURES = {
    "fashion_mnist": (28, 1),
    "tfds:cifar10": (32, 3),
    "folder": (16, 3),
    "emoji": (32, 3),
}
# Of these every word after the colon is run: where the file has a list of them, and its name.
LISTS = {"sentiment_rnn": "CELLS", "sentiment_minilm": "WAYS"}
SMALL = (
    "--config.train.batch_size=16",
    "--config.train.duration=steps=2",
    "--config.eval.batch_size=16",
    "--config.eval.bootstrap=20",
    "--config.parallel.devices=1",
)
WORDS = ("a", "bad", "dull", "film", "good", "plot", "the", "worst", "not", "so", "fine", "two")


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words_of(path: Path) -> list[str]:
    """What may stand after the colon; '' where nothing has to."""
    return list(getattr(module_of(path), LISTS[path.stem])) if path.stem in LISTS else [""]


CASES = [(path, word) for path in CONFIGS for word in words_of(path)]


@pytest.fixture
def pictures(tmp_path):
    def make(side: int, channels: int) -> Path:
        rng = np.random.default_rng(0)
        for name in ("a", "b", "c"):
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for i in range(20):
                pixels = rng.integers(
                    0, 256, (side, side, 3) if channels == 3 else (side, side), np.uint8
                )
                Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
        return tmp_path / "pictures"

    return make


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, Path]:
    """What stands in for a config's own texts, by config.data.name: unlike one another, so that none is dropped."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("texts")

    def sentence(least: int, most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    rows = [f'"{i} {sentence(4, 30)}",{("bad", "good")[i % 2]}' for i in range(100)]
    (folder / "sentences.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    chat = [{"prompt": f"{i} {sentence(3, 8)}?", "answer": sentence(2, 6)} for i in range(150)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (folder / "tree").mkdir()
    for i in range(40):
        body = "\n".join(f"    x{n} = '{sentence(3, 9)}'" for n in range(20))
        (folder / "tree" / f"module_{i}.py").write_text(f"def f{i}():\n{body}\n")
    return {
        "rated_sentences": folder / "sentences.csv",
        "table": folder / "chat.jsonl",
        "python_source": folder / "tree",
    }


@pytest.fixture(scope="session")
def hf_folders(tmp_path_factory) -> dict[str, Path]:
    """What stands in for pretrained models, by config.task.name: random parameters in Hugging Face's form.

    As deep as MiniLM, whose blocks a config may name.
    """
    import jax
    import jax.numpy as jnp

    from research.data.tokenizer import train
    from research.models.transformer import Model
    from research.transfer.hf import configs, export

    bert = {"width": 24, "depth": 6, "heads": 4, "hidden": 32, "context": 80, "pool": "first"}
    bert |= {"causal": False, "prenorm": False, "final_norm": False, "embed_norm": True}
    bert |= {"types": 2, "pooler": "tanh", "norm_epsilon": 1e-12, "dropout": 0.1}
    llama = {"width": 24, "depth": 2, "heads": 4, "kv_heads": 2, "hidden": 32, "context": 80}
    llama |= {"norm": "rms", "position": "rotary", "activation": "silu", "gated": True}
    llama |= dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "tied"), False)
    made = {}
    for task, head, options, kind in (
        ("text_classification", "classify", bert, "wordpiece"),
        ("language_model", "lm", llama, "bpe"),
    ):
        tokenizer = train(kind, [" ".join(WORDS)] * 2, size=300, lowercase=kind == "wordpiece")
        model = Model(tokenizer.size, 2, head, jnp.float32, None, **options)
        tokens = jnp.zeros((1, 8), jnp.int32)
        params = model.init(jax.random.key(0), tokens, train=False)["params"]
        made[task] = tmp_path_factory.mktemp(kind)
        export.write(
            made[task],
            params,
            options,
            head=head,
            vocab_size=tokenizer.size,
            class_names=("no", "yes") if head == "classify" else (),
            tokenizer_files=tokenizer.to_files(),
            pad=tokenizer.pad,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
        )
        assert configs.about(f"hf:{made[task]}").head == head
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "word"), CASES, ids=[f"{path.stem}{word and ':'}{word}" for path, word in CASES]
)
def test_two_steps_of_every_config(launch, pictures, texts, hf_folders, tmp_path, path, word):
    from research.config import load

    file = f"{path}:{word}" if word else str(path)
    given = module_of(path).get_config(*[word] * bool(word))  # before anything is looked up
    flags = list(SMALL)
    if given.model.name == "pretrained":  # names a package or a folder that may not be here
        flags += [f"--config.pretrained.source=hf:{hf_folders[given.task.name]}"]
    elif given.pretrained.source:
        flags += ["--config.pretrained.source="]
    if given.data.name in texts:
        flags += [
            f"--config.data.path={texts[given.data.name]}",
            "--config.data.text.max_length=64",
        ]
        flags += ["--config.data.validation_fraction=0.2", "--config.data.test_fraction=0.2"]
        if given.data.name != "python_source":
            flags += ["--config.data.name=table"]
    if given.data.name in PICTURES:
        side, channels = PICTURES[given.data.name]
        flags += [f"--config.data.path={pictures(side, channels)}", "--config.data.name=folder"]
        flags += [f"--config.data.image_size={side}", f"--config.data.channels={channels}"]
        flags += ["--config.data.validation_fraction=0.2"]
    overrides = [tuple(flag.removeprefix("--config.").split("=", 1)) for flag in flags]
    _, mistakes = load(file, overrides)
    assert not mistakes
    run = tmp_path / "run"
    assert launch(f"--config={file}", f"--workdir={run}", *flags) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 and np.isfinite(summary["test/loss"])
    assert (run / "report.html").stat().st_size > 10_000
    if given.data.name in texts:
        assert json.loads((run / "tokenizer.json").read_text())["model"]
