"""Attention, norms, gelu and biases with their gradients written out, against the plain forms and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.activations import gelu
from research.ops.attention import attend, attention, visible
from research.ops.attention_rows import by_rows
from research.ops.dense import add_bias
from research.ops.norm import layer_norm, rms_norm


def drawn(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def gradients(function, *given):
    """The value and the gradients of a weighted sum, whose weights are the same for all forms."""
    y, back = jax.vjp(function, *given)
    return y, back(drawn(*y.shape, seed=9, dtype=y.dtype))


def assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


# Lengths of one block, of a block and a token, of three, of four with a shorter last one.
@pytest.mark.parametrize("length", [1, 7, 65, 150, 203])
@pytest.mark.parametrize(("kv", "softcap"), [(4, 0.0), (2, 0.0), (1, 2.0)])
def test_causal_attention_by_rows(length, kv, softcap):
    q, k, v = (drawn(2, length, heads, 8, seed=heads) for heads in (4, kv, kv))
    segments = np.sort(np.random.default_rng(0).integers(0, 4, (2, length)), axis=1)
    places = np.arange(length)
    mask = visible(places, places, causal=True, segments=(segments, segments))

    def plain(q, k, v):
        turned = (a.swapaxes(1, 2) for a in (q, k, v))
        return attend(*turned, mask=mask, scale=0.3, softcap=softcap)[0].swapaxes(1, 2)

    def rows(q, k, v):
        return by_rows(q, k, v, mask, True, 0.3, softcap)

    found, expected = (jax.jit(lambda *a, f=f: gradients(f, *a))(q, k, v) for f in (rows, plain))
    assert_close(found, expected, 3e-6)  # float32 sums of 200 terms, in another order
    assert not np.asarray(found[0])[segments == 0].any()  # padding sees nothing


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_to_other_tokens_by_rows(dtype, masked):
    q, k, v = (drawn(2, t, h, 8, seed=t, dtype=dtype) for t, h in ((5, 4), (7, 2), (7, 2)))
    mask = jnp.asarray(np.random.default_rng(3).random((2, 5, 7)) < 0.5) if masked else None

    def plain(q, k, v):
        return attend(*(a.swapaxes(1, 2) for a in (q, k, v)), mask=mask)[0].swapaxes(1, 2)

    found = gradients(lambda *a: by_rows(*a, mask, False, 8**-0.5, 0.0), q, k, v)
    # Sums of 7 terms in float32; products in bfloat16 are rounded to 2**-8, twice.
    assert_close(found, gradients(plain, q, k, v), 1e-6 if dtype == jnp.float32 else 0.02)


def test_causal_attention_without_a_mask_sees_nothing_later():
    q, k, v = (drawn(1, 70, 2, 4, seed=i) for i in range(3))
    whole, _ = attention(q, k, v, causal=True)
    part, _ = attention(*(a[:, :66] for a in (q, k, v)), causal=True)
    np.testing.assert_allclose(whole[:, :66], part, atol=1e-6)


def test_attention_drops_and_gives_weights_as_the_plain_form():
    q, k, v = (drawn(2, 5, 4, 8, seed=i) for i in range(3))
    keys = jax.random.split(jax.random.key(0), 2)
    found = attention(q, k, v, keys=keys, rate=0.5, salt=3)
    expected = attend(*(a.swapaxes(1, 2) for a in (q, k, v)), keys=keys, rate=0.5, salt=3)
    np.testing.assert_array_equal(found[0], expected[0].swapaxes(1, 2))
    assert found[1] is None
    np.testing.assert_array_equal(attention(q, k, v, weights=True)[1], expected[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms(dtype):
    x, scale, bias = drawn(3, 5, 16, dtype=dtype) * 3 + 1, drawn(16, seed=1), drawn(16, seed=2)

    def layer(x, scale, bias):
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred / jnp.sqrt(variance + 0.1) * scale + bias).astype(x.dtype)

    def rms(x, scale):
        wide = x.astype(jnp.float32)
        mean = jnp.square(wide).mean(-1, keepdims=True)
        return (wide / jnp.sqrt(mean + 0.1) * scale).astype(x.dtype)

    # Sums of 16 terms; in bfloat16 the result is rounded to 2**-9.
    tolerance = 2e-6 if dtype == jnp.float32 else 4e-3
    found = gradients(lambda *a: layer_norm(*a, 0.1), x, scale, bias)
    assert_close(found, gradients(layer, x, scale, bias), tolerance)
    found = gradients(lambda *a: rms_norm(*a, 0.1), x, scale)
    assert_close(found, gradients(rms, x, scale), tolerance)


def test_gradients_of_norms_have_the_dtypes_of_what_they_are_of():
    given = [jnp.ones(shape, jnp.bfloat16) for shape in ((3, 8), (8,), (8,))]
    for form, arrays in ((layer_norm, given), (rms_norm, given[:2])):
        grads = jax.grad(lambda *a, form=form: form(*a, 1e-5).sum(), range(len(arrays)))(*arrays)
        assert all(g.dtype == jnp.bfloat16 for g in grads)


def test_gelu():
    from scipy.special import erf

    x = np.concatenate([np.linspace(-9, 9, 999), [0.0, -0.0, 1e-38, -1e-20, 30, -30]])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    share = 0.5 * (1 + erf(wide / np.sqrt(2)))
    # Half a unit in the last place of a half, times x; erf of XLA is right to two units.
    np.testing.assert_allclose(gelu(x), wide * share, atol=3e-7 * 9)
    slope = jax.vmap(jax.grad(gelu))(x)
    expected = share + wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, expected, atol=5e-7)
    assert gelu(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_bias_and_its_gradient():
    x, bias = drawn(2, 3, 5), drawn(5, seed=1)
    y, (dx, db) = gradients(add_bias, x, bias)
    np.testing.assert_array_equal(y, x + bias)
    np.testing.assert_allclose(db, np.asarray(dx, np.float64).sum((0, 1)), atol=1e-6)
