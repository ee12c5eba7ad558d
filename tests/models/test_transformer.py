"""The transformer against NumPy written out in float64; who sees whom, through gradients and bytes."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from research.config import defaults
from research.models.transformer import Model
from research.task import LossOutput, Task
from research.transfer import lora

V, T = 23, 9
SMALL = dict(width=16, depth=3, heads=4, context=16)
MODERN = SMALL | dict(
    kv_heads=2,
    hidden=20,
    norm="rms",
    position="rotary",
    activation="silu",
    gated=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)
BERT = SMALL | dict(
    causal=False, prenorm=False, final_norm=False, embed_norm=True, types=2, pooler="tanh"
)
GEMMA = MODERN | dict(
    norm_offset=True,
    norm_after=True,
    qk_norm=True,
    embed_scale=True,
    head_width=6,
    activation="gelu_tanh",
    window=3,
    global_every=2,
    rotary_base=500.0,
    rotary_local_base=50.0,
    rotary_scaling=("linear", 2.0),
    attention_scale=0.5,
    attention_softcap=2.0,
    logit_softcap=3.0,
)
KINDS = {
    "gpt2": ("lm", SMALL | dict(activation="gelu_tanh")),
    "bert": ("classify", BERT | dict(pool="first")),
    "roberta": ("mlm", BERT | dict(position_offset=2, context=T + 2, types=1)),
    "distilbert": ("classify", BERT | dict(types=0, pooler="relu", pool="mean")),
    "llama": ("lm", MODERN | dict(tied=False)),
    "qwen2": ("lm", MODERN | dict(qkv_bias=True, window=4)),
    "last": ("classify", MODERN | dict(pool="last", head_bias=False)),
    "gemma": ("lm", GEMMA),
    "untied masked": ("mlm", BERT | dict(tied=False, position="none", activation="relu")),
}
# Padding on the left, on the right, and three documents in a row.
SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 7 + [0] * 2, [1, 1, 1, 2, 2, 2, 2, 3, 3]])
TOKENS = np.random.default_rng(1).integers(0, V, (3, T)).astype(np.int32)


def model(head="lm", dtype=jnp.float32, **options):
    outputs = 4 if head == "classify" else 0
    return Model(vocab_size=V, outputs=outputs, head=head, dtype=dtype, axis_name=None, **options)


def parameters(module, seed=0):
    """Arrays large enough that everything matters: norms' scales are not 1, biases not 0."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), TOKENS, train=False))["params"]
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        values = generator.standard_normal(leaf.shape)
        one = path[-1].key == "scale" and not module.norm_offset
        return (values * (0.3 if leaf.ndim == 1 else 0.4) + one).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def apply(module, params, tokens=TOKENS, **how):
    how = {"train": False, **how}
    return jax.jit(lambda params: module.apply({"params": params}, jnp.asarray(tokens), **how))(
        params
    )


# --- Written out in NumPy, one row and one head at a time.


def normed(m, p, x, rms=False):
    x = np.asarray(x)
    scale = p["scale"] + (1.0 if m.norm_offset else 0.0)
    if m.norm == "rms" or rms:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + m.norm_epsilon) * scale
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + m.norm_epsilon) * scale + p["bias"]


def layer(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def active(name, x):
    return {
        "gelu": lambda: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "silu": lambda: x / (1 + np.exp(-x)),
        "relu": lambda: np.maximum(x, 0),
    }[name]()


def turned(m, x, positions, local):
    base, factor = m.rotary_base, m.rotary_scaling[1] if m.rotary_scaling else 1.0
    if local and m.rotary_local_base:
        base, factor = m.rotary_local_base, 1.0
    half = x.shape[-1] // 2
    angle = positions[:, None] * base ** (-np.arange(half) / half) / factor
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)


