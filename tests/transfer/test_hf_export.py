"""Hugging Face folders out and in again, with NumPy only; and the tables that read parts of an array."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from research.data.tokenizer import Tokenizer, train
from research.data.tokenizer import load as load_tokenizer
from research.errors import UserError
from research.models import transformer
from research.modes.exports import weights
from research.tasks import language_model
from research.transfer import formats
from research.transfer.formats import safetensors
from research.transfer.hf import configs, export
from research.transfer.load import load
from research.transfer.tables import TORCH, Entry, Naming, Row, entries, written

VOCABULARY = 19
SMALL = {"width": 12, "depth": 2, "heads": 3, "context": 9}
GPT2 = {**SMALL, "hidden": 20, "activation": "gelu_tanh", "pool": "last", "head_bias": False}
BERT = {
    **SMALL,
    "causal": False,
    "prenorm": False,
    "final_norm": False,
    "embed_norm": True,
    "types": 2,
    "pool": "first",
    "pooler": "tanh",
}
LLAMA = {
    **SMALL,
    "kv_heads": 1,
    "norm": "rms",
    "position": "rotary",
    "gated": True,
    "activation": "silu",
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "pool": "last",
    "head_bias": False,
}
QWEN3 = {**LLAMA, "qk_norm": True, "head_width": 6, "tied": False}
GEMMA3 = {
    **QWEN3,
    "tied": True,
    "norm_offset": True,
    "norm_after": True,
    "embed_scale": True,
    "window": 4,
    "global_every": 2,
    "rotary_local_base": 100.0,
}
CASES = {
    "gpt2": (GPT2, "lm"),
    "gpt2_classes": (GPT2, "classify"),
    "bert": (BERT, "classify"),
    "bert_tokens": (BERT, "mlm"),
    "roberta": ({**BERT, "position_offset": 2}, "classify"),
    "distilbert": ({**BERT, "types": 0, "pooler": "relu", "norm_epsilon": 1e-12}, "mlm"),
    "llama": (LLAMA, "lm"),
    "qwen3": (QWEN3, "lm"),
    "gemma3": (GEMMA3, "classify"),
}
NAMES = ("bad", "good")


class Ours:
    """A small model of random parameters."""

    def __init__(self, options, head):
        self.options, self.head = options, head
        module = transformer.Model(
            vocab_size=VOCABULARY,
            outputs=len(NAMES),
            head=head,
            dtype=jnp.float32,
            axis_name=None,
            **options,
        )
        tokens = jnp.zeros((1, 4), jnp.int32)
        made = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, train=False))
        self.shapes = made["params"]
        rng = np.random.default_rng(0)
        self.params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32), self.shapes)

    def write(self, folder, **how):
        return export.write(
            folder,
            self.params,
            self.options,
            head=self.head,
            vocab_size=VOCABULARY,
            class_names=NAMES if self.head == "classify" else (),
            **how,
        )

    def load(self, arrays, **how):
        trees = {"params": self.shapes, "model_state": {}}
        return load(arrays, model="transformer", options=self.options, **trees, **how)

    def refuses(self, arrays, *words, **how):
        with pytest.raises(UserError) as caught:
            self.load(arrays, **how)
        text = str(caught.value)
        assert all(word in text for word in words), text
        return text.split("\n")


@pytest.fixture(scope="module")
def ours():
    made = {}

    def get(name):
        made[name] = made.get(name) or Ours(*CASES[name])
        return made[name]

    return get


def same_trees(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)


@pytest.mark.parametrize("name", CASES)
def test_what_goes_out_comes_in_the_same(name, ours, tmp_path):
    model = ours(name)
    kind = model.write(tmp_path)
    about = configs.about(f"hf:{tmp_path}")
    assert (about.model_type, about.head, about.vocab_size) == (kind, model.head, VOCABULARY)
    assert about.class_names == (NAMES if model.head == "classify" else ())
    arrays = formats.read(f"hf:{tmp_path}")
    assert {a.dtype.name for a in arrays.values()} == {"float32"}
    for naming in ("", about.naming):
        imported = model.load(arrays, naming=naming)
        assert imported.naming == about.naming and not imported.skipped
        same_trees(imported.params, model.params)
    assert (tmp_path / "generation_config.json").exists() == (model.head == "lm")
    options = configs.model_of(f"hf:{tmp_path}")
    assert all(options[key] == value for key, value in model.options.items())


def test_the_same_export_has_the_same_bytes(ours, tmp_path):
    for folder in ("a", "b"):
        ours("gpt2").write(tmp_path / folder, tokenizer_files={"tokenizer.json": '{"é": 1}'})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").read_text("utf-8") == '{"é": 1}'


def test_shards_hold_what_one_file_would(ours, tmp_path):
    model = ours("llama")
    model.write(tmp_path / "one")
    model.write(tmp_path / "many", max_shard_bytes=2000)
    whole = safetensors.read(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(a.nbytes for a in whole.values())}
    assert index["weight_map"].keys() == whole.keys()
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    count = len(shards)
    assert count > 2 and shards[0] == f"model-00001-of-{count:05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == shards
    for shard in shards:
        inside = safetensors.read(tmp_path / "many" / shard)
        assert len(inside) == 1 or sum(a.nbytes for a in inside.values()) <= 2000
        assert {k for k, v in index["weight_map"].items() if v == shard} == inside.keys()
    many = formats.read(f"hf:{tmp_path / 'many'}")
    assert {k: v.tobytes() for k, v in many.items()} == {k: v.tobytes() for k, v in whole.items()}

    shard = tmp_path / "many" / shards[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(UserError, match=rf"{shards[1]}: truncated: {len(content)} bytes .* found"):
        formats.read(f"hf:{tmp_path / 'many'}")
    shard.unlink()
    with pytest.raises(UserError, match=f"1 of {count} shards are missing: {shards[1]}"):
        formats.read(f"hf:{tmp_path / 'many'}")


def test_gpt2_keeps_queries_keys_and_values_in_one_array(ours, tmp_path):
    model = ours("gpt2")
    model.write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    layer = model.params["block_1"]["attention"]
    parts = [layer[part]["kernel"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(
        arrays["transformer.h.1.attn.c_attn.weight"], np.concatenate(parts, 1)
    )
    assert arrays["transformer.h.1.attn.c_attn.bias"].shape == (36,)
    np.testing.assert_array_equal(
        arrays["transformer.h.0.mlp.c_fc.weight"], model.params["block_0"]["mlp"]["up"]["kernel"]
    )
    del arrays["transformer.h.0.attn.c_attn.weight"]
    arrays["transformer.h.1.attn.c_attn.bias"] = arrays["transformer.h.1.attn.c_attn.bias"][:-1]
    lines = model.refuses(arrays)
    missing = "'transformer.h.0.attn.c_attn.weight' [12, 36] is missing, for "
    assert sum(missing in line for line in lines) == 3
    wrong = (
        "'transformer.h.1.attn.c_attn.bias' is [35], but 'block_1/attention/key/bias' needs [36]"
    )
    assert any(wrong in line for line in lines)


def test_linear_layers_are_turned_and_the_score_of_gpt2_too(ours, tmp_path):
    ours("gpt2_classes").write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    np.testing.assert_array_equal(
        arrays["score.weight"], ours("gpt2_classes").params["head"]["kernel"].T
    )
    ours("gemma3").write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    block = ours("gemma3").params["block_1"]
    names = {
        "self_attn.o_proj": block["attention"]["out"]["kernel"].T,
        "self_attn.k_norm": block["attention"]["key_norm"]["scale"],
        "post_attention_layernorm": block["norm1_post"]["scale"],
        "pre_feedforward_layernorm": block["norm2"]["scale"],
        "mlp.gate_proj": block["mlp"]["gate"]["kernel"].T,
    }
    for name, array in names.items():
        np.testing.assert_array_equal(arrays[f"model.layers.1.{name}.weight"], array)


def test_a_tied_head_may_be_in_the_file_if_it_is_the_same(ours, tmp_path):
    model = ours("llama")
    model.write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    assert "lm_head.weight" not in arrays
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    same_trees(model.load(arrays).params, model.params)
    arrays["lm_head.weight"][3, 1] += 1
    words = ("'lm_head.weight' differs from 'model.embed_tokens.weight'", "config.model.tied=False")
    assert len(model.refuses(arrays, *words)) == 1


def test_older_names_and_bare_models_are_understood(ours, tmp_path):
    model = ours("bert")
    model.write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")

    def old(name):
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        return name

    aged = {old(name): array for name, array in arrays.items()}
    aged["bert.embeddings.position_ids"] = np.arange(9)[None]
    aged["cls.seq_relationship.weight"] = np.ones((2, 12), np.float32)
    same_trees(model.load(aged).params, model.params)

    bare = {k.removeprefix("bert."): v for k, v in arrays.items() if k.startswith("bert.")}
    lines = model.refuses(bare, "'classifier.weight' [2, 12] is missing, for 'head/kernel'")
    assert len(lines) == 2 and all("(r'^head/', 'skip')" in line for line in lines)
    imported = model.load(bare, rules=((r"^head/", "skip"),))
    assert imported.naming == "bert" and imported.params["head"] == {"bias": None, "kernel": None}
    same_trees({**imported.params, "head": 0}, {**model.params, "head": 0})


def test_what_a_task_has_no_use_for_is_told_in_one_line(ours, tmp_path):
    ours("bert_tokens").write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    lines = ours("bert").refuses(arrays, "(r'^pooler/', 'skip')", "(r'^head/', 'skip')")
    extra = [line for line in lines if "nothing here takes" in line]
    assert len(extra) == 1 and "of a head for tokens; add (r'^(cls" in extra[0]
    rule = extra[0].split("add (r'")[1].split("', 'skip')")[0]
    rules = ((rule, "skip"), (r"^(head|pooler)/", "skip"))
    assert len(ours("bert").load(arrays, rules=rules).skipped) == 4


def test_families_are_told_apart(ours, tmp_path):
    files = {}
    for name in ("gpt2", "bert", "llama", "qwen3", "gemma3", "distilbert"):
        ours(name).write(tmp_path / name)
        files[name] = formats.read(f"hf:{tmp_path / name}")
    kinds = {"gpt2": "a GPT-2", "bert": "a BERT", "distilbert": "a DistilBERT"}
    for name, what in kinds.items():
        ours("llama").refuses(files[name], f"arrays of {what} of transformers")
    extra = ours("llama").refuses(files["qwen3"], "'model.layers.0.self_attn.q_norm.weight'")
    assert any("nothing here takes" in line for line in extra)
    ours("gemma3").refuses(files["qwen3"], "pre_feedforward_layernorm")
    ours("gpt2").refuses(files["gemma3"], "a Gemma 3 of transformers")


def test_half_precision_asks_for_the_rule(ours, tmp_path):
    model = ours("llama")
    model.write(tmp_path)
    arrays = {k: v.astype(np.float16) for k, v in formats.read(f"hf:{tmp_path}").items()}
    model.refuses(arrays, "arrays are float16", "('.*', 'cast')")
    imported = model.load(arrays, rules=((".*", "cast"),))
    rounded = jax.tree.map(lambda a: a.astype(np.float16).astype(np.float32), model.params)
    same_trees(imported.params, rounded)


def test_tables_of_other_lengths_are_told_with_the_mend(ours, tmp_path):
    model = ours("bert")
    model.write(tmp_path)
    arrays = formats.read(f"hf:{tmp_path}")
    for name, rows, words in (
        (
            "position_embeddings",
            30,
            "'position/embedding' needs [9, 12]; set config.model.context=30",
        ),
        ("word_embeddings", 25, "config.tokenizer.name='pretrained'"),
    ):
        other = {f"bert.embeddings.{name}.weight": np.ones((rows, 12), np.float32)}
        (line,) = model.refuses(arrays | other, f"is [{rows}, 12]", words)
        assert "skip" not in line


def test_what_cannot_be_written_is_refused_before_anything_is(ours, tmp_path):
    model = Ours({**BERT, "pool": "mean"}, "classify")
    with pytest.raises(UserError, match="model.pool='mean'"):
        model.write(tmp_path / "x")
    with pytest.raises(UserError, match="19 rows for 20 tokens"):
        export.write(tmp_path / "x", ours("gpt2").params, GPT2, head="lm", vocab_size=20)
    assert not (tmp_path / "x").exists()


# What a tokenizer has to say

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def exported(model, tokenizer, folder, about, **files):
    """Returns config.json and generation_config.json of a run's export."""
    task = SimpleNamespace(about={"head": model.head, **about}, files=tokenizer.to_files())
    config = ConfigDict({"model": {"name": "transformer", **model.options}})
    weights.write_folder(folder, config, SimpleNamespace(task=task, params=model.params), "")
    names = ("config.json", "generation_config.json")
    return [json.loads((folder / n).read_text()) for n in names if (folder / n).exists()]


