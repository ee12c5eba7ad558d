"""Attention, its masks, segments, norms and a cache's slots against NumPy in float64 and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.attention import attend, softmax, visible
from research.ops.norm import layer_norm, rms_norm
from research.ops.segments import count_positions, last_token, pool
from research.ops.slots import write

B, H, K, T, S, E = 2, 6, 2, 5, 7, 4


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(q, k, v, mask=None, scale=None, softcap=0.0):
    """The sums, one query at a time, in float64."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b, h, t in np.ndindex(q.shape[:3]):
        head = h // (q.shape[1] // k.shape[1])
        logits = k[b, head] @ q[b, h, t] * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = softcap * np.tanh(logits / softcap) if softcap else logits
        seen = np.ones(len(logits), bool) if mask is None else mask[b % len(mask), t]
        if seen.any():
            odds = np.exp(logits[seen] - logits[seen].max())
            out[b, h, t] = odds / odds.sum() @ v[b, head][seen]
    return out


@pytest.mark.parametrize("kv", [1, 2, 6])
@pytest.mark.parametrize(("scale", "softcap"), [(None, 0.0), (0.7, 0.0), (1.3, 2.0)])
def test_attend(kv, scale, softcap):
    q, k, v = drawn(B, H, T, E), drawn(B, kv, S, E, seed=1), drawn(B, kv, S, E, seed=2)
    mask = np.random.default_rng(3).random((B, T, S)) < 0.5
    mask[0, 1] = False  # sees nothing
    out, weights = attend(q, k, v, mask=jnp.asarray(mask), scale=scale, softcap=softcap)
    # Sums of 7 products of float32.
    np.testing.assert_allclose(out, plain(q, k, v, mask, scale, softcap), atol=2e-6)
    assert not np.asarray(weights)[~np.broadcast_to(mask[:, None], weights.shape)].any()
    np.testing.assert_allclose(
        attend(q, k, v, scale=scale, softcap=softcap)[0],
        plain(q, k, v, None, scale, softcap),
        atol=2e-6,
    )


def test_the_gradient_and_rows_that_see_nothing():
    q, k, v = drawn(B, H, T, E), drawn(B, K, S, E, seed=1), drawn(B, K, S, E, seed=2)
    mask = np.random.default_rng(3).random((B, T, S)) < 0.5
    mask[0, 1] = False
    weight = drawn(B, H, T, E, seed=4)

    def loss(*a):
        return jnp.sum(attend(*a, mask=jnp.asarray(mask))[0] * weight)

    grads = jax.grad(loss, (0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)
    assert not np.asarray(grads[0])[0, :, 1].any()
    for i, x in enumerate((q, k, v)):
        step = np.float64(drawn(*x.shape, seed=5 + i))
        sides = []
        for distance in (1e-4, -1e-4):
            moved = [a + distance * step if i == j else a for j, a in enumerate((q, k, v))]
            sides.append((plain(*moved, mask) * weight).sum())
        # Differences in float64; the gradient is float32, and sums 200 numbers of the order of 1.
        expected = (sides[0] - sides[1]) / 2e-4
        np.testing.assert_allclose((grads[i] * step).sum(), expected, atol=1e-4)


def test_softmax_of_large_logits():
    logits = np.array([[1e4, 1e4 - 1, -1e4], [3e4, 3e4, 3e4]], np.float32)
    np.testing.assert_allclose(softmax(logits)[0], [0.7310586, 0.26894143, 0], atol=1e-6)
    mask = np.array([[False, False, True], [False] * 3])
    np.testing.assert_array_equal(softmax(logits, jnp.asarray(mask)), [[0, 0, 1], [0, 0, 0]])


def test_dropout_of_weights_belongs_to_examples():
    q, k, v = drawn(B, H, T, E), drawn(B, H, S, E, seed=1), drawn(B, H, S, E, seed=2)
    keys = jax.random.split(jax.random.key(0), B)
    out, weights = attend(q, k, v, keys=keys, rate=0.5, salt=3)
    for b in range(B):
        keep = jax.random.bernoulli(jax.random.fold_in(keys[b], 3), 0.5, (H, T, S))
        expected = np.einsum("hts,hse->hte", np.where(keep, 2 * weights[b], 0), v[b])
        np.testing.assert_allclose(out[b], expected, atol=2e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_visible(causal, window):
    segments = np.array([[0, 0, 1, 1, 1, 2, 2, 3], [1, 1, 1, 2, 2, 2, 0, 0]])
    positions = np.asarray(count_positions(jnp.asarray(segments)))
    t = jnp.arange(8)
    found = visible(
        t,
        t,
        causal=causal,
        segments=(segments, segments),
        window=window,
        positions=(positions,) * 2,
    )
    for b, i, j in np.ndindex(2, 8, 8):
        one = segments[b, i] == segments[b, j] != 0
        near = not window or abs(i - j) < window
        assert found[b, i, j] == (one and near and (not causal or j <= i)), (b, i, j)
    alone = visible(t, t, causal=causal, window=window)
    if not causal and not window:
        assert alone is None
    else:
        i, j = np.indices((8, 8))
        near = (abs(i - j) < window) if window else np.ones((8, 8), bool)
        np.testing.assert_array_equal(alone[0], near & ((j <= i) | (not causal)))


def test_positions_are_counted_within_documents():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 2, 0, 0], [0] * 6])
    expected = [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3], [0, 0, 1, 0, 0, 0], [0] * 6]
    np.testing.assert_array_equal(count_positions(segments), expected)