def attended(m, p, x, seen, positions, local):
    e, kv = m.head_width or m.width // m.heads, m.kv_heads or m.heads
    q, k, v = (layer(p[name], x).reshape(len(x), -1, e) for name in ("query", "key", "value"))
    out = np.zeros((len(x), m.heads, e))
    for h in range(m.heads):
        one, other = q[:, h], k[:, h // (m.heads // kv)]
        if m.qk_norm:
            one, other = (
                normed(m, p[f"{name}_norm"], a, rms=True)
                for name, a in (("query", one), ("key", other))
            )
        if m.position == "rotary":
            one, other = (turned(m, a, positions, local) for a in (one, other))
        logits = one @ other.T * (m.attention_scale or e**-0.5)
        if m.attention_softcap:
            logits = m.attention_softcap * np.tanh(logits / m.attention_softcap)
        for t in np.flatnonzero(seen.any(1)):
            odds = np.exp(logits[t, seen[t]] - logits[t, seen[t]].max())
            out[t, h] = odds / odds.sum() @ v[seen[t], h // (m.heads // kv)]
    return layer(p["out"], out.reshape(len(x), -1))


def reference(m, params, tokens, segments):
    """Logits of one row, float64; a row of padding aside."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    length = len(tokens)
    positions = np.zeros(length, int)
    for s in set(segments) - {0}:
        positions[segments == s] = np.arange((segments == s).sum())
    x = p["embed"]["embedding"][tokens] * (math.sqrt(m.width) if m.embed_scale else 1.0)
    if m.position == "learned":
        x = x + p["position"]["embedding"][positions + m.position_offset]
    x = x + (p["type"]["embedding"][0] if m.types else 0.0)
    x = normed(m, p["embed_norm"], x) if m.embed_norm else x
    for i in range(m.depth):
        b = p[f"block_{i}"]
        local = bool(m.window) and not (m.global_every and (i + 1) % m.global_every == 0)
        t, s = np.indices((length, length))
        seen = (segments[:, None] == segments) & (segments != 0)
        seen &= (s <= t) | (not m.causal)
        seen &= (abs(t - s) < m.window) | (not local)
        for name, branch in (
            ("norm1", lambda y: attended(m, b["attention"], y, seen, positions, local)),  # noqa: B023
            ("norm2", lambda y: mlp(m, b["mlp"], y)),  # noqa: B023
        ):
            y = branch(normed(m, b[name], x) if m.prenorm else x)
            x = x + (normed(m, b[f"{name}_post"], y) if m.norm_after else y)
            x = x if m.prenorm else normed(m, b[name], x)
    x = normed(m, p["norm"], x) if m.final_norm else x
    if m.head == "classify":
        real = np.flatnonzero(segments)
        x = {"first": x[real[0]], "last": x[real[-1]], "mean": x[real].mean(0)}[m.pool]
        if m.pooler:
            x = layer(p["pooler"], x)
            x = np.tanh(x) if m.pooler == "tanh" else np.maximum(x, 0)
        return layer(p["head"], x)
    if m.head == "mlm":
        x = normed(m, p["mlm"]["norm"], active(m.activation, layer(p["mlm"]["dense"], x)))
    logits = x @ (p["embed"]["embedding"].T if m.tied else p["head"]["kernel"])
    logits = logits + (p["mlm"]["bias"] if m.head == "mlm" else 0.0)
    return m.logit_softcap * np.tanh(logits / m.logit_softcap) if m.logit_softcap else logits


def mlp(m, p, x):
    if m.gated:
        return layer(p["down"], active(m.activation, layer(p["gate"], x)) * layer(p["up"], x))
    return layer(p["down"], active(m.activation, layer(p["up"], x)))


@pytest.mark.parametrize("kind", KINDS)
def test_against_numpy(kind):
    head, options = KINDS[kind]
    m = model(head, **options)
    params = parameters(m)
    rows = slice(0, 2) if head == "classify" else slice(0, 3)  # a packed row has no one class
    found = apply(m, params, TOKENS[rows], segments=SEGMENTS[rows])
    for b in range(*rows.indices(3)):
        expected = reference(m, params, TOKENS[b], SEGMENTS[b])
        real = ... if head == "classify" else SEGMENTS[b] != 0
        # float32 through three blocks; logits are of the order of 10.
        np.testing.assert_allclose(found[b][real], expected[real], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "gemma"])
def test_gradients_against_differences(kind):
    """The derivative along one direction of all parameters; NumPy's differences are in float64."""
    head, options = KINDS[kind]
    m = model(head, **options)
    params, step = parameters(m), parameters(m, seed=1)
    step = jax.tree.map(lambda a: a - a.mean(), step)
    b, weight = 1, np.random.default_rng(2).standard_normal(4 if head == "classify" else V)
    real = ... if head == "classify" else SEGMENTS[b] != 0

    def loss(params):
        out = m.apply({"params": params}, TOKENS[b][None], train=False, segments=SEGMENTS[b][None])
        return jnp.sum(jnp.tanh(out[0] * 0.1)[real] * weight)

    def at(distance):
        moved = jax.tree.map(lambda a, d: np.float64(a) + distance * d, params, step)
        out = reference(m, moved, TOKENS[b], SEGMENTS[b])
        return (np.tanh(out * 0.1)[real] * weight).sum()

    grads = jax.jit(jax.grad(loss))(params)
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(np.float64(g) * d), grads, step)))
    # Central differences are off by the third derivative times 1e-8; float32's sums by some 1e-5 of what is summed.
    np.testing.assert_allclose(found, (at(1e-4) - at(-1e-4)) / 2e-4, rtol=2e-3, atol=1e-3)


