"""config.json files of known models, as they are published, and the options that they stand for."""

import copy
import dataclasses
import json

import pytest

from research.errors import UserError
from research.transfer.hf import configs
from research.transfer.hf.folder import folder_of
from research.transfer.hf.options import DEFAULTS, complete

# The published files, without what says nothing of the network.
BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
DISTILBERT = {
    "activation": "gelu",
    "architectures": ["DistilBertForSequenceClassification"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "finetuning_task": "sst-2",
    "hidden_dim": 3072,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": 30522,
}
ROBERTA = {
    **BERT,
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "vocab_size": 50257,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3 = {
    **GEMMA2,
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
# What each of them is, of the options that differ from the model's defaults.
ENCODER = {
    "causal": False,
    "prenorm": False,
    "final_norm": False,
    "embed_norm": True,
    "norm_epsilon": 1e-12,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "kv_heads": 12,
    "head_width": 64,
    "hidden": 3072,
    "context": 512,
    "types": 2,
    "pool": "first",
    "pooler": "tanh",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
DECODER = {
    "norm": "rms",
    "position": "rotary",
    "gated": True,
    "activation": "silu",
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "norm_epsilon": 1e-6,
    "pool": "last",
    "head_bias": False,
}
GEMMA = {
    **DECODER,
    "activation": "gelu_tanh",
    "norm_offset": True,
    "norm_after": True,
    "embed_scale": True,
    "depth": 26,
    "head_width": 256,
}


def sizes(width, depth, heads, kv_heads, head_width, hidden, context):
    return dict(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        hidden=hidden,
        context=context,
    )


KNOWN = {
    "bert": (BERT, ENCODER),
    "distilbert": (
        DISTILBERT,
        {**ENCODER, "depth": 6, "types": 0, "pooler": "relu"},
    ),
    "roberta": (
        ROBERTA,
        {**ENCODER, "context": 514, "position_offset": 2, "types": 1, "norm_epsilon": 1e-5},
    ),
    "gpt2": (
        GPT2,
        {
            **sizes(768, 12, 12, 12, 64, 3072, 1024),
            "activation": "gelu_tanh",
            "pool": "last",
            "head_bias": False,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
    ),
    "llama": (
        LLAMA,
        {
            **DECODER,
            **sizes(2048, 16, 32, 8, 64, 8192, 131072),
            "norm_epsilon": 1e-5,
            "rotary_base": 500000.0,
            "rotary_scaling": ("llama3", 32.0, 1.0, 4.0, 8192),
        },
    ),
    "mistral": (
        MISTRAL,
        {
            **DECODER,
            **sizes(4096, 32, 32, 8, 128, 14336, 32768),
            "norm_epsilon": 1e-5,
            "window": 4096,
            "tied": False,
        },
    ),
    "qwen2": (
        QWEN2,
        {
            **DECODER,
            **sizes(896, 24, 14, 2, 64, 4864, 32768),
            "qkv_bias": True,
            "rotary_base": 1e6,
        },
    ),
    "qwen3": (
        QWEN3,
        {
            **DECODER,
            **sizes(1024, 28, 16, 8, 128, 3072, 40960),
            "qk_norm": True,
            "rotary_base": 1e6,
        },
    ),
    "gemma2": (
        GEMMA2,
        {
            **GEMMA,
            **sizes(2304, 26, 8, 4, 256, 9216, 8192),
            "window": 4096,
            "global_every": 2,
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
        },
    ),
    "gemma3_text": (
        GEMMA3,
        {
            **GEMMA,
            **sizes(1152, 26, 4, 1, 256, 6912, 32768),
            "qk_norm": True,
            "window": 512,
            "global_every": 6,
            "rotary_base": 1e6,
            "rotary_local_base": 10000.0,
        },
    ),
}


def head_of(config):
    return configs.head_of(config) or "classify"


@pytest.mark.parametrize("name", KNOWN)
def test_published_configs_are_read(name):
    config, differs = KNOWN[name]
    untouched = copy.deepcopy(config)
    assert configs.to_model(config) == {"name": "transformer", **DEFAULTS, **differs}
    assert config == untouched


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_written_is_read_as_the_same_options(name):
    config, _ = KNOWN[name]
    options, head = configs.to_model(config), head_of(config)
    pad = 1 if name == "roberta" else 0
    how = {"vocab_size": 99, "class_names": ("a", "b"), "pad": pad, "bos": 5, "eos": 6}
    written = configs.from_model(options, head=head, **how)
    assert written["model_type"] == name
    assert configs.from_model(options, head=head, model_type=name, **how) == written
    written = json.loads(json.dumps(written))
    assert configs.to_model(written) == options
    assert configs.head_of(written) == head
    told = [written[f"{key}_token_id"] for key in ("pad", "bos", "eos")]
    assert told == [pad, 5, 6] and written["vocab_size"] == 99
    same = ("hidden_size", "num_key_value_heads", "rope_theta", "rope_scaling", "layer_norm_eps")
    for key in same:
        assert config.get(key) == written.get(key) or key not in config, key


def test_the_words_of_transformers_5_mean_the_same():
    new = dict(LLAMA)
    new["rope_parameters"] = {**new.pop("rope_scaling"), "rope_theta": new.pop("rope_theta")}
    assert configs.to_model(new) == configs.to_model(LLAMA)
    new = {k: v for k, v in GEMMA3.items() if k not in ("rope_theta", "rope_local_base_freq")}
    del new["sliding_window_pattern"]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    new["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 4
    new["layer_types"] += ["sliding_attention"] * 2
    assert configs.to_model(new) == configs.to_model(GEMMA3)


def test_the_older_word_for_scaling_changes_gemma_3_s_global_layers_alone():
    """As Gemma3TextConfig of transformers 5 merges the two."""
    new = {k: v for k, v in GEMMA3.items() if k not in ("rope_theta", "rope_local_base_freq")}
    new["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    found = configs.to_model(new)
    assert (found["rotary_base"], found["rotary_local_base"]) == (2e6, 3e4)
    assert found["rotary_scaling"] == ("linear", 8.0)
    del new["rope_parameters"]["full_attention"]
    assert configs.to_model(new)["rotary_base"] == 1e6  # transformers' value for none


def test_windows_that_begin_at_a_layer_are_those_of_all_or_none():
    windowed = {**QWEN2, "use_sliding_window": True}
    assert configs.to_model(windowed)["window"] == 0  # it would begin after the last layer
    windowed["max_window_layers"] = 0
    assert configs.to_model(windowed)["window"] == 32768
    windowed["max_window_layers"] = 23
    refused(windowed, "layer_types=")


def refused(config, *words, call=configs.to_model):
    with pytest.raises(UserError) as caught:
        call(config)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("base", "changed", "word"),
    [
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type='dynamic'"),
        (LLAMA, {"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        (LLAMA, {"rope_scaling": None, "rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts=8"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'"),
        (LLAMA, {"hidden_size": None}, "no hidden_size"),
        (LLAMA, {"hidden_size": "2048"}, "hidden_size='2048'"),
        (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type="),
        (BERT, {"is_decoder": True}, "is_decoder=True"),
        (BERT, {"add_cross_attention": True}, "add_cross_attention=True"),
        (ROBERTA, {"hidden_act": "relu"}, "model.activation='relu'"),
        (ROBERTA, {"pad_token_id": None}, "pad_token_id=None"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        (
            GEMMA3,
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "'sliding_attention'",
        ),
    ],
)
def test_what_the_model_lacks_is_refused_in_a_line(base, changed, word):
    refused({**base, **changed}, word, base["model_type"], "config.json: ")


def test_other_kinds_of_model_are_told_with_those_that_are_covered():
    for kind in ("mamba", "t5", "bloom"):
        refused({"model_type": kind}, f"'{kind}'", "bert, distilbert, gemma2", "qwen3", "MiniLM")
    refused({"model_type": "gemma3", "vision_config": {}}, "gemma3_text")
    refused({"hidden_size": 3}, "says no model_type")


DECODER_FROM_SCRATCH = {"pool": "last", "head_bias": False}


@pytest.mark.parametrize(
    ("options", "head", "kind"),
    [
        ({}, "lm", "gpt2"),
        ({**DECODER_FROM_SCRATCH, "depth": 3, "hidden": 100}, "classify", "gpt2"),
        (DECODER, "lm", "llama"),
        ({**DECODER, "qkv_bias": True}, "lm", "qwen2"),
        ({**DECODER, "qkv_bias": True, "out_bias": True}, "lm", "llama"),
        ({**DECODER, "window": 8}, "classify", "mistral"),
        ({**DECODER, "window": 8, "qk_norm": True, "global_every": 3}, "lm", "qwen3"),
        ({**GEMMA, "qk_norm": True, "window": 8, "rotary_local_base": 5.0}, "lm", "gemma3_text"),
        ({**GEMMA, "width": 64, "heads": 4, "attention_softcap": 5.0}, "lm", "gemma2"),
        ({**GEMMA, "attention_scale": 20**-0.5}, "lm", "gemma2"),
        ({**DECODER, "rotary_local_base": 7.0, "global_every": 3}, "lm", "llama"),  # of no window
        (ENCODER, "mlm", "bert"),
        ({**ENCODER, "types": 0, "pooler": "relu"}, "classify", "distilbert"),
        ({**ENCODER, "position_offset": 1}, "classify", "roberta"),
        ({"dropout": 0.3, "scan": True, "remat": "full"}, "lm", "gpt2"),
    ],
)
def test_a_model_from_scratch_is_written_as_the_kind_that_says_it(options, head, kind):
    written = configs.from_model(options, head=head, vocab_size=99, class_names=("a", "b"))
    assert written["model_type"] == kind
    found = complete(configs.to_model(written))
    skip = ("dropout", "attention_dropout")
    skip += ("tied",) if head == "classify" else ("pool", "pooler", "head_bias")
    assert {k: v for k, v in found.items() if k not in skip} == {
        k: v for k, v in complete(options).items() if k not in skip
    }


@pytest.mark.parametrize(
    ("options", "how", "words"),
    [
        ({}, {"head": "classify"}, ["model.pool='mean' (it has 'last')", "model.head_bias=True"]),
        ({**ENCODER, "pool": "mean"}, {"head": "classify"}, ["bert", "model.pool='mean'"]),
        ({**ENCODER, "types": 0}, {"head": "classify"}, ["bert", "model.types=0"]),
        ({"position": "none"}, {"head": "lm"}, ["gpt2", "model.position='none'"]),
        ({"window": 5}, {"head": "lm"}, ["model.window=5 (it has 0)"]),
        ({"width": 60, "head_width": 5}, {"head": "lm"}, ["model.head_width=5"]),
        ({}, {"head": "mlm"}, ["head 'mlm'"]),
        (
            DECODER,
            {"head": "lm", "model_type": "gpt2"},
            ["model_type gpt2 differs in", "model.gated=True"],
        ),
        (DECODER, {"head": "lm", "model_type": "lama"}, ["'lama' is not covered", "llama"]),
        (
            {**DECODER, "width": 30, "head_width": 8, "heads": 4},
            {"head": "lm", "model_type": "llama"},
            ["model.width=30 that 4 heads don't divide"],
        ),
        (
            {**ENCODER, "position_offset": 2},
            {"head": "classify", "pad": 0, "model_type": "roberta"},
            ["model.position_offset=2 with padding 0"],
        ),
        (
            {**GEMMA, "attention_scale": 0.3},
            {"head": "lm"},
            ["gemma2", "model.attention_scale=0.3"],
        ),
    ],
)
def test_options_that_no_kind_says_are_named(options, how, words):
    def call(options):
        return configs.from_model(options, vocab_size=99, class_names=("a", "b"), **how)

    refused(options, *words, "--format=hf", call=call)


def test_the_options_are_those_of_the_model():
    from research.models.transformer import Model

    fields = {f.name: f.default for f in dataclasses.fields(Model)}
    given = ("vocab_size", "vocabulary", "outputs", "head", "dtype", "axis_name", "parent", "name")
    rest = {
        k: v for k, v in fields.items() if k not in (*given, "scan", "remat", "attention_block")
    }
    assert rest == DEFAULTS


# Folders


def folder(path, config):
    path.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return path


def test_a_folder_says_what_it_is(tmp_path):
    place = f"hf:{folder(tmp_path, DISTILBERT)}"
    about = configs.about(place)
    assert about == (tmp_path, "distilbert", "distilbert", "classify", 30522, ("NEGATIVE", "POSITIVE"))  # fmt: skip
    assert configs.model_of(place) == configs.to_model(DISTILBERT)
    about = configs.about(f"hf:{folder(tmp_path, GEMMA3)}")
    assert about == (tmp_path, "gemma3_text", "gemma3", "lm", 262144, ())
    bare = configs.about(f"hf:{folder(tmp_path, {**BERT, 'architectures': ['BertModel']})}")
    assert (bare.head, bare.class_names) == ("", ())


def test_folders_are_found_beside_weights(tmp_path, monkeypatch):
    inside = folder(tmp_path / "pretrained_thing" / "model", BERT)
    (inside / "model.safetensors").write_bytes(b"")
    (tmp_path / "pretrained_thing" / "__init__.py").write_text("raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    sources = (f"safetensors:{inside}", f"safetensors:{inside}/model.safetensors")
    for source in (f"hf:{inside}", "package:pretrained-thing", *sources):
        assert folder_of(source) == inside, source


def test_folders_that_are_not_there_are_told(tmp_path, monkeypatch):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"")
    refused(f"safetensors:{tmp_path}/bare", "no config.json", call=folder_of)
    refused(f"hf:{tmp_path}/bare", "holds no config.json", call=configs.model_of)
    refused(f"hf:{folder(tmp_path / 'x', '{')}", "is no JSON", call=configs.model_of)
    refused(f"hf:{folder(tmp_path / 'x', '[1]')}", "JSON object, not list", call=configs.about)
    refused("torch:x.pth", "hf:FOLDER", call=folder_of)
    refused("hf:./nowhere", "no such folder", call=folder_of)
    refused("hf:nowhere", "no such folder", call=folder_of)


def test_a_hub_that_cannot_be_reached_is_told_in_a_line(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(name, **how):
        asked.append((name, how["revision"], how["allow_patterns"]))
        if name == "org/there":
            return str(folder(tmp_path / "fetched", BERT))
        raise LocalEntryNotFoundError("An error happened\nwhile trying")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused("hf:org/name", "no such folder here", "cannot be reached", call=folder_of)
    assert configs.about("hf:org/there@v1.0").folder == tmp_path / "fetched"
    assert [a[:2] for a in asked] == [("org/name", None), *[("org/there", "v1.0")] * 2]
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked[0][2])
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "org" / "name", GPT2)  # a folder comes first
    assert configs.about("hf:org/name").model_type == "gpt2" and len(asked) == 3


def test_classes_in_another_order_are_told(tmp_path):
    labels = {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}
    source = f"hf:{folder(tmp_path / 'a', {**BERT, 'id2label': labels})}"
    line = configs.order_problem(source, ("positive", "negative", "neutral"))
    assert "NEGATIVE, NEUTRAL, POSITIVE" in line and "positive, negative, neutral" in line
    assert "(r'^head/', 'skip')" in line
    fine = [("negative", "neutral", "positive"), ("good", "bad", "ugly"), ("negative", "positive")]
    assert not any(configs.order_problem(source, names) for names in fine)
    labels = {str(i): f"LABEL_{i}" for i in range(3)}
    folder(tmp_path / "a", {**BERT, "id2label": labels})
    assert not configs.order_problem(source, fine[0])
    assert not configs.order_problem("torch:weights.pth", fine[0])
