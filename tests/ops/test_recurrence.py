"""The cells against their sums in NumPy loops, and their gradients against the plain scan and against differences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.ops.recurrence import GATES, input_share, recurrence, recurrence_plain, zeros
from research.ops.segments import Masks, masks_of

CELLS = sorted(GATES)
# Padding on either side and in the middle, documents that follow one another with and without it, a row of nothing.
SEGMENTS = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 2, 2, 2, 2],
        [1, 1, 2, 3, 3, 0, 0],
        [0, 1, 0, 1, 0, 2, 2],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    np.int32,
)


def given(cell, b=6, t=7, d=5, seed=0, dtype=np.float64):
    """x, kernel, bias, state, drop."""
    generator = np.random.default_rng(seed)
    normal = lambda *shape: generator.standard_normal(shape).astype(dtype)  # noqa: E731
    g = GATES[cell]
    state = tuple(normal(b, d) for _ in range(2 if cell == "lstm" else 1))
    drop = (generator.integers(0, 2, (b, d)) * 2).astype(dtype)
    bias = normal(d) if cell == "gru" else None
    return normal(b, t, g * d), normal(d, g * d) / 2, bias, state, drop


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def written_out(cell, x, kernel, bias, state, segments, before, drop, reverse):
    """One row, one step after another; gates as PyTorch orders them."""
    b, t, _ = x.shape
    d = len(kernel)
    out, ends = np.zeros((b, t, d)), [np.array(s) for s in state]
    for row in range(b):
        h, document = [s[row] for s in state], before[row]
        for i in reversed(range(t)) if reverse else range(t):
            if segments[row, i]:
                if segments[row, i] != document:
                    h = [np.zeros(d) for _ in h]
                document = segments[row, i]
                u = (h[0] * drop[row]) @ kernel
                a = [x[row, i, k * d : (k + 1) * d] for k in range(GATES[cell])]
                u = [u[k * d : (k + 1) * d] for k in range(GATES[cell])]
                if cell == "elman":
                    h = [np.tanh(a[0] + u[0])]
                elif cell == "gru":
                    r, z = sigmoid(a[0] + u[0]), sigmoid(a[1] + u[1])
                    n = np.tanh(a[2] + r * (u[2] + bias))
                    h = [(1 - z) * n + z * h[0]]
                else:
                    c = sigmoid(a[1] + u[1]) * h[1] + sigmoid(a[0] + u[0]) * np.tanh(a[2] + u[2])
                    h = [sigmoid(a[3] + u[3]) * np.tanh(c), c]
            out[row, i] = h[0]
        for end, s in zip(ends, h, strict=True):
            end[row] = s
    return out, ends


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", [recurrence, recurrence_plain])
def test_value_is_that_of_the_sums(form, cell, reverse):
    with jax.enable_x64(True):
        x, kernel, bias, state, drop = given(cell)
        before = np.array([1, 0, 2, 1, 1, 3], np.int32)
        masks, document = masks_of(jnp.asarray(SEGMENTS), jnp.asarray(before), reverse=reverse)
        h, last = form(cell, x, kernel, bias, state=state, masks=masks, drop=drop, reverse=reverse)
    expected, ends = written_out(cell, x, kernel, bias, state, SEGMENTS, before, drop, reverse)
    # float64 sums of five terms.
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-13)
    for end, s in zip(ends, last, strict=True):
        np.testing.assert_allclose(s, end, rtol=0, atol=1e-13)
    assert document.tolist() == ([1, 1, 2, 1, 1, 3] if reverse else [1, 1, 2, 3, 2, 3])


@pytest.mark.parametrize("cell", CELLS)
def test_elman_and_others_start_from_zeros_and_without_masks(cell):
    with jax.enable_x64(True):
        x, kernel, bias, state, _ = given(cell, t=4)
        h, last = recurrence(cell, x, kernel, bias)
    nothing = [np.zeros_like(s) for s in state]
    ones = np.ones_like(state[0])
    full = np.ones((6, 4), np.int32)
    expected, ends = written_out(cell, x, kernel, bias, nothing, full, full[:, 0], ones, False)
    np.testing.assert_allclose(h, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(last[-1], ends[-1], rtol=0, atol=1e-13)


def both(form, cell, args, **how):
    """Outputs and gradients by x, kernel, bias and state, for a fixed random gradient of every output."""
    x, kernel, bias, state, drop = args

    def run(x, kernel, bias, state):
        return form(cell, x, kernel, bias, state=state, **how)

    if how.pop("dropped", False):
        how["drop"] = drop

    @jax.jit
    def all_of(*args):
        out, back = jax.vjp(run, *args)
        generator = np.random.default_rng(9)
        g = jax.tree.map(lambda o: jnp.asarray(generator.standard_normal(o.shape), o.dtype), out)
        return out, back(g)

    return all_of(x, kernel, bias, state)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("size", "masked", "reverse"),
    [
        ((6, 7, 5), True, False),
        ((6, 7, 5), True, True),
        ((6, 7, 5), False, True),
        ((6, 1, 3), True, False),
        ((1, 9, 1), False, False),
        ((3, 2, 17), True, True),
    ],
)
def test_gradients_are_those_of_the_plain_scan(size, cell, masked, reverse):
    b, t, d = size
    with jax.enable_x64(True):
        args = given(cell, b, t, d)
        segments = np.resize(SEGMENTS, (b, t)) if t != 7 else SEGMENTS
        masks = masks_of(jnp.asarray(segments), reverse=reverse)[0] if masked else None
        how = dict(masks=masks, reverse=reverse, dropped=masked)
        ours, plain = (both(form, cell, args, **how) for form in (recurrence, recurrence_plain))
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)  # float64, summed in another order


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_document_may_begin_with_padding(cell, reverse):
    rng = np.random.default_rng(5)
    x, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((1, 4, GATES[cell] * 3), (3, GATES[cell] * 3))
    )
    masks = Masks(jnp.array([[True, False, False, True]]), jnp.array([[True, True, False, False]]))

    def gradient(form):
        def loss(x, kernel):
            return (form(cell, x, kernel, masks=masks, reverse=reverse)[0] ** 2).sum()

        return jax.grad(loss, (0, 1))(x, kernel)

    for a, b in zip(gradient(recurrence), gradient(recurrence_plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32, four steps


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_against_differences(cell):
    # In float64; the error of a central difference is of the order h**2.
    with jax.enable_x64(True):
        x, kernel, bias, state, drop = given(cell)
        args = [x, kernel, bias, state]
        masks, _ = masks_of(jnp.asarray(SEGMENTS), jnp.ones(6, jnp.int32))

        @jax.jit
        def loss(x, kernel, bias, state):
            h, last = recurrence(cell, x, kernel, bias, state=state, masks=masks, drop=drop)
            return jnp.sum(jnp.sin(h)) + sum(jnp.sum(jnp.cos(s)) for s in last)

        slopes = jax.grad(loss, [0, 1, 3] if bias is None else [0, 1, 2, 3])(*args)
        generator = np.random.default_rng(2)
        step = 1e-5
        for i, slope in zip([0, 1, 3] if bias is None else range(4), slopes, strict=True):
            way = jax.tree.map(lambda a: generator.standard_normal(a.shape), args[i])
            ends = []
            for sign in (1, -1):
                moved = jax.tree.map(lambda a, w, s=sign: a + s * step * w, args[i], way)
                ends.append(loss(*args[:i], moved, *args[i + 1 :]))
            along = sum(
                np.vdot(a, b)
                for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True)
            )
            np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_stands_at_padding_or_in_another_document_is_nothing(cell, reverse):
    """To the byte, in values and in gradients, whatever it is: even not a number."""
    x, kernel, bias, _, _ = given(cell, dtype=np.float32)
    masks, _ = masks_of(jnp.asarray(SEGMENTS), reverse=reverse)
    third = SEGMENTS[3] == 3
    changed = np.where((SEGMENTS == 0)[..., None], np.float32(np.nan), x)
    changed[3, ~third] += 1  # another neighbour, which comes before or after

    real = SEGMENTS > 0
    real[3] = third

    @jax.jit
    def run(x):
        def loss(x, kernel):
            h, _ = recurrence(cell, x, kernel, bias, masks=masks, reverse=reverse)
            return jnp.where(real[..., None], jnp.square(h), 0).sum(), h

        (_, h), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
        return h, *grads

    (h, dx, dk), (h2, dx2, dk2) = run(x), run(changed)
    h, h2, dx, dx2 = map(np.asarray, (h, h2, dx, dx2))
    assert np.array_equal(h[real], h2[real])
    assert np.array_equal(dx, dx2)
    assert not np.any(dx[~real]) and np.all(np.any(dx[real], -1))
    np.testing.assert_allclose(dk, dk2, rtol=1e-6, atol=1e-6)
    assert np.all(np.isfinite(dk2))


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_may_be_cut_anywhere(cell):
    x, kernel, bias, _, _ = given(cell, dtype=np.float32)
    segments = jnp.asarray(SEGMENTS)
    masks, _ = masks_of(segments)
    run = jax.jit(recurrence, static_argnums=0)
    whole, last = run(cell, x, kernel, bias, masks=masks)
    state, before, parts = zeros(cell, 6, 5), None, []
    for i in range(7):
        masks, before = masks_of(segments[:, i : i + 1], before)
        h, state = run(cell, x[:, i : i + 1], kernel, bias, state=state, masks=masks)
        parts.append(h)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state, last, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_stays_and_the_state_is_wide(cell):
    args = given(cell, 8, 12, 16, dtype=np.float32)
    x, kernel, bias = args[:3]
    # Smaller than elsewhere: no state may run away from a rounding.
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (x, kernel / 4, bias))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), low)
    ours = both(recurrence, cell, (*low, *args[3:]))
    exact = both(recurrence_plain, cell, (*wide, *args[3:]))
    (h, last), (dx, dkernel, _, dstate) = ours
    assert {a.dtype for a in (h, dx, dkernel)} == {jnp.dtype(jnp.bfloat16)}
    assert {a.dtype for a in (*last, *dstate)} == {jnp.dtype(jnp.float32)}
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b)
        # What enters each of twelve products is rounded to 8 bits.
        assert np.abs(a - b).max() < 0.03 * np.abs(b).max()


@pytest.mark.parametrize("cell", CELLS)
def test_loops_copy_no_array_of_all_steps(cell):
    """What is written in place, step by step, must not be copied as a whole at every step: that is T times the time.

    Nor is the input's share of all gates, the widest array, written anew in another order, before the loop or after.
    """
    _, kernel, bias, _, _ = given(cell, 8, 16, 32, dtype=np.float32)
    wide = kernel.shape[1]
    x, w = np.ones((8, 16, 7), np.float32), np.ones((7, wide), np.float32)
    masks, _ = masks_of(jnp.ones((8, 16), jnp.int32))

    def loss(x, w, kernel):
        share = input_share(x, w, jnp.zeros(wide))
        return recurrence(cell, share, kernel, bias, masks=masks)[0].sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, w, kernel).compile().as_text()
    parts = {part.lstrip().split(" ")[0].lstrip("%"): part for part in text.split("\n\n")}
    todo = re.findall(r"body=%([\w.\-]+)", text)
    assert len(todo) == 2  # forth and back
    inside = set()
    while todo:
        name = todo.pop()
        inside.add(name)
        todo += set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", parts[name])) - inside
    for name, part in parts.items():
        width = r"\d+" if name in inside else wide
        if name in inside or cell != "elman":  # Elman's states are as wide
            assert not re.search(rf"f32\[(8,16|16,8),{width}\]\S* (copy|transpose)\(", part)


def test_a_batch_over_four_devices():
    x, kernel, bias, _, _ = given("gru", 8, 5, 6, dtype=np.float32)
    masks, _ = masks_of(jnp.asarray(np.resize(SEGMENTS, (8, 5))))

    def gradients(x, kernel, masks):
        def loss(x, kernel):
            return jnp.sum(recurrence("gru", x, kernel, bias, masks=Masks(*masks))[0] ** 2)

        return jax.grad(loss, (0, 1))(x, kernel)

    alone = jax.jit(gradients)(x, kernel, masks)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    meshed = jax.jit(gradients, out_shardings=(cut, whole))(
        jax.device_put(x, cut), jax.device_put(kernel, whole), jax.device_put(masks, cut)
    )
    rows = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), (x, masks))
    mapped = jax.pmap(gradients, in_axes=(0, None, 0))(rows[0], kernel, rows[1])
    mapped = (mapped[0].reshape(x.shape), mapped[1].sum(0))
    for one, two, three in zip(alone, meshed, mapped, strict=True):
        # float32 sums over eight rows in another order.
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(three, one, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit():
    x, kernel, _, _, _ = given("lstm")
    with pytest.raises(ValueError, match="none of elman, gru, lstm"):
        recurrence("rnn", x, kernel)
    with pytest.raises(ValueError, match="both need 3 times"):
        recurrence("gru", x, kernel)
    with pytest.raises(ValueError, match="only gru takes one"):
        recurrence("lstm", x, kernel, np.zeros(5))
