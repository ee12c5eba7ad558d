"""Greedy generation against transformers' `generate`, token for token, prompts of unequal length in one batch."""

import importlib
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, CONTEXT, PAD = 97, 48, 0
DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": CONTEXT,
}
MODELS = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "llama": ("Llama", DECODER),
    "mistral": ("Mistral", {**DECODER, "sliding_window": 5}),
    "gemma2": ("Gemma2", {**DECODER, "sliding_window": 5, "tie_word_embeddings": False}),
}


def theirs_of(name):
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, **options
    )
    made = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, made)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # larger than usual, so that the best token leads by far
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 2 / tensor.shape[-1] ** 0.5, generator=generator)
    return model.eval()


def ours_of(folder):
    """params, apply and cache_of of a Hugging Face folder."""
    import jax

    from research.transfer import formats
    from research.transfer.hf import configs
    from research.transfer.load import load

    options = configs.model_of(f"hf:{folder}")
    name = options.pop("name")
    module = importlib.import_module(f"research.models.{name}").Model(
        vocab_size=VOCABULARY, outputs=0, head="lm", dtype=jnp.float32, axis_name=None, **options
    )
    tokens = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, train=False))["params"]
    arrays = formats.read(f"hf:{folder}")
    loaded = load(arrays, model=name, options=options, params=shapes, model_state={})

    def apply(params, tokens, **how):
        return module.apply({"params": params}, tokens, train=False, **how)

    return loaded.params, apply, module.empty_cache


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_makes_the_same_tokens(name, penalty, tmp_path):
    from research.decoding.generate import generate

    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    params, apply, cache_of = ours_of(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCABULARY, n).astype(np.int32) for n in (9, 1, 18)]
    options = SimpleNamespace(
        max_tokens=24, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=penalty, stop=(), seed=0,
    )  # fmt: skip
    # The token that ends a text is the one that the first prompt's has in ninth place: rows end apart.
    free = generate(
        apply, params, cache_of, prompts[:1], options=options, decode=str, context=CONTEXT
    )
    eos = int(free[0].ids[8])
    ours = generate(
        apply, params, cache_of, prompts, options=options, decode=str, context=CONTEXT, eos=(eos,)
    )
    for prompt, got in zip(prompts, ours, strict=True):
        # One at a time: their penalty counts padding as seen.
        asked = torch.from_numpy(prompt[None]).long()
        made = theirs.generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=24, do_sample=False,
            repetition_penalty=penalty, eos_token_id=eos, pad_token_id=PAD,
        )  # fmt: skip
        ids = made[0, len(prompt) :].tolist()
        assert got.reason == ("eos" if ids[-1] == eos else "length")
        assert got.ids.tolist() == (ids[:-1] if ids[-1] == eos else ids)
    assert len(ours[0].ids) <= 8 and len({len(got.ids) for got in ours}) > 1
    assert len({token for got in ours for token in got.ids.tolist()}) > 5
