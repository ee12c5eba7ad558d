"""Recurrent cells over time: Elman's, GRU and LSTM, with masks for padding and for several documents in a row.

B examples, T time steps, D width of the state, G gates of a cell (1, 3, 4), U the recurrent kernel [D, G*D]. With x_t
the step's share of the input, W x_t + b, gate by gate as PyTorch orders them:

    elman (Elman 1990)                        h_t = tanh(x_t + U h_(t-1))
    gru (Cho et al. 2014, cuDNN's form)       r, z = sigmoid(x_t + U h_(t-1));  n = tanh(x_t + r (U h_(t-1) + b_n))
                                              h_t = (1 - z) n + z h_(t-1)
    lstm (Hochreiter & Schmidhuber 1997)      i, f, o = sigmoid(x_t + U h_(t-1));  g = tanh(x_t + U h_(t-1))
                                              c_t = f c_(t-1) + i g;  h_t = o tanh(c_t)

What depends on the input alone is one large product before the loop, for all time steps; the caller makes it. So is the
gradient by U, after the backward loop: only the product with the transpose of U stays inside. All that the backward
loop does is linear in the gradient by the state; its factors are made in the forward loop, while a step's gates are in
the cache, and stand where its input stood. The loops read and write [T, B, ...] in place. benchmarks/ops.py prints the
comparison with the plain form.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from research.ops.dense import dense
from research.ops.segments import Masks

GATES = {"elman": 1, "gru": 3, "lstm": 4}
State = tuple[jax.Array, ...]  # (h,) or of an LSTM (h, c), each [B, D], float32 or wider


def recurrence(
    cell: str,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    state: State | None = None,
    masks: Masks | None = None,
    drop: jax.Array | None = None,
    reverse: bool = False,
) -> tuple[jax.Array, State]:
    """Runs a cell over time.

    Args:
      cell: 'elman', 'gru' or 'lstm'.
      x: [B, T, G*D] the input's share of every gate, biases included: W x_t + b. Its dtype is computed in; what is
        between a product and the next state, and the state itself, is float32 at least.
      kernel: U [D, G*D], of x's dtype.
      bias: b_n [D] of a GRU, which the reset gate acts on too; None for the others.
      state: before the first step; None = zeros.
      masks: of `research.ops.segments.masks_of`; None = every step counts, and none starts anew.
      drop: [B, D] what the state is multiplied by on its way into the product, the same at every step (Gal & Ghahramani
        2016); None = 1. The state that a gate lets pass is not touched. A constant: it gets no gradient.
      reverse: from the last step to the first.

    Returns:
      h [B, T, D] after each step, in x's dtype (at padding: what it was before), and the state after the last one.
      Gradients by x, kernel, bias and state; forward-mode differentiation is not defined.

    Raises:
      ValueError: an unknown cell, or shapes that do not fit.
    """
    _check(cell, x, kernel, bias)
    if state is None:
        state = zeros(cell, x.shape[0], kernel.shape[0], x.dtype)
    x, masks = jax.tree.map(lambda a: a.swapaxes(0, 1), (x, masks))
    h, state = _recurrence(cell, reverse, x, kernel, bias, state, masks, drop)
    return h.swapaxes(0, 1), state


def recurrence_plain(
    cell: str,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    state: State | None = None,
    masks: Masks | None = None,
    drop: jax.Array | None = None,
    reverse: bool = False,
) -> tuple[jax.Array, State]:
    """The reference: a scan of the cell, differentiated by JAX; arguments and results as of `recurrence`."""
    _check(cell, x, kernel, bias)
    first = zeros(cell, x.shape[0], kernel.shape[0], x.dtype) if state is None else state

    def step(state: State, given: Any) -> tuple[State, jax.Array]:
        x, mask = given
        if mask is not None:
            state = tuple(jnp.where(mask.fresh[:, None], 0, s) for s in state)
        h = state[0] if drop is None else state[0] * drop
        p = jnp.dot(h.astype(x.dtype), kernel, preferred_element_type=state[0].dtype)
        gates = jnp.split(x.astype(p.dtype), GATES[cell], -1)
        recurrent = jnp.split(p, GATES[cell], -1)
        if cell == "elman":
            new: State = (jnp.tanh(gates[0] + recurrent[0]),)
        elif cell == "gru":
            r, z = (jax.nn.sigmoid(gates[i] + recurrent[i]) for i in (0, 1))
            n = jnp.tanh(gates[2] + r * (recurrent[2] + (0 if bias is None else bias)))
            new = ((1 - z) * n + z * state[0],)
        else:
            i, f, g, o = (a + b for a, b in zip(gates, recurrent, strict=True))
            c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            new = (jax.nn.sigmoid(o) * jnp.tanh(c), c)
        if mask is not None:
            new = tuple(
                jnp.where(mask.keep[:, None], a, b) for a, b in zip(new, state, strict=True)
            )
        return new, new[0].astype(x.dtype)

    by_time = jax.tree.map(lambda a: a.swapaxes(0, 1), (x, masks))
    last, h = lax.scan(step, first, by_time, reverse=reverse)
    return h.swapaxes(0, 1), last


def input_share(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """What enters a recurrence, x [B, T, E] times kernel [E, G*D] plus bias [G*D], ready as its loop wants it.

    The loop goes over [T, B, ...], so that what a step reads and writes lies in one piece. x, the narrow side, is
    transposed for it; that the result is transposed back, and again by the recurrence, is nothing to a compiler.
    """
    return (dense(x.swapaxes(0, 1), kernel) + bias).swapaxes(0, 1)


def zeros(cell: str, batch_size: int, width: int, dtype=jnp.float32) -> State:
    """Returns the state before anything was read, [B, D] each, float32 or as wide as `dtype`."""
    shape = batch_size, width
    one = jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32))
    return (one, one) if cell == "lstm" else (one,)


def _check(cell: str, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> None:
    if cell not in GATES:
        raise ValueError(f"cell={cell!r} is none of {', '.join(GATES)}")
    d = kernel.shape[0]
    if not kernel.shape[1] == x.shape[-1] == GATES[cell] * d:
        raise ValueError(
            f"cell {cell}: x {x.shape} and a kernel {kernel.shape}; "
            f"both need {GATES[cell]} times the kernel's rows as their last axis"
        )
    if bias is not None and (cell != "gru" or bias.shape != (d,)):
        raise ValueError(f"cell {cell}: a bias {bias.shape}; only gru takes one, of shape {(d,)}")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(cell, reverse, x, kernel, bias, state, masks, drop):
    return _over_time(cell, reverse, False, x, kernel, bias, state, masks, drop)[0]


def _forward(cell, reverse, x, kernel, bias, state, masks, drop):
    out, factors = _over_time(cell, reverse, True, x, kernel, bias, state, masks, drop)
    return out, (kernel, bias, state, masks, drop, out[0], factors)


def _over_time(cell, reverse, keep_factors, x, kernel, bias, state, masks, drop):
    """-> (h [T, B, D], state), and the way back's factors: every gate's, in place of x, and two [T, B, D] more."""
    (t, b, _), d, wide = x.shape, kernel.shape[0], state[0].dtype
    scale, shift = _sigmoids(cell, d)

    def step(n, carry):
        state, x, hs, more, through = carry
        i = t - 1 - n if reverse else n
        if masks is not None:
            state = tuple(jnp.where(_at(masks.fresh, i)[:, None], 0, s) for s in state)
        h = state[0] if drop is None else state[0] * drop
        p = jnp.dot(h.astype(x.dtype), kernel, preferred_element_type=wide)
        a = _at(x, i)
        new: State
        if cell == "elman":
            new = (jnp.tanh(a + p),)
            factors: Any = ([1 - jnp.square(new[0])], None, None)
        elif cell == "gru":
            inner = p[:, 2 * d :] if bias is None else p[:, 2 * d :] + bias.astype(wide)
            rz = jnp.tanh((a[:, : 2 * d] + p[:, : 2 * d]) * 0.5) * 0.5 + 0.5
            r, z = jnp.split(rz, 2, -1)
            candidate = jnp.tanh(a[:, 2 * d :] + r * inner)
            new = ((1 - z) * candidate + z * state[0],)
            factors = _gru_factors(r, z, candidate, inner, state[0])
        else:
            # Every gate by one tanh: sigmoid(x) = (tanh(x / 2) + 1) / 2.
            a = jnp.tanh((a + p) * scale.astype(wide)) * scale.astype(wide) + shift.astype(wide)
            c = a[:, d : 2 * d] * state[1] + a[:, :d] * a[:, 2 * d : 3 * d]
            tanh = jnp.tanh(c)
            new = (a[:, 3 * d :] * tanh, c)
            factors = _lstm_factors(a, tanh, state[1])
        if masks is not None:
            keep = _at(masks.keep, i)[:, None]
            new = tuple(jnp.where(keep, a, b) for a, b in zip(new, state, strict=True))
            factors = _masked(factors, keep, _at(masks.fresh, i)[:, None])
        if keep_factors:
            for k, factor in enumerate(factors[0]):
                x = _put(x, factor, i, k * d)
            if cell != "elman":
                more, through = _put(more, factors[1], i), _put(through, factors[2], i)
        return new, x, _put(hs, new[0], i), more, through

    hs = jnp.zeros((t, b, d), x.dtype)
    beside = jnp.zeros((t, b, d), wide) if keep_factors and cell != "elman" else None
    last, factors, hs, more, through = lax.fori_loop(0, t, step, (state, x, hs, beside, beside))
    return (hs, last), (factors, more, through)


def _backward(cell, reverse, saved, given):
    kernel, bias, first, masks, drop, hs, (factors, more, through) = saved
    g, last = given
    (t, b, d), wide, dtype = hs.shape, first[0].dtype, hs.dtype
    before = _shifted(hs, first[0], masks, reverse)  # [T, B, D] h_(t-1)
    transposed = kernel.T

    def step(n, carry):
        """(dh, dc) by the state after a step -> by the state before it, and what is kept of the step."""
        dstate, factors, dhs = carry
        i = n if reverse else t - 1 - n
        dh = dstate[0] + _at(g, i)
        if cell == "lstm":
            dc = dstate[1] + dh * _at(more, i)
            product = _at(factors, i) * jnp.concatenate([dc, dc, dc, dh], -1)
        else:
            product = _at(factors, i) * jnp.concatenate([dh] * GATES[cell], -1)
        back = jnp.dot(product.astype(dtype), transposed, preferred_element_type=wide)
        if drop is not None:
            back = back * drop
        if masks is not None:
            if cell != "gru":  # padding hands the gradient on; a GRU's z says so already
                back = jnp.where(_at(masks.keep, i)[:, None], back, dh)
            back = jnp.where(_at(masks.fresh, i)[:, None], 0, back)
        if cell == "gru":
            # Written in place of the factors, the products would be copied as a whole at every step: XLA fuses their
            # computation into two readers. So dh is kept, and they are made again afterwards.
            return (back + dh * _at(through, i),), factors, _put(dhs, dh, i)
        new = (back, dc * _at(through, i)) if cell == "lstm" else (back,)
        return new, _put(factors, product, i), dhs

    dhs = jnp.zeros((t, b, d), wide) if cell == "gru" else None
    dfirst, products, dhs = lax.fori_loop(0, t, step, (last, factors, dhs))
    dx, dbias = products, None
    if cell == "gru":
        products = products * jnp.concatenate([dhs] * 3, -1)  # by what the product of h gives
        dx = jnp.concatenate([products[..., : 2 * d], more * dhs], -1)
        if bias is not None:
            dbias = products[..., 2 * d :].sum((0, 1)).astype(bias.dtype)
    if drop is not None:
        before = before * drop.astype(before.dtype)
    rows, products = before.reshape(t * b, d), products.astype(dtype).reshape(t * b, -1)
    dkernel = jnp.dot(rows.T, products, preferred_element_type=wide).astype(kernel.dtype)
    return dx.astype(dtype), dkernel, dbias, dfirst, None, None


_recurrence.defvjp(_forward, _backward)


def _lstm_factors(a, tanh, c_before):
    """dx = factors * (dc, dc, dc, dh), where dc has got dh * more; c's gradient goes on times `through`."""
    i, f, g, o = jnp.split(a, 4, -1)
    factors = [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh * o * (1 - o)]
    return factors, o * (1 - tanh * tanh), f


