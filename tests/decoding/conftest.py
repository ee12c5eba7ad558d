"""A causal transformer of a few lines, with the cache that models promise: what generation is tested on.

B rows, T tokens, S slots of the cache, D width, H heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny():
    """tiny(vocab_size, ...) -> params, apply, cache_of; see `make`."""
    return make


def make(vocab_size, *, width=16, heads=2, depth=2, context=64, seed=0, scale=1.0):
    """Returns params, apply, and cache_of; `apply.traces` counts how often it was traced."""
    params = init(vocab_size, width, heads, depth, context, seed, scale)

    def apply(params, tokens, *, segments=None, positions=None, cache=None, last=False):
        apply.traces += 1
        return forward(params, tokens, segments, positions, cache, last)

    def cache_of(batch_size, slots):
        shape = (depth, batch_size, slots, heads, width // heads)
        return {
            "keys": jnp.zeros(shape),
            "values": jnp.zeros(shape),
            "segments": jnp.zeros((batch_size, slots), jnp.int32),
            "index": jnp.zeros((), jnp.int32),
        }

    apply.traces = 0
    return params, apply, cache_of


def init(vocab_size, width, heads, depth, context, seed, scale):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) * scale / np.sqrt(shape[0]), jnp.float32)

    blocks = [
        {
            **{name: normal(width, heads, width // heads) for name in ("q", "k", "v")},
            "out": normal(width, width),
            "up": normal(width, 4 * width),
            "down": normal(4 * width, width),
        }
        for _ in range(depth)
    ]
    return {
        "embed": jnp.asarray(rng.normal(size=(vocab_size, width)), jnp.float32),
        "position": jnp.asarray(rng.normal(size=(context, width)), jnp.float32),
        "head": normal(width, vocab_size),
        "blocks": blocks,
    }


def norm(x):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def forward(params, tokens, segments, positions, cache, last):
    b, t = tokens.shape
    segments = jnp.ones((b, t), jnp.int32) if segments is None else segments
    positions = jnp.broadcast_to(jnp.arange(t), (b, t)) if positions is None else positions
    x = params["embed"][tokens] + params["position"][positions]
    index = 0 if cache is None else cache["index"]
    if cache is not None:
        cache = {
            **cache,
            "segments": jax.lax.dynamic_update_slice(cache["segments"], segments, (0, index)),
            "index": index + t,
        }
    sources = segments if cache is None else cache["segments"]
    order = jnp.arange(sources.shape[1])[None, :] <= index + jnp.arange(t)[:, None]
    seen = order[None] & (sources[:, None, :] == segments[:, :, None])  # [B, T, S]
    for i, p in enumerate(params["blocks"]):
        q, k, v = (jnp.einsum("btd,dhe->bthe", norm(x), p[name]) for name in ("q", "k", "v"))
        if cache is not None:
            for name, new in (("keys", k), ("values", v)):
                start = (i, 0, index, 0, 0)
                cache[name] = jax.lax.dynamic_update_slice(cache[name], new[None], start)
            k, v = cache["keys"][i], cache["values"][i]
        logits = jnp.einsum("bthe,bshe->bhts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -1e30))
        x = x + jnp.einsum("bhts,bshe->bthe", weights, v).reshape(b, t, -1) @ p["out"]
        x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
    x = x[:, -1] if last else x
    logits = norm(x) @ params["head"]
    return logits if cache is None else (logits, cache)
