"""Attention by tiles against the plain form with a mask, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.attention import attend, visible
from research.ops.attention_tiles import View, by_tiles


def drawn(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def view_of(length, keys, rows=2, window=2**30, seed=0):
    rng = np.random.default_rng(seed)
    places = jnp.arange(length), jnp.arange(keys)
    if length == keys:
        segments = (jnp.asarray(np.sort(rng.integers(0, 4, (rows, length)), 1)),) * 2
    else:
        segments = tuple(jnp.asarray(rng.integers(0, 3, (rows, n))) for n in (length, keys))
    positions = tuple(x[None] for x in places)
    return View(*places, segments, positions, jnp.asarray(window))


# A length that the tile divides, one that it does not, and one shorter than a tile.
@pytest.mark.parametrize(
    ("length", "keys", "causal"), [(16, 16, True), (19, 19, True), (5, 21, False)]
)
@pytest.mark.parametrize(("kv", "softcap", "window"), [(4, 0.0, 2**30), (2, 2.0, 3)])
def test_tiles_give_what_a_mask_gives(length, keys, causal, kv, softcap, window):
    q, k, v = drawn(2, length, 4, 8), drawn(2, keys, kv, 8, seed=1), drawn(2, keys, kv, 8, seed=2)
    view, weight = view_of(length, keys, window=window), drawn(2, length, 4, 8, seed=3)
    mask = visible(
        view.queries,
        view.keys,
        causal=causal,
        segments=view.segments,
        window=window,
        positions=view.positions,
    )

    def plain(q, k, v):
        turned = (a.swapaxes(1, 2) for a in (q, k, v))
        out = attend(*turned, mask=mask, scale=0.4, softcap=softcap)[0].swapaxes(1, 2)
        return jnp.sum(out * weight), out

    def tiled(q, k, v):
        out = by_tiles(q, k, v, view, causal, 0.4, softcap, 8)
        return jnp.sum(out * weight), out

    expected, theirs = jax.grad(plain, (0, 1, 2), has_aux=True)(q, k, v)
    found, ours = jax.jit(jax.grad(tiled, (0, 1, 2), has_aux=True))(q, k, v)
    for a, b in zip((*found, ours), (*expected, theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)  # float32 sums of 20 terms in another order


def test_tiles_in_bfloat16():
    q, k, v = (drawn(2, 9, 2, 8, seed=i, dtype=jnp.bfloat16) for i in range(3))
    view = view_of(9, 9)
    mask = visible(view.queries, view.keys, causal=True, segments=view.segments)
    plain = attend(*(a.swapaxes(1, 2) for a in (q, k, v)), mask=mask)[0].swapaxes(1, 2)
    found = by_tiles(q, k, v, view, True, 8**-0.5, 0.0, 4)
    assert found.dtype == jnp.bfloat16
    # Weights are rounded to 2**-9 before they are divided by their sum, or after.
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, plain)), atol=0.03)


def test_what_is_kept_grows_with_the_length_and_not_with_its_square():
    def kept(length):
        q = jnp.ones((1, length, 2, 8))
        view = view_of(length, length, rows=1)
        loss = lambda *a: by_tiles(*a, view, True, 0.3, 0.0, 32).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert kept(1024) < 4.5 * kept(256)
    assert kept(1024) < 4 * 2 * 1024 * 1024 / 8  # an eighth of one [H, T, T]
