"""The tasks on text: losses against sums written out, padding and cutting of batches without influence."""

import json
import re

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Rust

from research import modes
from research.config import defaults, resolve
from research.data.text import encode, store
from research.engine import parallel
from research.errors import UserError, UserErrors
from research.tasks.shared import texts

WORDS = ["a", "good", "film", "bad", "plot", "the", "actor", "was", "fine", "dull", "süß", "€"]


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
    config = config_of(tmp_path, sentences, "language_model")
    task, params, state = built(config)
    size = task.data.sizes["test"]
    outputs = [
        task.predict(params, state, task.data.eval_batch("test", n, slice(None)))
        for n in range(-(-size // 8))
    ]
    outputs = {k: np.concatenate([o[k] for o in outputs])[:size] for k in outputs[0]}
    kept = store.prepare(config.data, labelled=False)
    written = [line.rsplit(",", 1)[0] for line in sentences.read_text().splitlines()[1:]]
    tested = [kept.texts[i] for i in kept.splits["test"]]
    assert 0 < len(tested) < len(written) and set(tested) <= set(written)
    assert outputs["bytes"].sum() == sum(len(text.encode()) for text in tested)
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
    with pytest.raises(UserError, match=r"has \d+ tokens, but the model knows .*vocabulary=5"):
        built(config)


@pytest.mark.parametrize("rules", ["()", "(('^head/', 'skip'), ('embed', 'resize'))"])
@pytest.mark.parametrize("source", ["hf:some/where", "package:some_package"])
def test_a_tokenizer_made_here_is_none_for_foreign_weights(tmp_path, sentences, source, rules):
    given = dict(pretrained__source=source, pretrained__rules=rules)
    config = config_of(tmp_path, sentences, "text_classification", **given)
    with pytest.raises(UserError, match=r"name=char: .* set config.tokenizer.name=pretrained"):
        texts.with_tokenizer(config, labelled=True)


@pytest.mark.parametrize(
    "given",
    [
        dict(pretrained__source="orbax:some/run"),
        dict(pretrained__source="hf:some/where", pretrained__rules="((r'^embed/', 'skip'),)"),
        dict(data__loader="grain", data__workers=2),
    ],
)
def test_where_a_tokenizer_may_be_made(tmp_path, sentences, given):
    config = config_of(tmp_path, sentences, "text_classification", **given)
    assert texts.with_tokenizer(config, labelled=True)[1].size > 20


def test_texts_that_are_cut_are_told(tmp_path, sentences):
    config = config_of(tmp_path, sentences, "text_classification")
    kept, _ = texts.with_tokenizer(config, labelled=True)
    # A token a character, and one at either end.
    cut = {s: sum(len(kept.texts[i]) + 2 > 24 for i in ids) for s, ids in kept.splits.items()}
    assert all(cut.values())
    data = built(config)[0].data
    assert {split: counts["cut"] for split, counts in data.report["rows"].items()} == cut
    [line] = data.remarks
    assert line.startswith("texts cut: ") and "config.data.text.max_length=24" in line
    assert all(f"{n} of {len(kept.splits[split])} in {split}" in line for split, n in cut.items())


@pytest.fixture
def talks(tmp_path):
    """40 conversations, which JSON would write with a backslash here and there."""
    path = tmp_path / "talk.jsonl"
    rows = [
        {"prompt": f"say {i}:\n\u00e9 = \\frac", "answer": f'{i} it\nis "so"'} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["char", "wordpiece", "unigram", "bpe"])
def test_a_tokenizer_of_conversations_learns_what_is_asked_of_it(tmp_path, talks, name):
    given = dict(tokenizer__name=name, tokenizer__size=320)
    config = config_of(tmp_path, talks, "language_model", **given)
    kept, tokenizer = texts.with_tokenizer(config, labelled=False)
    assert kept.chat
    for i in kept.splits["train"]:
        ids, _ = tokenizer.chat(json.loads(kept.texts[i]), answer=True)
        assert tokenizer.unk is None or tokenizer.unk not in ids
        if name in ("char", "bpe"):
            said = "".join(
                f"<|{turn['role']}|>\n{turn['content']}\n" for turn in json.loads(kept.texts[i])
            )
            assert tokenizer.decode(ids) == f"{said}<|assistant|>\n"
    vocabulary = Rust.from_str(tokenizer.to_files()["tokenizer.json"]).get_vocab()
    assert not [token for token in vocabulary if "conten" in token]


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
    assert "set config.model.scan=False, or freeze them together" in line
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


@pytest.mark.parametrize("name", ["byte", "bpe", "wordpiece"])
def test_a_language_models_tokenizer_leaves_texts_open(tmp_path, sentences, name):
    """Or what is written after a prompt, in transformers, would stand after the end of a text."""
    config = config_of(
        tmp_path, sentences, "language_model", tokenizer__name=name, tokenizer__size=300
    )
    _, kept = texts.with_tokenizer(config, labelled=False)
    opening, _ = encode.ends(kept)
    [ids], [plain] = (kept.encode(["a good film"], special=special) for special in (True, False))
    assert ids.tolist() == [opening, *plain.tolist()]
    task, _, _ = built(config)
    (tmp_path / "kept").mkdir()
    for file, text in task.files.items():
        (tmp_path / "kept" / file).write_text(text)
    again, _ = resolve(
        config, [("tokenizer.name", "file"), ("tokenizer.path", str(tmp_path / "kept"))]
    )
    assert built(again)[0].data.fingerprints == task.data.fingerprints


def test_rows_longer_than_a_rotary_models_context_are_told(tmp_path, sentences):
    config = config_of(
        tmp_path, sentences, "language_model", model__position="rotary", model__context=16
    )
    with pytest.raises(UserError, match=r"max_length=24: is more than config.model.context=16"):
        built(config)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model__tied": "False", "task__objective": "masked", "model__causal": "False"},
        {"lora__rank": "2", "lora__layers": "('embed',)", "lora__train": "()"},
        {
            "lora__rank": "2",
            "lora__layers": "('head',)",
            "lora__train": "()",
            "model__tied": "False",
        },
    ],
)
def test_the_loss_of_a_language_model_in_blocks(tmp_path, sentences, keys):
    """Tied and untied, with an adapter of the output's matrix, whose base is frozen."""
    whole = built(config_of(tmp_path, sentences, "language_model", **keys))
    params = jax.tree.map(
        lambda x: x + 0.1 * np.random.default_rng(x.size).standard_normal(x.shape).astype(x.dtype),
        whole[1],
    )
    blocks = built(config_of(tmp_path, sentences, "language_model", task__loss_block=40, **keys))
    batch, rngs = whole[0].data.train_batch(0, slice(None)), {"dropout": jax.random.key(1)}

    def total(task):
        def loss(params):
            out = task.loss(params, {}, batch, rngs)
            return (out.losses * out.weights).sum(), (out.losses, out.sums["accuracy"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, expected), theirs = total(whole[0])
    (_, found), ours = total(blocks[0])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)  # float32
    assert found[1] == expected[1]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))
    evaluated = [task.predict(params, {}, batch) for task in (whole[0], blocks[0])]
    np.testing.assert_allclose(evaluated[1]["nll"], evaluated[0]["nll"], rtol=1e-5)
    np.testing.assert_array_equal(evaluated[1]["hits"], evaluated[0]["hits"])
    made = jax.make_jaxpr(lambda p: blocks[0].loss(p, {}, batch, rngs).losses)(params)
    assert f"8,24,{whole[0].about['vocab_size']}]" not in str(made)


