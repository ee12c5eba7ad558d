"""The tasks on text: losses against sums written out, padding and cutting of batches without influence."""

import json
import re

import jax
import numpy as np
import pytest

from research import modes
from research.config import defaults, resolve
from research.engine import parallel
from research.errors import UserErrors

WORDS = [
    "a",
    "good",
    "film",
    "bad",
    "plot",
    "the",
    "actor",
    "was",
    "fine",
    "dull",
    "and",
    "long",
    "short",
    "sweet",
    "sad",
]


@pytest.fixture
def sentences(tmp_path):
    """60 labelled lines in a CSV file, of 1 to 12 words."""
    rng = np.random.default_rng(0)
    path = tmp_path / "data.csv"
    lines = ["text,label"]
    for i in range(60):
        label = ("negative", "positive")[i % 2]
        lines.append(f"{' '.join(rng.choice(WORDS, rng.integers(1, 12)))} {i},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def config_of(tmp_path, path, task, **keys):
    config = defaults()
    config.task.name = task
    config.data.name = "table"
    config.data.path = str(path)
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.text.max_length = 24
    config.tokenizer.name = "char"
    config.model.name = "transformer"
    small = dict(width=16, depth=2, heads=2, context=32, dropout=0.0)
    for key, value in small.items():
        config.model[key] = value
    config.train.batch_size = 8
    config.eval.batch_size = 8
    texts = [(key.replace("__", "."), str(value)) for key, value in keys.items()]
    resolved, mistakes = resolve(config, texts)
    assert not mistakes
    return resolved


def built(config):
    task = modes.make_task(config, parallel.make("mesh", 1))
    params, model_state = task.init(jax.random.key(0))
    return task, params, model_state


def test_the_loss_of_a_language_model_is_the_mean_over_tokens(tmp_path, sentences):
    task, params, state = built(config_of(tmp_path, sentences, "language_model"))
    batch = task.data.train_batch(0, slice(None))
    found = task.loss(params, state, batch, {"dropout": jax.random.key(1)})
    logits = np.asarray(found.outputs["logits"], np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0] * batch["weights"]
    # float32 logits summed over at most 24 targets: 1e-5.
    np.testing.assert_allclose(found.losses * found.weights, nll.sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(found.weights, batch["weights"].sum(-1))
    hits = ((logits.argmax(-1) == batch["targets"]) * batch["weights"]).sum()
    assert float(found.sums["accuracy"]) == hits


def test_bits_per_byte_count_every_byte_of_a_split_once(tmp_path, sentences):
    task, params, state = built(config_of(tmp_path, sentences, "language_model"))
    size = task.data.sizes["test"]
    outputs = [
        task.predict(params, state, task.data.eval_batch("test", n, slice(None)))
        for n in range(-(-size // 8))
    ]
    outputs = {k: np.concatenate([o[k] for o in outputs])[:size] for k in outputs[0]}
    texts = [line.rsplit(",", 1)[0] for line in sentences.read_text().splitlines()[1:]]
    report = task.data.report
    assert outputs["bytes"].sum() < sum(len(t.encode()) for t in texts)
    assert outputs["bytes"].sum() == report["rows"]["test"]["bytes"]
    figures = task.measure(outputs, False)
    expected = outputs["nll"].sum(dtype=np.float64) / np.log(2) / outputs["bytes"].sum()
    assert figures["bits_per_byte"] == pytest.approx(expected, rel=1e-12)


def test_what_a_row_is_padded_to_does_not_change_a_classification(tmp_path, sentences):
    wide, params, state = built(config_of(tmp_path, sentences, "text_classification"))
    narrow, _, _ = built(
        config_of(tmp_path, sentences, "text_classification", data__text__buckets="(12,24)")
    )
    ids, logits = [], []
    for task in (wide, narrow):
        batches = [task.data.eval_batch("train", n, slice(None)) for n in range(3)]
        ids.append(np.concatenate([b["id"] for b in batches]))
        logits.append(np.concatenate([task.predict(params, state, b)["logits"] for b in batches]))
    np.testing.assert_array_equal(*ids)
    # Sums over other numbers of zeros: rounding of float32 activations of order 1.
    np.testing.assert_allclose(*logits, atol=2e-6)


@pytest.mark.parametrize("task", ["text_classification", "language_model"])
def test_dropout_belongs_to_examples_not_to_places_in_a_batch(tmp_path, sentences, task):
    config = config_of(tmp_path, sentences, task, model__dropout=0.3)
    task, params, state = built(config)
    rngs = {"dropout": jax.random.key(7)}
    batch = task.data.train_batch(0, slice(None))
    whole = task.loss(params, state, batch, rngs).losses
    swapped = {key: x[::-1] for key, x in batch.items()}
    other = task.loss(params, state, swapped, rngs).losses[::-1]
    # The same numbers in other rows of the products: rounding alone.
    np.testing.assert_allclose(whole, other, atol=1e-5)
    plain = task.loss(params, state, batch, {"dropout": jax.random.key(8)}).losses
    assert np.abs(whole - plain).max() > 1e-3


def test_a_masked_language_model_learns_hidden_tokens_alone(tmp_path, sentences):
    config = config_of(
        tmp_path, sentences, "language_model", task__objective="masked", model__causal="false"
    )
    task, params, state = built(config)
    batch = task.data.train_batch(0, slice(None))
    hidden = batch["weights"] > 0
    assert 0 < hidden.mean() < 0.5
    shown = (batch["segments"] > 0) & ~hidden
    np.testing.assert_array_equal(batch["tokens"][shown], batch["targets"][shown])
    figures = task.measure(
        {k: np.asarray(v) for k, v in task.predict(params, state, batch).items()}, True
    )
    assert "bits_per_byte" not in figures and "perplexity_low" in figures
    assert task.generate is None


def test_a_tokenizer_that_does_not_fit_the_model_is_told(tmp_path, sentences):
    config = config_of(tmp_path, sentences, "text_classification", model__vocabulary=5)
    with pytest.raises(UserErrors, match=r"has \d+ tokens, but the model knows .*vocabulary=5"):
        built(config)


def test_a_state_has_no_end(tmp_path, sentences):
    """A recurrent network writes as much as is asked for, however short the rows were that it learned from."""
    keys = dict(generate__max_tokens="50", generate__temperature="0.0")
    config = config_of(tmp_path, sentences, "language_model", model__name="rnn", **keys)
    task, params, state = built(config)
    (tmp_path / "tokenizer.json").write_text(task.files["tokenizer.json"])
    from research.data.tokenizer import load

    token = int(load(tmp_path / "tokenizer.json").encode(["a"], special=False)[0][0])
    bias = np.zeros_like(params["head"]["bias"])
    bias[token] = 100.0
    params["head"]["bias"] = bias
    made = task.generate(params, state, ["a good film " * 3], config.generate, lambda *piece: None)
    assert made == ["a" * 50]


@pytest.mark.parametrize(("groups", "told"), [("head/", ""), ("(block_1|head)/", "block_0")])
def test_a_loop_of_blocks_is_frozen_as_a_whole(tmp_path, sentences, groups, told):
    keys = dict(optimizer__groups=f"(({groups!r}, {{}}), ('.*', None))", parallel__devices="1")
    config = config_of(tmp_path, sentences, "text_classification", **keys, model__scan="true")
    if not told:
        modes.build(config)
        return
    with pytest.raises(UserErrors) as error:
        modes.build(config)
    (line,) = error.value.lines
    assert re.match(
        r"config.optimizer.groups: block_0/(\S+) and block_1/\1 are not trained in the same steps",
        line,
    )
    assert "set model.scan=False, or freeze them together" in line
    modes.build(config_of(tmp_path, sentences, "text_classification", **keys, model__scan="false"))


def test_conversations_count_answers_alone(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [{"prompt": f"say {i}", "answer": f"{i} it is"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(
        tmp_path, path, "language_model", tokenizer__name="byte", data__text__max_length=96,
        model__context=128,
    )  # fmt: skip
    task, _, _ = built(config)
    batch = task.data.train_batch(0, slice(None))
    from research.data.tokenizer import load

    (tmp_path / "tok").mkdir()
    for name, text in task.files.items():
        (tmp_path / "tok" / name).write_text(text)
    tokenizer = load(tmp_path / "tok")
    for targets, weights in zip(batch["targets"], batch["weights"], strict=True):
        told = tokenizer.decode(targets[weights > 0])
        assert told.count("it is") >= 1 and "say" not in told


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("text_classification", "data.augment.flip", "true"),
        ("language_model", "data.image_size", "8"),
        ("classification", "data.text.max_length", "7"),
        ("classification", "tokenizer.name", "byte"),
    ],
)
def test_keys_of_the_other_kind_of_data_are_told(task, key, value):
    config, mistakes = resolve(defaults(), [("task.name", task), (key, value)])
    assert not mistakes
    with pytest.raises(UserErrors, match=rf"config.{key}=.*: is for .*; leave it out"):
        modes.make_task(config, parallel.make("mesh", 1))
