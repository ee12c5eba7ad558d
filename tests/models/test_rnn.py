"""Recurrent models: padding and neighbours count for nothing, a cache changes nothing, dropout is by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.rnn import Model

VOCAB = 11


def made(head="classify", outputs=3, *, dtype=jnp.float32, seed=0, **options):
    options = {"embedding": 6, "width": 8, **options}
    module = Model(VOCAB, outputs, head, dtype, None, **options)
    init = jax.jit(lambda key: module.init(key, jnp.zeros((1, 3), jnp.int32), train=False))
    params = init(jax.random.key(seed))["params"]
    generator = np.random.default_rng(seed)
    move = lambda a: a + 0.1 * generator.standard_normal(a.shape).astype(np.float32)  # noqa: E731
    return module, {"params": jax.tree.map(move, params)}


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


def logits(module, variables, x, segments=None, **how):
    run = jax.jit(lambda v: module.apply(v, x, train=False, segments=segments, **how))
    return jax.tree.map(np.asarray, run(variables))


@pytest.mark.parametrize(
    ("options", "gates"),
    [
        ({"cell": "elman"}, 1),
        ({"cell": "gru", "depth": 2}, 3),
        ({"cell": "lstm", "depth": 3, "bidirectional": True}, 4),
    ],
)
def test_parameters(options, gates):
    _, variables = made(**options)
    params, depth, sides = variables["params"], options.get("depth", 1), 1
    expected = {"embed/embedding": (VOCAB, 6)}
    directions = ["forward", "backward"] if options.get("bidirectional") else ["forward"]
    sides = len(directions)
    for i in range(depth):
        for direction in directions:
            at = f"layer_{i}/{direction}"
            expected[f"{at}/input/kernel"] = (6 if i == 0 else 8 * sides, gates * 8)
            expected[f"{at}/input/bias"] = (gates * 8,)
            expected[f"{at}/recurrent/kernel"] = (8, gates * 8)
            if options["cell"] == "gru":
                expected[f"{at}/recurrent/bias"] = (8,)
    expected |= {"head/kernel": (8 * sides, 3), "head/bias": (3,)}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert found == expected


def test_initial_values():
    module = Model(VOCAB, 3, "classify", jnp.float32, None, cell="lstm", embedding=40, width=32)
    params = module.init(jax.random.key(1), tokens(1, 2), train=False)["params"]
    layer = params["layer_0"]["forward"]
    for part in np.split(np.asarray(layer["recurrent"]["kernel"]), 4, 1):
        np.testing.assert_allclose(part.T @ part, np.eye(32), atol=1e-5)
    assert np.asarray(layer["input"]["bias"]).reshape(4, 32).tolist() == [
        [value] * 32 for value in (0, 1, 0, 0)
    ]
    limit = np.sqrt(6 / (40 + 128))
    assert 0.95 * limit < np.abs(layer["input"]["kernel"]).max() <= limit


@pytest.mark.parametrize(
    ("cell", "pool", "depth"),
    [("elman", "last", 2), ("gru", "mean", 1), ("lstm", "max", 1), ("gru", "first", 1)],
)
def test_padding_on_either_side_is_nothing(cell, pool, depth):
    """The same logits and gradients as of the bare rows, and no gradient by what padding holds."""
    module, variables = made(cell=cell, depth=depth, bidirectional=True, pool=pool)
    rows, lengths = tokens(4, 5), [5, 3, 1, 4]

    def padded(left):
        x, segments = tokens(4, 9, seed=left + 1), np.zeros((4, 9), np.int32)
        for i, n in enumerate(lengths):
            x[i, left : left + n], segments[i, left : left + n] = rows[i, :n], 1
        return x, segments

    def loss(params, x, segments):
        out = module.apply({"params": params}, x, train=False, segments=segments)
        return jnp.sum(jnp.sin(out)), out

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, right), by_right = run(variables["params"], *padded(0))
    (_, left), by_left = run(variables["params"], *padded(4))
    alone = np.concatenate(
        [logits(module, variables, rows[i : i + 1, :n]) for i, n in enumerate(lengths)]
    )
    # float32 products of other shapes.
    np.testing.assert_allclose(right, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(left, alone, rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(by_left), jax.tree.leaves(by_right), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

    def by_embedding(segments):
        seen = module.apply(
            variables, rows, train=False, segments=segments, mutable=["intermediates"]
        )[1]["intermediates"]["embedded"][0]

        def given(embedded):
            return jnp.sum(
                module.apply(
                    {**variables, "given": {"embedded": embedded}},
                    rows,
                    train=False,
                    segments=segments,
                )
                ** 2
            )

        return jax.jit(jax.grad(given))(seen)

    segments = np.ones((4, 5), np.int32)
    segments[1, 3:] = segments[2, :3] = segments[3] = 0
    found = np.asarray(by_embedding(segments))
    assert not np.any(found[segments == 0]) and np.all(np.isfinite(found))
    if pool == "last":
        assert np.all(np.any(found[segments == 1], -1))


@pytest.mark.parametrize("head", ["lm", "mlm"])
def test_a_document_sees_none_of_its_neighbours_to_the_byte(head):
    module, variables = made(head, 0, cell="lstm", depth=2, bidirectional=head == "mlm")
    x = tokens(2, 8)
    segments = np.array([[1, 1, 1, 2, 2, 2, 3, 0], [0, 1, 1, 0, 2, 2, 2, 0]], np.int32)
    other = np.where(segments == 2, x, (x + 3) % VOCAB)
    before = logits(module, variables, x, segments)
    after = logits(module, variables, other, segments)
    assert np.array_equal(before[segments == 2], after[segments == 2])
    assert not np.any(np.all(before[segments == 1] == after[segments == 1], -1))
    # And is what it would be by itself: float32 products of other shapes.
    own = logits(module, variables, x[:1, 3:6])
    np.testing.assert_allclose(before[0, 3:6], own[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["lm", "mlm"])
def test_a_language_model_is_causal_and_a_masked_one_looks_both_ways(head):
    module, variables = made(head, 0, cell="gru", depth=2, bidirectional=head == "mlm")
    x = tokens(1, 6)
    changed = x.copy()
    changed[0, 3] = (x[0, 3] + 1) % VOCAB
    same = np.all(logits(module, variables, x) == logits(module, variables, changed), -1)[0]
    assert same.tolist() == ([True] * 3 + [False] * 3 if head == "lm" else [False] * 6)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_cached_and_uncached_agree(cell):
    module, variables = made("lm", 0, cell=cell, depth=2)
    prompts, following = tokens(3, 5), tokens(3, 4, seed=5)
    segments = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int32)
    whole = logits(
        module,
        variables,
        np.concatenate([prompts, following], 1),
        np.pad(segments, ((0, 0), (0, 4)), constant_values=1),
    )
    cache = module.empty_cache(3, 9)
    first, cache = logits(module, variables, prompts, segments, cache=cache)
    found = [first]
    for i in range(4):
        step = following[:, i : i + 1]
        out, new = logits(module, variables, step, cache=cache)
        last, _ = logits(module, variables, step, cache=cache, last=True)
        assert np.array_equal(last, out[:, -1])
        assert jax.tree.structure(new) == jax.tree.structure(cache)
        cache = new
        found.append(out)
    real = np.pad(segments, ((0, 0), (0, 4)), constant_values=1) > 0
    # float32 products of other shapes.
    np.testing.assert_allclose(np.concatenate(found, 1)[real], whole[real], rtol=0, atol=1e-5)


def test_a_cached_call_with_padding_leaves_the_states_as_they_are():
    module, variables = made("lm", 0, cell="lstm")
    _, cache = logits(module, variables, tokens(3, 4), cache=module.empty_cache(3, 8))
    segments = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    _, new = logits(module, variables, tokens(3, 2), segments, cache=cache)
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(new), strict=True):
        assert np.array_equal(a[0], b[0])
    assert not np.array_equal(cache["layer_0"][0][1:], new["layer_0"][0][1:])


@pytest.mark.parametrize("head", ["lm", "mlm"])
def test_the_last_token_of_each_row(head):
    module, variables = made(head, 0, bidirectional=head == "mlm", tied=head == "lm", embedding=8)
    segments = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], np.int32)
    whole = logits(module, variables, tokens(3, 4), segments)
    last = logits(module, variables, tokens(3, 4), segments, last=True)
    np.testing.assert_allclose(last, whole[[0, 1, 2], [3, 1, 3]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "option", ["dropout", "embed_dropout", "word_dropout", "recurrent_dropout"]
)
def test_dropout_belongs_to_examples(option):
    module, variables = made(cell="gru", depth=2, bidirectional=True, **{option: 0.5})
    x, keys = tokens(6, 5), jax.random.split(jax.random.key(0), 6)
    run = jax.jit(lambda x, keys: module.apply(variables, x, train=True, keys=keys))
    whole, order = np.asarray(run(x, keys)), np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(run(x[order], keys[order]), whole[order], rtol=0, atol=1e-5)
    assert np.abs(run(x, keys[order]) - whole).max() > 1e-3  # other keys, other masks
    bare = logits(module, variables, x)
    assert np.abs(bare - whole).max() > 1e-3
    np.testing.assert_allclose(run(x, None), bare, rtol=0, atol=1e-5)


def test_word_dropout_takes_whole_tokens_and_recurrent_dropout_holds_for_a_row():
    module, variables = made(word_dropout=0.5, embedding=64)
    x, keys = tokens(4, 9), jax.random.split(jax.random.key(0), 4)
    _, seen = module.apply(variables, x, train=True, keys=keys, mutable=["intermediates"])
    embedded = np.asarray(seen["intermediates"]["embedded"][0])
    plain = np.asarray(variables["params"]["embed"]["embedding"])[x]
    gone = ~np.any(embedded, -1)
    assert 0.2 < gone.mean() < 0.8
    np.testing.assert_allclose(embedded[~gone], 2 * plain[~gone], rtol=1e-6)

    # Without a share of the input a unit whose state is always dropped is as if its row of U were zero.
    module, variables = made(recurrent_dropout=0.5, cell="elman", pool="last")
    row = jax.jit(lambda k: module.apply(variables, x[:1], train=True, keys=k))(keys[:1])
    layer = variables["params"]["layer_0"]["forward"]
    inside = np.asarray(variables["params"]["embed"]["embedding"], np.float64)[x[0]]
    close = []
    for mask in np.ndindex(*(2,) * 8):
        h = np.zeros(8)
        for e in inside:
            a = e @ layer["input"]["kernel"] + layer["input"]["bias"]
            h = np.tanh(a + (h * 2 * np.array(mask)) @ layer["recurrent"]["kernel"])
        head = variables["params"]["head"]
        close.append(np.abs(h @ head["kernel"] + head["bias"] - row[0]).max())
    assert min(close) < 1e-5 < 1e-3 < sorted(close)[1]


def test_bfloat16_computes_and_float32_stays():
    module, variables = made(cell="lstm", bidirectional=True)
    low = module.clone(dtype=jnp.bfloat16)
    init = jax.eval_shape(lambda: low.init(jax.random.key(0), tokens(1, 2), train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    out, seen = low.apply(variables, tokens(3, 6), train=False, mutable=["intermediates"])
    assert out.dtype == jnp.float32
    assert seen["intermediates"]["layer0"][0].dtype == jnp.bfloat16
    wide = logits(module, variables, tokens(3, 6))
    np.testing.assert_allclose(out, wide, rtol=0, atol=0.03)  # 8 bits of mantissa


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_bfloat16_are_not_rounded(tied):
    options = dict(embedding=8, width=8, tied=tied, head_bias=False)
    module, variables = made("lm", dtype=jnp.bfloat16, **options)
    out, seen = module.apply(variables, tokens(3, 6), train=False, mutable=["intermediates"])
    x = np.asarray(seen["intermediates"]["pooled"][0], np.float64)
    params = variables["params"]
    matrix = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
    expected = x @ np.asarray(matrix.astype(jnp.bfloat16), np.float64)
    assert out.dtype == jnp.float32
    # Sums of 8 float32 products below 1; bfloat16 would be off by 1e-3.
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_what_is_given_stands_in():
    module, variables = made(cell="gru", depth=2)
    x = tokens(3, 4)
    out, seen = module.apply(variables, x, train=False, mutable=["intermediates"])
    assert list(seen["intermediates"]) == ["embedded", "layer0", "layer1", "pooled", "logits"]
    for name in ("embedded", "layer0", "layer1", "pooled"):
        given = {**variables, "given": {name: seen["intermediates"][name][0]}}
        np.testing.assert_allclose(
            module.apply(given, np.zeros_like(x), train=False), out, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    ("head", "options", "match"),
    [
        ("classify", {"cell": "lstmm"}, "config.model.cell='lstmm' is none of elman, gru, lstm"),
        ("classify", {"pool": "cls"}, "config.model.pool='cls' is none of last, mean, max, first"),
        ("classify", {"depth": 0}, "config.model.depth=0 must be at least 1"),
        ("classify", {"tied": True}, "config.model.tied=True is for language models"),
        ("lm", {"bidirectional": True}, "would see the token that it has to guess"),
        ("mlm", {}, "set config.model.bidirectional=True"),
        ("lm", {"tied": True}, "config.model.embedding=6 to be as wide as what enters the head, 8"),
        ("classify", {"recurrent_dropout": 1.0}, "it must be at least 0 and below 1"),
        ("classify", {"word_dropout": -0.1}, "it must be at least 0 and below 1"),
    ],
)
def test_options_that_cannot_be(head, options, match):
    with pytest.raises(ValueError, match=match):
        made(head, **options)


def test_a_classifier_has_no_cache():
    module, variables = made()
    with pytest.raises(ValueError, match="goes over whole rows: no cache"):
        module.apply(variables, tokens(1, 2), train=False, cache=module.empty_cache(1, 2))