def _gru_factors(r, z, n, inner, before):
    """By what the product gives: factors * (dh, dh, dh), and by the input's share of n: dh * more.

    h's gradient goes on times `through`, beside what comes by way of the product.
    """
    more = (1 - z) * (1 - n * n)
    return [more * inner * r * (1 - r), (before - n) * z * (1 - z), more * r], more, z


def _masked(factors, keep, fresh):
    """Padding hands all of a state's gradient on and takes nothing for itself; a new document hands nothing back."""
    gates, more, through = factors
    gates = [jnp.where(keep, factor, 0) for factor in gates]
    if more is None:
        return gates, None, None
    through = jnp.where(fresh, 0, jnp.where(keep, through, 1))
    return gates, jnp.where(keep, more, 0), through


def _shifted(after: jax.Array, first: jax.Array, masks: Masks | None, reverse: bool) -> jax.Array:
    """States [T, B, D] before each step, from those after it and the one [B, D] before all."""
    first = first.astype(after.dtype)[None]
    before = jnp.concatenate([after[1:], first] if reverse else [first, after[:-1]])
    return before if masks is None else jnp.where(masks.fresh[..., None], 0, before)


def _sigmoids(cell: str, d: int) -> tuple[np.ndarray, np.ndarray]:
    """[G*D] each, so that tanh(x * scale) * scale + shift is an LSTM's gate of every column."""
    scale = np.repeat([0.5, 0.5, 1.0, 0.5], d)
    return scale, 1 - scale


def _at(a: jax.Array, i: jax.Array) -> jax.Array:
    """[T, B, ...] -> [B, ...] at time i."""
    return lax.dynamic_index_in_dim(a, i, 0, keepdims=False)


def _put(a: jax.Array, value: jax.Array, i: jax.Array, column: int = 0) -> jax.Array:
    """Writes [B, D] at time i, from a column on, of [T, B, ...]."""
    return lax.dynamic_update_slice(a, value.astype(a.dtype)[None], (i, 0, column))
