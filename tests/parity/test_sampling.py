"""What is kept of logits, against transformers' processors."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def logits():
    """Of a peaked, a usual and a flat row; no two are equal."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(np.linspace(-scale, scale, 1003)) for scale in (30, 6, 0.1)])
    return rows.astype(np.float32)


def processed(processor, logits, tokens=None):
    tokens = np.zeros((len(logits), 0), np.int64) if tokens is None else tokens
    return processor(torch.tensor(tokens), torch.tensor(logits)).numpy()


@pytest.mark.parametrize("k", [1, 5, 1000, 1003, 9999])
def test_top_k(logits, k):
    from transformers import TopKLogitsWarper

    from research.decoding.sample import top_k

    np.testing.assert_array_equal(top_k(logits, k), processed(TopKLogitsWarper(k), logits))
    equal = np.repeat(logits[:, :60], 4, 1)  # at the border, all of them stay on both sides
    np.testing.assert_array_equal(top_k(equal, k), processed(TopKLogitsWarper(k), equal))


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.99])
def test_top_p(logits, p):
    from transformers import TopPLogitsWarper

    from research.decoding.sample import top_p

    np.testing.assert_array_equal(top_p(logits, p), processed(TopPLogitsWarper(p), logits))


@pytest.mark.parametrize("p", [0.0001, 0.05, 0.5, 0.95])
def test_min_p(logits, p):
    from transformers import MinPLogitsWarper

    from research.decoding.sample import min_p

    np.testing.assert_array_equal(min_p(logits, p), processed(MinPLogitsWarper(p), logits))


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_penalty(logits, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    from research.decoding.sample import repetition_penalty

    tokens = np.random.default_rng(1).integers(0, logits.shape[1], size=(len(logits), 90))
    seen = np.zeros(logits.shape, bool)
    seen[np.arange(len(logits))[:, None], tokens] = True
    want = processed(RepetitionPenaltyLogitsProcessor(penalty), logits, tokens)
    np.testing.assert_array_equal(repetition_penalty(logits, seen, penalty), want)


@pytest.mark.parametrize(
    "given",
    [
        dict(temperature=0.7, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
        dict(temperature=1.9, top_k=200, top_p=0.6),
        dict(temperature=0.3, min_p=0.2, repetition_penalty=0.8),
        dict(top_p=0.95, min_p=0.001),
    ],
)
def test_the_order_is_that_of_generate(logits, given):
    """The list of processors is the one that transformers' own `generate` makes of these options."""
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    from research.decoding.sample import Sampling, repetition_penalty, restrict

    shape = dict(n_layer=1, n_embd=8, n_head=1, n_positions=8, vocab_size=logits.shape[1])
    model = GPT2LMHeadModel(GPT2Config(**shape))
    off = dict(temperature=1.0, top_k=0, top_p=1.0)
    asked, kwargs = model._prepare_generation_config(
        GenerationConfig(do_sample=True, **{**off, **given})
    )
    model._prepare_special_tokens(asked, False, device="cpu")
    tokens = np.random.default_rng(1).integers(0, logits.shape[1], size=(len(logits), 90))
    processors = model._get_logits_processor(asked, 90, torch.tensor(tokens), model_kwargs=kwargs)
    want = processors(torch.tensor(tokens), torch.tensor(logits)).numpy()

    how, x = Sampling(**given), logits
    if how.repetition_penalty != 1:
        seen = np.zeros(logits.shape, bool)
        seen[np.arange(len(logits))[:, None], tokens] = True
        x = repetition_penalty(x, seen, how.repetition_penalty)
    got = np.asarray(restrict(x / how.temperature, how))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=3e-7)  # two divisions, either may round by an ulp
    assert 1 <= np.isfinite(want).sum(-1).min() < logits.shape[1]
