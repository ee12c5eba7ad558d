"""Scaled dot-product attention and who sees whom.

B examples, T queries, S keys, H heads, K heads of keys and values (H = K G), E width of a head.
"""

import jax
import jax.numpy as jnp

from research.ops import platform
from research.ops.attention_rows import by_rows
from research.ops.attention_tiles import View, by_tiles
from research.ops.dropout import dropout
from research.ops.softmax import capped, softmax


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    keys: jax.Array | None = None,
    rate: float = 0.0,
    salt: int = 0,
    weights: bool = False,
    tiles: tuple[View, int] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`attend` with positions in front of heads, in the form that is fastest where it runs.

    In cuDNN's form what a query that sees nothing gets is not zeros; its row is padding, and counts nowhere.

    Args:
      q: [B, T, H, E].
      k, v: [B, S, K, E].
      mask, scale, softcap, keys, rate, salt: as `attend` has them.
      causal: nothing later than itself is seen, T = S. A mask that is given has to say so as well.
      weights: whether they are wanted, which costs.
      tiles: who sees whom, and the tokens of a tile: the form that keeps no [T, S], without mask and dropout.

    Returns:
      The output [B, T, H, E] in v's dtype, and the weights [B, H, T, S] in float32, before dropout, or None.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if tiles is not None:
        view, block = tiles
        if not weights:
            return by_tiles(q, k, v, view, causal, scale, softcap, block), None
        mask = visible(
            *view[:2], causal=causal, segments=view[2], positions=view[3], window=view[4]
        )
    dropped = keys is not None and rate > 0.0
    form = platform.attention_form(
        q.shape, k.shape, q.dtype, softcap=softcap, dropped=dropped, weights=weights
    )
    if form == "cudnn":
        shown = None if mask is None else mask[:, None]
        out = jax.nn.dot_product_attention(
            q, k, v, mask=shown, scale=scale, is_causal=causal, implementation="cudnn"
        )
        return out, None
    if causal and mask is None:
        places = jnp.arange(q.shape[1])
        mask = visible(places, places, causal=True)
    if form == "rows":
        return by_rows(q, k, v, mask, causal, scale, softcap), None
    out, found = attend(
        *(a.swapaxes(1, 2) for a in (q, k, v)),
        mask=mask,
        scale=scale,
        softcap=softcap,
        keys=keys,
        rate=rate,
        salt=salt,
    )
    return out.swapaxes(1, 2), found if weights else None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    keys: jax.Array | None = None,
    rate: float = 0.0,
    salt: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Softmax(q k^T scale) v for each head (Vaswani et al. 2017), and the weights: the plain form.

    Heads stand in front of positions, so that both products run over contiguous blocks: on a CPU that takes half the
    time of `jax.nn.dot_product_attention` with its gradient. Query head h reads key head h // G (Ainslie et al. 2023).
    A query that sees nothing gets zeros. Weights cost nothing where nobody reads them.

    Args:
      q: [B, H, T, E].
      k, v: [B, K, S, E].
      mask: bool [B or 1, T, S], True where a query sees a key; None = everywhere.
      scale: of the logits; None = E**-0.5.
      softcap: c > 0 makes the logits c tanh(logits / c) (Gemma 2).
      keys, rate, salt: of the dropout of the weights, as in `research.ops.dropout`; keys None = none.

    Returns:
      The output [B, H, T, E] in v's dtype, and the weights [B, H, T, S] in float32, before dropout.
    """
    b, h, t, e = q.shape
    kv, s = k.shape[1], k.shape[2]
    # The queries of one group are rows of one product.
    q = (q * (e**-0.5 if scale is None else scale)).reshape(b, kv, h // kv * t, e)
    logits = jnp.einsum("bkte,bkse->bkts", q, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(b, h, t, s)
    logits, _ = capped(logits, softcap)
    weights = softmax(logits, None if mask is None else mask[:, None])
    used = dropout(weights, keys, rate, salt).astype(v.dtype).reshape(b, kv, h // kv * t, s)
    out = jnp.einsum("bkts,bkse->bkte", used, v)
    return out.reshape(b, h, t, e), weights


def visible(
    queries: jax.Array,
    keys: jax.Array,
    *,
    causal: bool,
    segments: tuple[jax.Array, jax.Array] | None = None,
    window: jax.Array | int = 0,
    positions: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array | None:
    """Returns the mask of `attend`, bool [B or 1, T, S]; None where everything is visible.

    Args:
      queries: int [T], the places of the queries in the row.
      keys: int [S].
      causal: a query sees no later place.
      segments: int [B, T] and [B, S]: only equal segments see each other, and nobody sees 0.
      window: n > 0: only positions less than n away, itself among them.
      positions: int [B or 1, T] and [B or 1, S], by which a window counts; None = the places.
    """
    rules = []
    if causal:
        rules.append(queries[None, :, None] >= keys[None, None, :])
    if segments is not None:
        ours, theirs = segments[0][:, :, None], segments[1][:, None, :]
        rules.append((ours == theirs) & (theirs != 0))
    if not isinstance(window, int) or window:
        ours, theirs = (queries[None], keys[None]) if positions is None else positions
        rules.append(jnp.abs(ours[:, :, None] - theirs[:, None, :]) < window)
    mask = None
    for rule in rules:
        mask = rule if mask is None else mask & rule
    return mask


def view_of(
    places: jax.Array, positions: jax.Array, segments: jax.Array | None, window: int
) -> View:
    """Returns the rules of `visible` for a row that sees itself: arguments as there, of queries and keys alike."""
    if segments is None:
        segments = jnp.ones((1, len(places)), jnp.int32)
    # As an array, so that one loop may choose between windows.
    reach = jnp.asarray(window or jnp.iinfo(jnp.int32).max, jnp.int32)
    return View(places, places, (segments, segments), (positions, positions), reach)
