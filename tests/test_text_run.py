"""Runs on texts, from the command to what they write: resumed to the same bits, used with the tokenizer they keep."""

import json
import signal

import numpy as np
import pytest

WORDS = [
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "up",
    "down",
    "left",
    "right",
]
COMMON = (
    "--config.parallel.devices=1",
    "--config.data.name=table",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.dropout=0.1",
    "--config.train.batch_size=8",
    "--config.train.ema=0.9",
    "--config.eval.batch_size=16",
    "--config.eval.every=steps=6",
    "--config.eval.bootstrap=20",
    "--config.checkpoint.every=steps=5",
    "--config.log.every=steps=3",
    "--config.log.tensorboard=false",
    "--config.optimizer.schedule.name=constant",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """120 labelled sentences: class 'up' begins with a colour, class 'down' with a number."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    lines = ["text,label"]
    for i in range(120):
        first = WORDS[rng.integers(3)] if i % 2 else WORDS[3 + rng.integers(7)]
        rest = " ".join(rng.choice(WORDS, rng.integers(2, 14)))
        lines.append(f"{first} {rest} {i},{('down', 'up')[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def flags(root, table):
    config = f"--config={root}/configs/python_lm.py"
    lm = [
        config, *COMMON, f"--config.data.path={table}", "--config.data.text.max_length=32",
        "--config.model.context=64", "--config.tokenizer.size=300",
        "--config.train.duration=steps=16", "--config.data.validation_fraction=0.2",
        "--config.data.test_fraction=0.2",
    ]  # fmt: skip
    classify = [
        f"--config={root}/configs/sentiment_rnn.py:bilstm", *COMMON, f"--config.data.path={table}",
        "--config.model.name=transformer", "--config.tokenizer.name=wordpiece",
        "--config.tokenizer.size=100", "--config.data.text.max_length=24",
        "--config.data.text.buckets=(8,16,24)", "--config.train.duration=steps=16",
        "--config.data.validation_fraction=0.2",
    ]  # fmt: skip
    return {"lm": lm, "classify": classify}


@pytest.fixture(scope="module")
def straight(launch, flags, tmp_path_factory):
    found = {}
    for name, given in flags.items():
        found[name] = tmp_path_factory.mktemp(name) / "run"
        assert launch(*given, f"--workdir={found[name]}") == 0
    return found


def ending(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["params_sha256"], (workdir / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["lm", "classify"])
@pytest.mark.parametrize("step", [4, 11])
def test_a_stopped_run_ends_in_the_same_bits(
    launch, flags, straight, tmp_path, monkeypatch, name, step
):
    from research.engine.writer import Writer

    old = Writer.tick

    def tick(self, at):
        old(self, at)
        if at == step:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "tick", tick)
        assert launch(*flags[name], f"--workdir={tmp_path}") == 75
    assert launch(*flags[name], f"--workdir={tmp_path}") == 0
    assert ending(tmp_path) == ending(straight[name])


def test_a_step_is_compiled_for_each_length_of_a_batch(launch, flags, tmp_path, monkeypatch):
    from research.engine import parallel

    lengths = []
    plain = parallel._mesh

    def counted(chosen):
        layout = plain(chosen)

        def lower_train(step, state, batch):
            lengths.append(batch["tokens"].shape[1])
            return layout.lower_train(step, state, batch)

        return layout._replace(lower_train=lower_train)

    monkeypatch.setattr(parallel, "_mesh", counted)
    assert launch(*flags["classify"], f"--workdir={tmp_path}") == 0
    assert len(lengths) == len(set(lengths)) > 1 and set(lengths) <= {8, 16, 24}


def test_a_run_keeps_its_tokenizer_and_is_used_with_it(launch, straight, tmp_path):
    kept = straight["classify"] / "tokenizer.json"
    assert json.loads(kept.read_text())["model"]["type"] == "WordPiece"
    # Another cache, where no tokenizer has been trained: the one that the run keeps is used.
    flags = [f"--workdir={straight['classify']}", f"--config.data.cache_dir={tmp_path}"]
    assert launch(*flags, "--mode=evaluate") == 0
    figures = json.loads((straight["classify"] / "evaluation.json").read_text())
    summary = json.loads((straight["classify"] / "summary.json").read_text())
    assert figures["test/loss"] == summary["test/loss"]
    assert not list(tmp_path.rglob("tokenizer-*"))


def test_texts_are_classified(launch, straight, tmp_path, capsys):
    lines = tmp_path / "some.jsonl"
    lines.write_text('{"text": "red one"}\n\n{"text": "one two three"}\n')
    run = f"--workdir={straight['classify']}"
    assert launch(run, "--mode=predict", f"--inputs={lines}", "--prompt=blue up") == 0
    rows = [
        json.loads(row)
        for row in (straight["classify"] / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["input"] for row in rows] == ["prompt", f"{lines}:1", f"{lines}:3"]
    assert all(row["label"] in ("up", "down") for row in rows)


def test_a_text_is_gone_on_with_as_it_grows(launch, straight, capsys):
    run = (f"--workdir={straight['lm']}", "--mode=predict", "--prompt=red green")
    more = ("--config.generate.max_tokens=12", "--config.generate.temperature=0.9")
    assert launch(*run, *more) == 0
    told = capsys.readouterr().out
    row = json.loads((straight["lm"] / "predictions.jsonl").read_text())
    assert told == f"red green{row['text']}\n"
    assert launch(*run, *more) == 0
    assert capsys.readouterr().out == told
    assert launch(*run, *more, "--config.generate.seed=1") == 0
    assert capsys.readouterr().out != told


def test_greedy_text_is_the_argmax_of_the_whole_model(launch, straight):
    import jax
    import jax.numpy as jnp

    from research.config import resolve
    from research.data.tokenizer import load
    from research.engine.checkpoint import Checkpoints
    from research.engine.state import join
    from research.engine.workdir import read_config
    from research.models.transformer import Model

    run = straight["lm"]
    flags = ("--config.generate.temperature=0", "--config.generate.max_tokens=10")
    assert launch(f"--workdir={run}", "--mode=predict", "--prompt=one two", *flags) == 0
    text = json.loads((run / "predictions.jsonl").read_text())["text"]
    config, _ = resolve(read_config(run))
    tokenizer = load(run)
    options = {key: value for key, value in config.model.items() if key != "name"}
    model = Model(tokenizer.size, tokenizer.size, "lm", jnp.float32, None, **options)
    checkpoints = Checkpoints(run, read_only=True)
    _, tree = checkpoints.variables()
    checkpoints.close()
    params = join(tree["ema"], tree["params"])
    ids = [tokenizer.eos, *tokenizer.encode(["one two"], special=False)[0].tolist()]
    start = len(ids)
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens, train=False))
    for _ in range(10):
        tokens = np.zeros((1, 32), np.int32)  # what comes later has no influence
        tokens[0, : len(ids)] = ids
        best = int(forward(tokens)[0, len(ids) - 1].argmax())
        if best == tokenizer.eos:
            break
        ids.append(best)
    assert text == tokenizer.decode(ids[start:])


def test_a_prompt_longer_than_the_context_is_one_line(launch, straight, capsys):
    with_run = (f"--workdir={straight['lm']}", "--mode=predict")
    capsys.readouterr()
    assert launch(*with_run, f"--prompt={'red ' * 200}") == 2
    told = capsys.readouterr()
    assert "more than the model's context of 64; shorten it" in told.err and not told.out


def test_a_text_goes_on_up_to_the_end_of_the_context(launch, straight):
    with_run = (f"--workdir={straight['lm']}", "--mode=predict", "--prompt=red green")
    assert launch(*with_run, "--config.generate.max_tokens=500") == 0


def test_a_language_model_reads_prompts_of_a_file(launch, straight, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo three four\n")
    more = ("--config.generate.max_tokens=5",)
    assert launch(f"--workdir={straight['lm']}", "--mode=predict", f"--inputs={path}", *more) == 0
    rows = (straight["lm"] / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["one", "two three four"]


def test_an_export_does_not_take_the_place_of_one_that_has_the_same_file(
    launch, straight, tmp_path, capsys
):
    def export(format):
        flags = ("--mode=export", f"--format={format}", f"--output={tmp_path}")
        return launch(f"--workdir={straight['lm']}", *flags)

    assert export("safetensors") == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    assert export("hf") == 2
    assert "model.safetensors is of --format=safetensors" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert export("safetensors") == 0