def test_pools():
    x = drawn(3, 4, 2)
    segments = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    given = jnp.asarray(segments)
    np.testing.assert_array_equal(pool(x, given, "first")[:2], [x[0, 1], x[1, 0]])
    np.testing.assert_array_equal(pool(x, given, "last")[:2], [x[0, 3], x[1, 1]])
    np.testing.assert_array_equal(last_token(x, given)[:2], [x[0, 3], x[1, 1]])
    mean = [x[0, 1:].mean(0), x[1, :2].mean(0), [0, 0]]
    np.testing.assert_allclose(pool(x, given, "mean"), mean, atol=1e-6)
    for kind, expected in (("first", x[:, 0]), ("last", x[:, -1]), ("mean", x.mean(1))):
        np.testing.assert_allclose(pool(x, None, kind), expected, atol=1e-6)


def test_norms():
    x, scale, bias = drawn(3, 8) + 100, drawn(8, seed=1), drawn(8, seed=2)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * scale + bias
    # Around 100 a float32 has 8e-6 left; the variance is taken after the mean is.
    np.testing.assert_allclose(layer_norm(x, scale, bias, 0.1), expected, atol=5e-5)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 0.1), expected, atol=2e-6)
    small = rms_norm(jnp.asarray(x, jnp.bfloat16), scale, 0.1)
    assert small.dtype == jnp.bfloat16


@pytest.mark.parametrize("batch", [1, 3])
def test_slots_are_written_in_place(batch):
    old, new = drawn(batch, K, S, E), drawn(batch, K, 2, E, seed=1)
    compiled = jax.jit(lambda k, v, n, i: write((k, v), (n, 2 * n), i), donate_argnums=(0, 1))
    found = compiled(jnp.asarray(old), jnp.asarray(old), new, 4)
    expected = old.copy()
    expected[:, :, 4:6] = new
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1][:, :, 4:6], 2 * new)
    buffer = jnp.asarray(old)
    before = buffer.unsafe_buffer_pointer()
    assert compiled(buffer, jnp.asarray(old), new, 0)[0].unsafe_buffer_pointer() == before


@pytest.mark.parametrize("batch", [1, 3])
def test_what_reads_the_slots_makes_no_copy_of_them(batch):
    def step(k, v, q, index):
        k, v = write((k, v), (q, q), index)
        return attend(q, k, v)[0], k, v

    slots, one = jnp.zeros((batch, K, 64, E)), jnp.zeros((batch, K, 1, E))
    text = jax.jit(step, donate_argnums=(0, 1)).lower(slots, slots, one, 3).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and f"{K},64,{E}]" in line]
    assert not copies