def influence(m, params, segments):
    """A function of t: for each token, the largest gradient of any logit at t by what the token is embedded as."""
    embedded = m.apply(
        {"params": params}, TOKENS, train=False, segments=segments, mutable=["intermediates"]
    )[1]["intermediates"]["embedded"][0]

    def logits(given, t):
        variables = {"params": params, "given": {"embedded": given}}
        out = m.apply(variables, TOKENS, train=False, segments=segments)
        return out[:, t].sum(0)

    jacobian = jax.jit(jax.jacrev(logits))  # [V, B, T, D]
    return lambda t: np.abs(jacobian(embedded, t)).max((0, 3))


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@pytest.mark.parametrize("scan", [False, True])
def test_nothing_comes_from_the_future_padding_or_another_document(kind, scan):
    head, options = KINDS[kind]
    m = model(head, **options | dict(depth=2), scan=scan)
    by = influence(m, parameters(m), SEGMENTS)
    for t in (2, 4, 8):
        found = by(t)
        allowed = (SEGMENTS[:, t : t + 1] == SEGMENTS) & (SEGMENTS != 0)
        allowed[:, t + 1 :] &= not m.causal
        allowed[:, t] = True  # padding's own residual stream; nobody reads it
        assert not found[~allowed].any()
        assert (found[allowed] > 0).all()


def test_a_window_is_exact():
    m = model(**MODERN | dict(depth=1, window=3))
    found = influence(m, parameters(m), np.ones((3, T), int))(6)
    assert (found[:, 4:7] > 0).all() and not found[:, :4].any() and not found[:, 7:].any()


@pytest.mark.parametrize("scan", [False, True])
def test_a_neighbour_in_the_row_changes_no_byte(scan):
    m = model(**GEMMA, scan=scan)
    params = parameters(m)
    changed = TOKENS.copy()
    changed[2, 3:7] = (changed[2, 3:7] + 5) % V
    before, after = (apply(m, params, t, segments=SEGMENTS) for t in (TOKENS, changed))
    before, after = np.asarray(before), np.asarray(after)
    for t in (0, 1, 2, 7, 8):
        assert before[2, t].tobytes() == after[2, t].tobytes()
    assert (before[2, 3:7] != after[2, 3:7]).any(-1).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "qwen2"])
@pytest.mark.parametrize("chunks", [(1,) * T, (4, 1, 1, 3), (T,)])
def test_a_cache_changes_nothing(kind, chunks):
    _, options = KINDS[kind]
    m = model(**options)
    params, segments = parameters(m), SEGMENTS[:2]
    whole = apply(m, params, TOKENS[:2], segments=segments)
    step = jax.jit(
        lambda params, tokens, segments, cache: m.apply(
            {"params": params}, tokens, train=False, segments=segments, cache=cache
        ),
        donate_argnums=3,
    )
    cache, parts, start = m.empty_cache(2, T + 3), [], 0
    for size in chunks:
        now = slice(start, start + size)
        logits, cache = step(params, TOKENS[:2, now], segments[:, now], cache)
        parts.append(logits)
        start += size
    assert cache["index"] == T
    np.testing.assert_array_equal(cache["valid"][:, :T], segments != 0)
    real = segments != 0
    # The same sums in another order, logits of the order of 10.
    np.testing.assert_allclose(
        np.concatenate(parts, 1)[real], np.asarray(whole)[real], rtol=1e-4, atol=1e-4
    )