def test_what_an_adapter_drops_is_no_matter_of_how_a_batch_is_cut(tmp_path, sentences):
    keys = {
        "lora__rank": "2",
        "lora__layers": "('head',)",
        "lora__train": "()",
        "lora__dropout": "0.5",
        "model__tied": "False",
        "task__loss_block": "40",
    }
    task, params, state = built(config_of(tmp_path, sentences, "language_model", **keys))
    params = jax.tree.map(
        lambda x: x + 0.1 * np.random.default_rng(x.size).standard_normal(x.shape).astype(x.dtype),
        params,
    )
    rngs = {"dropout": jax.random.key(1)}

    def losses(rows):
        return task.loss(params, state, task.data.train_batch(0, rows), rngs).losses

    halves = np.concatenate([losses(slice(0, 4)), losses(slice(4, 8))])
    np.testing.assert_allclose(halves, losses(slice(0, 8)), rtol=1e-5)  # float32


def test_blocks_of_logits_are_a_transformers(tmp_path, sentences):
    made = config_of(tmp_path, sentences, "language_model")
    keys = [("model.name", "rnn"), ("task.loss_block", "40")]
    config = defaults()
    for section in ("task", "data", "tokenizer", "train", "eval"):
        config[section].update(made[section].to_dict())
    config, mistakes = resolve(config, keys)
    assert not mistakes
    with pytest.raises(UserError, match=r"config\.task\.loss_block=40: model rnn"):
        built(config)