def tokenizer(*, around=False, **said):
    """A tokenizer of characters: <|pad|>, <|endoftext|>, <|mask|>, <|unk|>, a ..., whose roles are those given."""
    files = train("char", ["abcdefghi"], size=300, lowercase=False).to_files()
    if not around:  # eos before and after a text to classify
        files["tokenizer.json"] = json.dumps(
            json.loads(files["tokenizer.json"]) | {"post_processor": None}
        )
    files["tokenizer_config.json"] = json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast"} | said
    )
    return Tokenizer({**files, "special_tokens_map.json": "{}"})


def test_all_that_ends_a_turn_goes_along(ours, tmp_path):
    made = tokenizer(
        eos_token="<|endoftext|>",
        chat_template=CHATML,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    ends = language_model._ends(made, chat=True)
    (closing,) = made.encode(["<|im_end|>"], special=False, markup=True)
    assert ends == [made.eos, int(closing[0])]
    for config in exported(ours("gpt2"), made, tmp_path, {"ends": ends}):
        assert config["eos_token_id"] == ends
    ends = language_model._ends(made, chat=False)
    for config in exported(ours("gpt2"), made, tmp_path, {"ends": ends}):
        assert config["eos_token_id"] == made.eos


def test_a_classifier_of_the_last_token_knows_what_fills_a_row(ours, tmp_path):
    """transformers takes the last token that is not pad_token_id, so no text may end in that one."""
    eos = {"eos_token": "<|endoftext|>"}
    for said, token in (
        (eos, "<|endoftext|>"),
        (eos | {"around": True}, "<|pad|>"),
        (eos | {"pad_token": "b"}, "b"),
    ):
        made = tokenizer(**said)
        assert (made.pad is None) == ("pad_token" not in said)
        (config,) = exported(ours("gpt2_classes"), made, tmp_path, {"classes": NAMES})
        again = load_tokenizer(tmp_path)
        assert config["pad_token_id"] == again.pad
        assert again.decode([again.pad], special=True) == token


@pytest.mark.parametrize(
    ("said", "model", "longest"),
    [
        ({}, "gpt2", 9),
        ({"model_max_length": 10**30}, "gpt2", 9),
        ({"model_max_length": int(1e30)}, "gpt2", 9),
        ({"model_max_length": 512}, "gpt2", 512),
        ({}, "llama", 9),
        # Whose first two rows of positions no text has.
        ({"pad_token": "<|endoftext|>"}, "roberta", 7),
    ],
)
def test_a_tokenizer_goes_out_with_the_models_longest_text(ours, tmp_path, said, model, longest):
    made = tokenizer(eos_token="<|endoftext|>", **said)
    about = {"classes": NAMES} if model == "roberta" else {"ends": [made.eos]}
    exported(ours(model), made, tmp_path, about)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["model_max_length"] == longest
    assert written["eos_token"] == "<|endoftext|>"


# Tables


def test_a_part_of_one_of_theirs_is_read_and_written():
    theirs = np.arange(24.0).reshape(2, 12)
    parts = [Entry(f"p{i}", ("fused",), (1, 0), (i, 3)) for i in range(3)]
    for i, entry in enumerate(parts):
        array = entry.read({"fused": theirs})
        np.testing.assert_array_equal(array, theirs[:, 4 * i : 4 * i + 4].T)
        assert entry.shape(array.shape) == theirs.shape
    table = {entry.ours: entry for entry in parts}
    arrays = {entry.ours: entry.read({"fused": theirs}) for entry in parts}
    backwards = dict(reversed(table.items()))
    for order in (table, backwards):
        (name, array), *more = written(order, arrays).items()
        assert name == "fused" and not more
        np.testing.assert_array_equal(array, theirs)
    with pytest.raises(ValueError, match="3 parts, of which 2"):
        written({key: table[key] for key in ("p0", "p2")}, arrays)
    with pytest.raises(ValueError):
        parts[0].read({"fused": theirs[:, :-1]})


def test_rows_may_leave_kernels_as_they_are():
    rows = (Row(r"a", ("x",), {}), (r"b", ("y",)))
    naming = Naming("n", "", TORCH, rows, ())
    table = entries(naming, {"a/kernel": (2, 3), "b/kernel": (2, 3)}, {})
    assert table["a/kernel"] == Entry("a/kernel", ("x.weight",))
    assert table["b/kernel"] == Entry("b/kernel", ("y.weight",), (1, 0))