def test_padding_between_cached_chunks():
    """Two rows go on with 3 and with 1 token; what is between takes slots, not positions."""
    m = model(**GEMMA)
    params = parameters(m)
    rows = [[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2]]
    tokens = [[[3, 1, 4, 1], [2, 7, 1, 8]], [[5, 9, 2], [0, 0, 2]]]
    segments = [[[1] * 4, [1] * 4], [[1, 1, 1], [0, 0, 1]]]
    cache = m.empty_cache(2, 8)
    for t, s in zip(tokens, segments, strict=True):
        logits, cache = apply(m, params, t, segments=jnp.asarray(s), cache=cache, last=True)
    for row, found in zip(rows, logits, strict=True):
        np.testing.assert_allclose(found, apply(m, params, [row])[0, -1], rtol=1e-4, atol=1e-4)


def test_the_last_token_only():
    m = model(**MODERN)
    params = parameters(m)
    whole = apply(m, params, TOKENS[:2], segments=SEGMENTS[:2])
    last = apply(m, params, TOKENS[:2], segments=SEGMENTS[:2], last=True)
    np.testing.assert_allclose(last, [whole[0, 8], whole[1, 6]], rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_gives_no_nan():
    segments = np.array(SEGMENTS)
    segments[1] = 0
    for kind in ("gemma", "bert"):
        head, options = KINDS[kind]
        m = model(head, **options)

        def loss(params, m=m):
            return jnp.sum(m.apply({"params": params}, TOKENS, train=False, segments=segments) ** 2)

        value, grads = jax.jit(jax.value_and_grad(loss))(parameters(m))
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@cache
def compiled(m):
    def loss(params, tokens, segments, keys):
        out = m.apply({"params": params}, tokens, train=True, keys=keys, segments=segments)
        return jnp.sum(jnp.tanh(out / 10)), out

    return jax.jit(jax.grad(loss, has_aux=True))


def dropped(m, params, keys, tokens=TOKENS, segments=SEGMENTS):
    """Gradients and logits in training."""
    return jax.device_get(compiled(m)(params, tokens, segments, keys))


# Compiles in a quarter of the time; only that masks belong to examples needs the default's keys.
KEYS = jax.random.split(jax.random.key(5, impl="unsafe_rbg"), 3)
DROPOUT = dict(dropout=0.3, attention_dropout=0.3)


@pytest.mark.parametrize("options", [SMALL, GEMMA], ids=["gpt2", "gemma"])
def test_a_scan_is_the_loop(options, tree_distance):
    m = model(**options, **DROPOUT)
    params = parameters(m)
    expected, found = (dropped(m.clone(scan=scan), params, KEYS) for scan in (False, True))
    # The same masks and sums, compiled otherwise; gradients are of the order of 10.
    assert tree_distance(expected, found) < 1e-4
    assert tree_distance(expected, dropped(m, params, KEYS[::-1])) > 0.1


def test_a_scan_is_the_loop_where_only_some_blocks_need_a_mask():
    m = model("mlm", **BERT | dict(window=3, global_every=2))
    params = parameters(m)
    # The same sums, compiled otherwise.
    np.testing.assert_allclose(
        apply(m.clone(scan=True), params), apply(m, params), rtol=1e-4, atol=1e-4
    )
    assert np.abs(apply(m, params) - apply(m.clone(global_every=0), params)).max() > 0.1


def test_masks_differ_from_block_to_block():
    m = model(**SMALL | dict(depth=2), dropout=0.5)
    params = parameters(m)
    params["block_1"] = params["block_0"]
    _, state = m.apply({"params": params}, TOKENS, train=True, keys=KEYS, mutable=["intermediates"])
    seen = state["intermediates"]
    x0, x1, x2 = (np.asarray(seen[name][0]) for name in ("embedded", "block0", "block1"))
    # Where both branches are dropped, a block leaves its input as it is, to the bit.
    first, second = x1 == x0, x2 == x1
    assert 0.15 < first.mean() < 0.35 and (first != second).any()


def equations(jaxpr):
    """The names of all primitives that compute, inside of calls too; those that move data aside."""
    moves = {
        "broadcast_in_dim",
        "concatenate",
        "slice",
        "squeeze",
        "reshape",
        "split",
        "pad",
        "copy",
    }
    for equation in jaxpr.eqns:
        if equation.primitive.name not in moves:
            yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_a_scans_size_does_not_grow_with_depth():
    def traced(depth, function, **options):
        m = model(**MODERN | dict(depth=depth), **options)
        if function == "init":
            return jax.make_jaxpr(lambda key: m.init(key, TOKENS, train=False))(jax.random.key(0))
        params = parameters(m)
        return jax.make_jaxpr(
            jax.grad(lambda p: m.apply({"params": p}, TOKENS, train=False).sum())
        )(params)

    for function in ("init", "gradient"):
        two, eight = (
            sorted(equations(traced(depth, function, scan=True).jaxpr)) for depth in (2, 8)
        )
        assert two == eight and "dot_general" in two
    assert len([*equations(traced(8, "gradient").jaxpr)]) > 3 * len(two)


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("scan", [False, True])
def test_remat_changes_nothing(remat, scan, tree_distance):
    m = model(**GEMMA | dict(depth=2), **DROPOUT, scan=scan)
    params = parameters(m)
    expected, found = (dropped(m.clone(remat=r), params, KEYS) for r in ("none", remat))
    # The same sums, fused otherwise by the compiler.
    assert tree_distance(expected, found) < 1e-4


def test_remat_keeps_less():
    """What a step's gradient keeps beside its arguments, by the number of values saved."""

    def kept(remat):
        m = model(**SMALL | dict(depth=6), remat=remat)
        params = parameters(m)
        _, back = jax.vjp(lambda p: m.apply({"params": p}, TOKENS, train=False), params)
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    assert kept("full") < kept("dots") < kept("none")


def test_bfloat16():
    for kind in ("gemma", "bert"):
        head, options = KINDS[kind]
        m = model(head, **options)
        params = parameters(m)
        exact = np.asarray(apply(m, params, TOKENS[:2], segments=SEGMENTS[:2]))
        rough = apply(m.clone(dtype=jnp.bfloat16), params, TOKENS[:2], segments=SEGMENTS[:2])
        assert rough.dtype == jnp.float32
        # Eight bits a number, through three blocks.
        assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "last"])
