"""Greedy generation with the models' own caches against one whole row after another, up to the context's end."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.generate import generate
from research.models import rnn, transformer

V, ROOM = 31, 24
SMALL = dict(width=16, depth=2, heads=4)
MODELS = {
    "learned": (transformer, SMALL | dict(context=ROOM)),
    "offset": (transformer, SMALL | dict(context=ROOM + 2, position_offset=2)),
    "rotary": (
        transformer,
        SMALL
        | dict(position="rotary", kv_heads=2, window=4, global_every=2, norm="rms", context=ROOM),
    ),
    "gru": (rnn, dict(cell="gru", embedding=8, width=16, depth=2)),
}
PROMPTS = [[5, 9, 2], [1], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]]


def made(name):
    """The model, and parameters large enough that everything matters."""
    module, options = MODELS[name]
    m = module.Model(V, 0, "lm", jnp.float32, None, **options)
    zeros = jnp.zeros((1, ROOM), jnp.int32)
    shapes = jax.eval_shape(lambda: m.init(jax.random.key(0), zeros, train=False))["params"]
    rng = np.random.default_rng(3)
    return m, jax.tree.map(
        lambda a: (rng.standard_normal(a.shape) * 0.5).astype(np.float32), shapes
    )


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_most_likely_token_of_the_whole_row(name):
    m, params = made(name)

    def apply(params, tokens, **how):
        return m.apply({"params": params}, tokens, train=False, **how)

    whole = jax.jit(lambda tokens, real: apply(params, tokens, segments=real))
    found = generate(
        apply,
        params,
        m.empty_cache,
        [np.array(p, np.int32) for p in PROMPTS],
        options=SimpleNamespace(
            **dict(max_tokens=100, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0),
            **dict(repetition_penalty=1.0, stop=(), seed=0),
        ),
        decode=lambda ids: " ".join(map(str, ids)),
        context=getattr(m, "longest", ROOM),
    )
    assert len({tuple(one.ids) for one in found}) == 3
    for prompt, one in zip(PROMPTS, found, strict=True):
        row = [*prompt, *one.ids.tolist()]
        assert len(row) == ROOM and one.reason == "length"
        # At once: each token from those before it, which a causal model sees alone.
        best = whole(jnp.array([row]), jnp.ones((1, ROOM), jnp.int32))[0].argmax(-1)
        assert one.ids.tolist() == best[len(prompt) - 1 : -1].tolist()
