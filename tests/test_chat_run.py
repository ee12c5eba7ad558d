"""Instruction tuning as a user does it: a folder of Hugging Face's form, conversations, answers, adapters."""

import json
import re
import shutil
import signal

import numpy as np
import pytest

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")
COMMON = (
    "--config.data.name=table",
    "--config.parallel.devices=1",
    "--config.train.batch_size=4",
    "--config.eval.batch_size=8",
    "--config.eval.bootstrap=0",
    "--config.log.every=steps=30",
    "--config.log.tensorboard=false",
)
LLAMA = (
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.kv_heads=1",
    "--config.model.norm=rms",
    "--config.model.position=rotary",
    "--config.model.activation=silu",
    "--config.model.gated=true",
    "--config.model.qkv_bias=false",
    "--config.model.out_bias=false",
    "--config.model.mlp_bias=false",
    "--config.model.hidden=24",
    "--config.model.context=128",
)


def talk(i):
    """A system's words in some, one turn or two."""
    first, second = NAMES[i % 8], NAMES[i // 8 % 8]
    said = [{"role": "system", "content": "be brief"}] * (i % 3 == 0)
    said = [*said, {"role": "user", "content": f"{first} {i}"}]
    said = [*said, {"role": "assistant", "content": f"{second}!"}]
    if i % 2:
        said = [*said, {"role": "user", "content": "and"}, {"role": "assistant", "content": first}]
    return said


def written(messages):
    """The conversation by the template that tokenizers without one get, and which of its characters are answers."""
    text, answers = "", []
    for message in messages:
        text += f"<|{message['role']}|>\n"
        start = len(text)
        text += message["content"] + "<|endoftext|>"
        if message["role"] == "assistant":
            answers.append((start, len(text)))
        text += "\n"
    return text, answers


@pytest.fixture(scope="module")
def place(root, launch, tmp_path_factory):
    """Holds hf (a Llama of random weights, its tokenizer without a chat template), chat.jsonl and run, tuned on it."""
    place = tmp_path_factory.mktemp("chat")
    lines = [f"{a} {b} {c}" for a in NAMES for b in NAMES for c in NAMES[:2]]
    (place / "texts.csv").write_text("text\n" + "\n".join(lines) + "\n")
    rows = [{"messages": talk(i), "split": "test" if i % 5 == 0 else "train"} for i in range(60)]
    (place / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = (f"--config={root}/configs/python_lm.py", f"--config.data.path={place}/texts.csv")
    more = (
        "--config.tokenizer.name=byte",
        "--config.data.text.max_length=128",
        "--config.train.duration=steps=1",
        "--config.data.test_fraction=0.2",
        "--config.data.validation_fraction=0.2",
    )
    assert launch(*base, *COMMON, *LLAMA, *more, f"--workdir={place}/base") == 0
    out = ("--mode=export", "--format=hf", f"--output={place}/hf")
    assert launch(f"--workdir={place}/base", *out) == 0
    assert launch(*given(root, place), f"--workdir={place}/run") == 0
    return place


def given(root, place, way="full"):
    return (
        f"--config={root}/configs/finetune_lm.py:{way}",
        *COMMON,
        f"--config.pretrained.source=hf:{place}/hf",
        f"--config.data.path={place}/chat.jsonl",
        "--config.data.split_column=split",
        "--config.data.validation_fraction=0",
        "--config.checkpoint.every=steps=40",
        "--config.checkpoint.best=test/loss",
        "--config.data.text.max_length=128",
        "--config.train.duration=steps=90",
        "--config.optimizer.learning_rate=1e-2",
    )


def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def model(place):
    """tokens int32 [n] -> logits float32 [n, V] of the run, the whole computed anew; and its tokenizer."""
    import jax
    import jax.numpy as jnp

    from research.config import resolve
    from research.data.tokenizer import load
    from research.engine.checkpoint import Checkpoints
    from research.engine.workdir import read_config
    from research.models.transformer import Model

    config, _ = resolve(read_config(place / "run"))
    tokenizer = load(place / "run")
    options = {k: v for k, v in config.model.items() if k not in ("name", "vocabulary")}
    module = Model(tokenizer.size, tokenizer.size, "lm", jnp.float32, None, **options)
    checkpoints = Checkpoints(place / "run", read_only=True)
    params = checkpoints.variables(best=False)[1]["params"]
    checkpoints.close()
    forward = jax.jit(lambda tokens: module.apply({"params": params}, tokens, train=False))

    def logits(ids):
        tokens = np.zeros((1, 128), np.int32)  # what comes later has no influence
        tokens[0, : len(ids)] = ids
        return np.asarray(forward(tokens), np.float64)[0, : len(ids)]

    return logits, tokenizer


def encoded(tokenizer, text):
    return tokenizer.encode([text], special=False, markup=True)[0].tolist()


def test_the_loss_is_that_of_the_answers_alone(place, model):
    logits, tokenizer = model
    total, count = 0.0, 0
    for i in range(0, 60, 5):
        text, answers = written(talk(i))
        ids = encoded(tokenizer, text)
        scores = logits(ids)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        for start, end in answers:
            first, last = (len(encoded(tokenizer, text[:place])) for place in (start, end))
            total -= sum(scores[j - 1, ids[j]] for j in range(first, last))
            count += last - first
    report = json.loads((place / "run/data_report.json").read_text())["rows"]
    assert report["test"]["answer_tokens"] == count and report["test"]["left_out"] == 0
    # float32 logits, summed over rows of several conversations in another order
    assert summary(place / "run")["test/loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_stopped_run_ends_in_the_same_bits(root, launch, place, tmp_path, monkeypatch):
    from research.engine.writer import Writer

    old = Writer.tick

    def tick(self, at):
        old(self, at)
        if at == 51:
            signal.raise_signal(signal.SIGTERM)

    run = (*given(root, place), f"--workdir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "tick", tick)
        assert launch(*run) == 75
    assert launch(*run) == 0
    assert summary(tmp_path)["params_sha256"] == summary(place / "run")["params_sha256"]
    assert (tmp_path / "metrics.jsonl").read_text() == (place / "run/metrics.jsonl").read_text()


def test_answers_are_those_of_the_whole_model_to_the_template(launch, place, model, capsys):
    logits, tokenizer = model
    talks = [[{"role": "user", "content": "cat 3"}], talk(3)[:-1], talk(6)[:-1]]
    inputs = place / "ask.jsonl"
    # A file as it is trained on: the last turn is what is asked for.
    rows = [
        {"prompt": "cat 3", "answer": "?"},
        *({"messages": [*t, {"role": "assistant", "content": "?"}]} for t in talks[1:]),
    ]
    inputs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = (f"--workdir={place}/run", "--mode=predict", "--config.generate.max_tokens=8")
    capsys.readouterr()
    assert launch(*run, f"--inputs={inputs}") == 0
    told = capsys.readouterr().out
    lines = (place / "run/predictions.jsonl").read_text().splitlines()
    for messages, row in zip(talks, map(json.loads, lines), strict=True):
        ids = encoded(tokenizer, written(messages)[0] + "<|assistant|>\n")
        start = len(ids)
        while len(ids) < start + 8 and (best := int(logits(ids)[-1].argmax())) != tokenizer.eos:
            ids.append(best)
        assert row["text"] == tokenizer.decode(ids[start:]) and row["prompt"] == messages
        said = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        assert f"--- {row['input']}\n{said}assistant: {row['text']}\n" in told
    assert launch(*run, "--prompt=cat 3") == 0
    assert capsys.readouterr().out == f"user: cat 3\nassistant: {json.loads(lines[0])['text']}\n"


def test_conversations_that_are_too_long_are_told(root, launch, place, capsys):
    lengths = [len(written(talk(i))[0].replace("<|endoftext|>", "$")) for i in range(60)]
    long = [i for i in range(60) if lengths[i] - 1 > 60]  # the last token is no input
    test = sum(i % 5 == 0 for i in long)
    assert launch(*given(root, place), "--config.data.text.max_length=60", "--mode=check") == 0
    told = capsys.readouterr().out
    lines = [line for line in told.splitlines() if line.startswith("conversations left out")]
    assert len(lines) == 1 and "config.data.text.max_length=60" in lines[0]
    assert f"{len(long) - test} of 48 in train" in lines[0] and f"{test} of 12 in test" in lines[0]


def test_adapters_alone_are_trained_and_written(root, launch, place, tmp_path):
    from research.transfer.formats import safetensors

    adapters = (
        r"--config.lora.layers=(r'block_\d+/attention/(query|value)$',)",
        "--config.lora.rank=2",
    )
    run = f"--workdir={tmp_path}/run"
    assert launch(*given(root, place, "lora"), *adapters, run) == 0
    out = tmp_path / "adapter"
    assert launch(run, "--mode=export", "--format=peft", f"--output={out}") == 0
    arrays = safetensors.read(out / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn"
    assert sorted(arrays) == [
        f"{stem}.{name}_proj.lora_{side}.weight" for name in "qv" for side in "AB"
    ]
    assert all(np.abs(array).max() > 0 for array in arrays.values())  # B begins with zeros
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["task_type"] == "CAUSAL_LM" and settings["r"] == 2
    assert settings["base_model_name_or_path"] == f"{place}/hf"
    told = (out / "README.md").read_text()
    assert f"base = transformers.AutoModelForCausalLM.from_pretrained('{place}/hf')" in told


def _more_tokens(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"] |= {f"extra {i}": size + i for i in range(50)}
    path.write_text(json.dumps(content))


def _truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _of_another_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_more_tokens, r"config.tokenizer: has \d+ tokens, .* are not of one model; get it anew"),
        (
            _truncated,
            r"model.safetensors: truncated: \d+ bytes were expected, found \d+; get it anew",
        ),
        (_missing_shard, "1 of 1 shards are missing: model-00002-of-00002.safetensors; put them"),
        (_of_another_type, "model_type 'mamba' is not covered; covered are bert, .*llama"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json, .*save it again"),
        (shutil.rmtree, "no such folder; name one that holds config.json and the weights"),
    ],
)
def test_folders_that_will_not_do_are_told_in_one_line(
    root, launch, place, tmp_path, capsys, damage, words
):
    folder = shutil.copytree(place / "hf", tmp_path / "hf")
    damage(folder)
    source = f"--config.pretrained.source=hf:{folder}"
    capsys.readouterr()
    assert launch(*given(root, place), source, f"--workdir={tmp_path}/run") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in told if line.startswith("error: ")]) == 1 and re.search(
        words, told[-1]
    )
    assert not (tmp_path / "run").exists()