def test_logits_of_bfloat16_are_not_rounded(kind):
    head, options = KINDS[kind]
    m = model(head, jnp.bfloat16, **options | dict(depth=1))
    params = parameters(m)
    logits, seen = m.apply({"params": params}, TOKENS, train=False, mutable=["intermediates"])
    x = seen["intermediates"]["pooled" if head == "classify" else "normed"][0]
    assert x.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    matrix = params["embed"]["embedding"].T if kind == "gpt2" else params["head"]["kernel"]
    expected = np.asarray(x, np.float64) @ np.asarray(matrix.astype(jnp.bfloat16), np.float64)
    # Sums of 16 float32 products of the order of 1; bfloat16 would be off by 1e-2.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_layouts(tree_distance):
    """A batch, its parts on a mesh, and another order of rows: each row meets the same masks."""
    m = model(**SMALL | dict(depth=1), **DROPOUT)
    tokens, segments = np.tile(TOKENS, (2, 1))[:4], np.tile(SEGMENTS, (2, 1))[:4]
    params, keys = parameters(m), jax.random.split(jax.random.key(1), 4)
    grads, logits = dropped(m, params, keys, tokens, segments)
    order = np.array([2, 0, 3, 1])
    other_grads, other = dropped(m, params, keys[order], tokens[order], segments[order])
    # Another order of summation.
    assert tree_distance((grads, logits[order]), (other_grads, other)) < 1e-5
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    given = jax.device_put((keys, tokens, segments), cut)
    found = dropped(m, jax.device_put(params, whole), *given)
    assert tree_distance(found, (grads, logits)) < 1e-5


