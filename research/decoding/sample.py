"""The next token from logits: what is left out of the draw, and the draw itself. Pure functions, row by row.

B rows, V vocabulary. Filters return logits with -inf where a token is left out. They keep what the processors of
Hugging Face's transformers keep, but for equal logits at a border, which stay or go together.

Nothing is sorted, which for V = 150,000 takes a CPU 26 ms a row; a search for the border takes 0.7 ms. A draw looks
one uniform number up in the cumulative weights (0.2 ms), where Gumbel noise on every logit takes 2.6 ms.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LANES = (
    128  # numbers that are summed side by side: one long chain of additions would wait for each
)


class Sampling(NamedTuple):
    """How a token is chosen; the values are compiled in."""

    temperature: float = 1.0  # by which logits are divided; 0 takes the most likely token
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def sampling(options: Any) -> Sampling:
    """The fields of that name of `options`, such as config.generate."""
    kinds = {name: type(value) for name, value in Sampling()._asdict().items()}
    return Sampling(**{name: kind(getattr(options, name)) for name, kind in kinds.items()})


def choose(logits: jax.Array, how: Sampling, keys: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Returns a token for each row, int32 [B].

    In transformers' order: repetition penalty, temperature, top k, top p, min p, draw.

    Args:
      logits: float32 [B, V].
      keys: typed keys [B], one for each row: what a row draws does not depend on the other rows.
      seen: bool [B, V], tokens that occurred; read with a repetition penalty only.
    """
    if how.repetition_penalty != 1:
        assert seen is not None
        logits = repetition_penalty(logits, seen, how.repetition_penalty)
    if how.temperature == 0 or how.top_k == 1:
        return greedy(logits)
    return draw(restrict(logits / how.temperature, how), keys)


def restrict(logits: jax.Array, how: Sampling) -> jax.Array:
    """Applies top k, top p and min p, in that order."""
    if how.top_k:
        logits = top_k(logits, how.top_k)
    if how.top_p < 1:
        logits = top_p(logits, how.top_p)
    if how.min_p > 0:
        logits = min_p(logits, how.min_p)
    return logits


def repetition_penalty(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones (Keskar et al. 2019)."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest (Fan et al. 2018), and what equals the k-th."""
    if k >= logits.shape[-1]:
        return logits
    # The least of them, not the last: of a slice XLA makes a sort, which takes 60 times as long.
    return _keep(logits, logits >= jax.lax.top_k(logits, k)[0].min(-1, keepdims=True))


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the fewest most likely tokens that together have the probability p (Holtzman et al. 2020); at least one.

    A token goes if it and all less likely ones have 1 - p at most. Where the line runs is found by halving the
    interval of floats that it must lie in: those from 0 to 1 are in the order of their bits, read as integers.
    """
    weights = _weights(logits)
    lanes = _lanes(weights)
    border = (1 - p) * _total(lanes)

    def halve(_: jax.Array, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = low + (high - low) // 2
        weight = jax.lax.bitcast_convert_type(middle, jnp.float32)
        kept = _total(jnp.where(lanes <= weight[:, None, None], lanes, 0)) > border
        return jnp.where(kept, low, middle), jnp.where(kept, middle, high)

    ones = jnp.ones(len(logits), jnp.float32)  # the largest weight, which stays whatever p is
    high = jax.lax.bitcast_convert_type(ones, jnp.int32)
    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(high, -1), high))
    return _keep(logits, weights >= jax.lax.bitcast_convert_type(high, jnp.float32)[:, None])


def min_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps tokens at least p times as likely as the most likely one (Nguyen et al. 2024)."""
    return _keep(logits, _weights(logits) >= p)


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row, int32 [B]; the first of equals."""
    tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    best = logits == logits.max(-1, keepdims=True)
    # XLA's argmax takes a CPU four times as long. Where all is NaN, the last token: it must be one.
    return jnp.where(best, tokens, logits.shape[-1] - 1).min(-1)


def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """A token of each row with probability softmax(logits), int32 [B]; keys [B].

    One uniform number of 23 bits for each row, looked up in the cumulative weights: first which group of _LANES
    tokens, then which of the group. A probability is off by 1e-7 at most.
    """
    groups = _lanes(_weights(logits))
    sums = groups.sum(-1)
    point = jax.vmap(jax.random.uniform)(keys) * sums.sum(-1)
    group, point = _locate(sums, point)
    within, _ = _locate(jnp.take_along_axis(groups, group[:, None, None], 1)[:, 0], point)
    return group * _LANES + within


def _locate(weights: jax.Array, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where in the weights [B, N], laid end to end, the point [B] falls, and how far from that one's beginning.

    Always at one with a weight, though sums are rounded: not every sum need be above the one before, and the point may
    lie behind the last.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    sums = jnp.cumsum(weights, -1)
    last = jnp.where(weights > 0, places, 0).max(-1)
    hit = (weights > 0) & (sums > point[:, None])
    index = jnp.where(hit, places, last[:, None]).min(-1)
    before = jnp.take_along_axis(sums - weights, index[:, None], 1)[:, 0]
    return index, jnp.maximum(point - before, 0)


def _weights(logits: jax.Array) -> jax.Array:
    """Probabilities over the largest: from 0 to 1."""
    return jnp.exp(logits - logits.max(-1, keepdims=True))


def _keep(logits: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, logits, -jnp.inf)


def _lanes(x: jax.Array) -> jax.Array:
    """[B, V] as [B, V / _LANES, _LANES], with zeros at the end."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES))).reshape(len(x), -1, _LANES)


def _total(lanes: jax.Array) -> jax.Array:
    return lanes.sum(1).sum(1)
