"""Dropout: its rates, and masks that belong to examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.ops.dropout import drop_path, dropout

KEYS = jax.random.split(jax.random.key(3), 12)
X = jnp.asarray(
    np.random.default_rng(0).uniform(1, 2, (12, 5, 7)), jnp.float32
)  # no zeros of its own


@pytest.mark.parametrize("drop", [dropout, drop_path])
def test_a_mask_belongs_to_its_example(drop):
    whole = drop(X, KEYS, 0.5, 9)
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(drop(X[order], KEYS[order], 0.5, 9), whole[order])
    np.testing.assert_array_equal(drop(X[4:7], KEYS[4:7], 0.5, 9), whole[4:7])
    mapped = jax.pmap(lambda x, keys: drop(x, keys, 0.5, 9))(
        X.reshape(4, 3, 5, 7), KEYS.reshape(4, 3)
    )
    np.testing.assert_array_equal(mapped.reshape(X.shape), whole)


@pytest.mark.parametrize("drop", [dropout, drop_path])
def test_salts_and_keys_tell_masks_apart(drop):
    first = drop(X, KEYS, 0.5, 9)
    assert (first != drop(X, KEYS, 0.5, 10)).any()
    assert (first != drop(X, KEYS[::-1], 0.5, 9)).any()


def test_rate_and_scale():
    x = jnp.ones((200, 500))
    y = np.asarray(dropout(x, jax.random.split(jax.random.key(0), 200), 0.3))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    # 100,000 draws: five standard deviations are 0.0072.
    assert abs((y == 0).mean() - 0.3) < 0.0073


def test_drop_path_takes_whole_examples():
    x = jnp.ones((400, 3, 2))
    y = np.asarray(drop_path(x, jax.random.split(jax.random.key(0), 400), 0.25)).reshape(400, -1)
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] == 0).mean() - 0.25) < 0.11  # five standard deviations


def test_identity_and_errors():
    assert dropout(X, None, 0.5) is X
    assert dropout(X, KEYS, 0.0) is X
    assert dropout(X.astype(jnp.bfloat16), KEYS, 0.5).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="below 1"):
        dropout(X, KEYS, 1.0)