# Published, or counted by PyTorch in transformers 5.24.
@pytest.mark.parametrize(
    ("head", "vocabulary", "options", "count"),
    [
        ("lm", 50257, dict(width=768, depth=12, heads=12, context=1024), 124_439_808),
        (
            "lm",  # Llama 3.2 1B
            128256,
            MODERN | dict(width=2048, depth=16, heads=32, kv_heads=8, hidden=8192),
            1_235_814_400,
        ),
        (
            "lm",  # Gemma 2 2B
            256000,
            GEMMA
            | dict(width=2304, depth=26, heads=8, kv_heads=4, head_width=256, hidden=9216, qk_norm=False),
            2_614_341_888,
        ),
        (
            "lm",  # Qwen 3 0.6B
            151936,
            MODERN
            | dict(width=1024, depth=28, heads=16, kv_heads=8, head_width=128, hidden=3072, qk_norm=True),
            596_049_920,
        ),
        (
            "mlm",  # BERT base
            30522,
            BERT | dict(width=768, depth=12, heads=12, context=512),
            109_514_298,
        ),
    ],
)  # fmt: skip
def test_parameter_counts(head, vocabulary, options, count):
    m = model(head, **options).clone(vocab_size=vocabulary)
    shapes = jax.eval_shape(lambda: m.init(jax.random.key(0), TOKENS, train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_initial_values():
    deep = dict(width=64, depth=8, heads=4)  # out's deviation is 0.02 / 4
    for scan in (False, True):
        m = model(**deep, scan=scan)
        params = jax.jit(partial(m.init, train=False))(KEYS[0], TOKENS)["params"]
        for name, expected in (("query", 0.02), ("out", 0.005)):
            kernels = [params[f"block_{i}"]["attention"][name]["kernel"] for i in range(8)]
            assert abs(np.std(kernels) / expected - 1) < 0.05
            assert len({k.tobytes() for k in map(np.asarray, kernels)}) == 8
        assert jax.tree.structure(params) == jax.tree.structure(parameters(model(**deep)))


def task_of(m):
    def init(key):
        return m.init(key, TOKENS, train=False)["params"], {}

    def loss(params, state, batch, rngs):
        out = m.apply({"params": params}, TOKENS, train=True, keys=KEYS)
        return LossOutput(jnp.square(out).mean((1, 2)), jnp.ones(3), state, {}, {"logits": out})

    def predict(params, state, batch):
        return {"logits": m.apply({"params": params}, TOKENS, train=False)}

    empty = Task(**dict.fromkeys(Task._fields))
    return empty._replace(
        init=init, loss=loss, predict=predict, intermediates=predict, features=predict
    )


def section(*layers):
    config = defaults().lora
    config.update(dict(rank=2, alpha=4.0, layers=layers, train=(), dropout=0.2))
    return config


@pytest.mark.parametrize("remat", ["none", "full"])
def test_adapters(remat):
    chosen = section(r"block_\d+/attention/(query|value)$", "embed$")
    plain = task_of(model(**MODERN | dict(depth=2), remat=remat))
    adapted = lora.adapt(plain, chosen)
    params, _ = jax.jit(adapted.init)(KEYS[0])
    layers = [f"block_{i}/attention/{name}" for i in range(2) for name in ("query", "value")]
    flat = {
        "/".join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert {p.removesuffix("/lora_a") for p in flat if p.endswith("lora_a")} == {*layers, "embed"}
    params = jax.tree.map(lambda a: a + 0.02 if not a.any() else a, params)  # of no adapter nothing
    merged = plain.predict(lora.merge(params, chosen), {}, None)["logits"]
    found = adapted.predict(params, {}, None)["logits"]
    np.testing.assert_allclose(found, merged, atol=1e-5)
    assert np.abs(found - plain.predict(params, {}, None)["logits"]).max() > 1e-3
    grads = jax.grad(lambda p: adapted.loss(p, {}, None, None).losses.sum())(params)
    for name in layers:
        leaf = grads[name.split("/")[0]]["attention"][name.split("/")[2]]
        assert np.any(leaf["lora_a"]) and np.any(leaf["lora_b"])


def test_an_adapter_of_an_untied_output_may_drop():
    chosen = section("head$")
    task = lora.adapt(task_of(model(**MODERN | dict(depth=1, tied=False))), chosen)
    params, _ = task.init(KEYS[0])
    params["head"]["lora_b"] += 1.0
    whole = task.predict(params, {}, None)["logits"]
    dropped = task.loss(params, {}, None, None).outputs["logits"]
    assert (np.abs(dropped - whole).max((1, 2)) > 1e-3).all()


def test_adapters_and_a_scan():
    task = task_of(model(**MODERN, scan=True))
    with pytest.raises(ValueError, match="config.model.scan=True .* cannot hold adapters"):
        lora.adapt(task, section(r"block_\d+/attention/query$")).init(KEYS[0])
    params, _ = lora.adapt(task, section("embed$")).init(KEYS[0])
    assert "lora_a" in params["embed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=18), "config.model.width=18 does not divide by config.model.heads=4"),
        (dict(kv_heads=3), "config.model.heads=4 does not divide by config.model.kv_heads=3"),
        (dict(context=8), "9 tokens do not fit .* config.model.context=8 rows"),
        (dict(context=10, position_offset=2), "config.model.context=10 rows, the first 2 unused"),
        (dict(position="rotary", head_width=3), "the width of a head, 3, must be even"),
        (dict(position="rotary", rotary_scaling=("yarn", 2.0)), "'yarn'.* is none of"),
        (
            dict(position="alibi"),
            "config.model.position='alibi' is none of 'learned', 'rotary', 'none'",
        ),
        (dict(activation="swish"), "config.model.activation='swish' is none of"),
        (dict(remat="some"), "config.model.remat='some' is none of"),
        (dict(global_every=2), "config.model.global_every=2 .* config.model.window=0"),
        (dict(head="regress"), "config.model.head='regress' is none of"),
    ],
)
def test_options_that_cannot_be(options, message):
    m = model(**SMALL).clone(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: m.init(jax.random.key(0), TOKENS, train=False))


def test_caches_that_cannot_be():
    with pytest.raises(ValueError, match="a cache is for causal language models"):
        model("mlm", **BERT).empty_cache(1, 4)
    # More slots than the position table has rows: padding takes no position.
    assert model(**SMALL).empty_cache(1, 17)["valid"].shape == (1, 17)
    m = model(**MODERN)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 4 slots"):
        apply(m, parameters(m), cache=m.empty_cache(3, 4))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "gemma", "roberta"])
def test_attention_by_tiles_changes_no_more_than_rounding(kind, scan):
    head, options = KINDS[kind]
    plain = model(head, **options, scan=scan)
    tiled = plain.clone(attention_block=4)
    params = parameters(plain)

    def loss(params, module):
        y = module.apply({"params": params}, TOKENS, train=False, segments=SEGMENTS)
        return jnp.sum(jnp.square(y * (SEGMENTS > 0)[..., None]))

    expected, theirs = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, plain)
    found, ours = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, tiled)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32, three blocks deep
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))


def test_tiles_and_dropped_weights_are_refused():
    module = model("lm", **SMALL, attention_block=4, attention_dropout=0.1)
    with pytest.raises(
        ValueError, match="config.model.attention_block=4: weights .* are not dropped"
    ):
        module.init(jax.random.key(0), TOKENS, train=False)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "roberta", "untied masked"])
def test_a_call_that_ends_at_the_states_goes_on_to_the_logits(kind):
    head, options = KINDS[kind]
    module = model(head, **options)
    variables = {"params": parameters(module)}
    whole = module.apply(variables, TOKENS, train=False, segments=SEGMENTS)
    states = module.apply(variables, TOKENS, train=False, segments=SEGMENTS, hidden=True)
    parts = [
        module.apply(variables, None, states=part, train=False)
        for part in (states[:, :4], states[:, 4:])
    ]
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-5)  # float32
