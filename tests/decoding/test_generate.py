"""Generation with a cache against the plain loop without one, and what a user relies on: stops, seeds, streaming."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding.generate import generate
from research.errors import UserError

CONTEXT = 64
PROMPTS = ["hello", "a longer one than the others", "é"]


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def decode(ids):
    return bytes(int(i) for i in ids).decode("utf-8", "replace")


def options(**given):
    plain = dict(max_tokens=12, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    return SimpleNamespace(**{**plain, "repetition_penalty": 1.0, "stop": (), "seed": 0, **given})


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(256, context=CONTEXT)


@pytest.fixture
def run(model):
    """run(*prompts, options...) -> what follows each."""
    return runner(*model)


@pytest.fixture
def draw():
    """As `run`, of a model that compiles faster: the next token depends on the last one alone."""
    table = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    return runner(table, chain, no_cache)


def chain(table, tokens, *, segments, positions, cache, last):
    return jnp.asarray(table)[tokens[:, -1]], cache


def runner(params, apply, cache_of):
    def run(*prompts, eos=(), emit=None, steps=0, rows=16, pad=0, **given):
        prompts = [encode(p) if isinstance(p, str) else np.array(p, np.int32) for p in prompts]
        return generate(
            apply, params, cache_of, prompts, options=options(**given), decode=decode, eos=eos,
            context=CONTEXT, pad=pad, emit=emit, steps=steps, rows=rows,
        )  # fmt: skip

    return run


def follow(script, tokens, *, segments, positions, cache, last):
    """A model that writes its parameters, whatever the prompt: int32 [B, N] tokens for each row."""
    wanted = script[:, jnp.minimum(cache, script.shape[1] - 1)]
    return jnp.where(jnp.arange(256) == wanted[:, None], 9.0, 0.0), cache + 1


def no_cache(batch_size, slots):
    return jnp.int32(0)


def write(*texts, prompts=None, eos=(), steps=0, emit=None, decode=decode, **given):
    """What a model that says the texts, byte by byte, is made to say."""
    texts = [text if isinstance(text, bytes) else text.encode() for text in texts]
    script = np.zeros((len(texts), CONTEXT), np.int32)
    for row, text in zip(script, texts, strict=True):
        row[: len(text)] = list(text)
    given = {"max_tokens": max(len(text) for text in texts)} | given
    return generate(
        follow, script, no_cache, prompts or [encode("x")] * len(texts), options=options(**given),
        decode=decode, eos=eos, context=CONTEXT, emit=emit, steps=steps,
    )  # fmt: skip


def uncached(model, prompt, count, penalty=1.0):
    """The most likely tokens, one after another, each from all before it."""
    params, apply, _ = model
    ids = list(encode(prompt))
    for _ in range(count):
        logits = np.array(apply(params, jnp.array([ids + [0] * (CONTEXT - len(ids))])))
        logits = logits[0, len(ids) - 1]
        for token in set(ids):
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
        ids.append(int(logits.argmax()))
    return ids[len(ids) - count :]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_equals_the_loop_without_a_cache(model, run, penalty):
    """Padding in front of shorter prompts is neither seen nor punished, though it is what comes next."""
    pad = uncached(model, PROMPTS[-1], 1)[0]
    for prompt, got in zip(
        PROMPTS, run(*PROMPTS, repetition_penalty=penalty, pad=pad), strict=True
    ):
        assert got.ids.tolist() == uncached(model, prompt, 12, penalty)
        assert got.reason == "length" and got.text == decode(got.ids).rstrip("\ufffd")


def test_a_prompt_in_a_batch_gets_what_it_gets_alone(run):
    for prompt, got in zip(PROMPTS, run(*PROMPTS), strict=True):
        assert got.ids.tolist() == run(prompt)[0].ids.tolist()


def test_a_draw_depends_on_the_prompts_number_alone(draw):
    """Two at a time, the last prompt is in a batch with a row too many, and still the third."""
    together = draw(*PROMPTS, temperature=1.0)
    assert draw(PROMPTS[0], temperature=1.0)[0].ids.tolist() == together[0].ids.tolist()
    for one, other in zip(together, draw(*PROMPTS, temperature=1.0, rows=2), strict=True):
        assert one.ids.tolist() == other.ids.tolist()


def test_each_token_is_a_draw_of_its_own():
    """Where all tokens are always as likely, 60 of 256 are 53 different ones on average, 2.2 being a deviation."""
    flat = np.zeros((256, 256), np.float32)
    (got,) = runner(flat, chain, no_cache)("x", temperature=1.0, max_tokens=60)
    assert 53 - 5 * 2.2 < len(set(got.ids.tolist())) < 60


def test_prompts_that_are_the_same_differ_in_their_draws(draw):
    one, other = draw("hello", "hello", temperature=1.0)
    assert one.ids.tolist() != other.ids.tolist()


def test_the_seed_says_what_is_drawn(draw):
    kinds = dict(temperature=1.0), dict(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01)
    for given in kinds:
        first, again, other = (draw("hello", seed=seed, **given)[0].ids for seed in (7, 7, 8))
        assert first.tolist() == again.tolist() != other.tolist()


def test_filters_reach_the_draw(draw):
    greedy = draw("hello")[0].ids.tolist()
    for given in (dict(top_k=1, top_p=0.9), dict(top_p=1e-6, min_p=0.1), dict(min_p=1.0)):
        assert draw("hello", temperature=3.0, **given)[0].ids.tolist() == greedy
    assert draw("hello", temperature=3.0)[0].ids.tolist() != greedy


@pytest.mark.parametrize("steps", [1, 2, 5, 32])
def test_the_number_of_steps_at_a_time_changes_nothing(draw, steps):
    plain = dict(temperature=1.0, max_tokens=40 if steps == 5 else 12, repetition_penalty=1.2)
    stop = (draw(*PROMPTS[:2], **plain)[0].text[3:5],)
    for given in (plain, {**plain, "stop": stop}):
        want = draw(*PROMPTS[:2], **given)
        for a, b in zip(want, draw(*PROMPTS[:2], steps=steps, **given), strict=True):
            assert (a.ids.tolist(), a.reason, a.text) == (b.ids.tolist(), b.reason, b.text)


def test_many_prompts_compile_once(run, model):
    _, apply, _ = model
    run("hello")
    before = apply.traces
    for prompt in ("a", "hello you", "fifteen bytes!!"):
        run(prompt)
        run(prompt, seed=5)
    assert apply.traces == before
    run("a longer one than the others")  # padded to another length
    run("another longer one than others")
    assert apply.traces <= before + 2


def test_eos_ends_a_text_and_is_not_part_of_it(run):
    whole = run(*PROMPTS)
    eos = int(whole[0].ids[5])
    for full, got in zip(whole, run(*PROMPTS, eos=(eos, 255)), strict=True):
        ids = full.ids.tolist()
        cut = next((i for i, token in enumerate(ids) if token in (eos, 255)), None)
        assert got.ids.tolist() == ids[:cut]
        assert got.reason == ("length" if cut is None else "eos")
    first = run("hello", eos=(int(whole[0].ids[0]),))[0]
    assert first.ids.size == 0 and first.ids.dtype == np.int32
    assert first.reason == "eos" and first.text == ""


@pytest.mark.parametrize("count", [1, 2, 31])
def test_max_tokens(draw, count):
    assert (
        draw("hello", max_tokens=count)[0].ids.tolist()
        == draw("hello", max_tokens=40)[0].ids[:count].tolist()
    )


def test_the_context_ends_a_text(run, model):
    """Rows of one batch end apart: each at its own length."""
    short, long, full = run("ab", "b" * 60, "c" * CONTEXT, max_tokens=500)
    assert [len(got.ids) for got in (short, long, full)] == [62, 4, 0]
    assert [got.reason for got in (short, long, full)] == ["length"] * 3
    assert short.ids.tolist() == uncached(model, "ab", 62)
    assert long.ids.tolist() == uncached(model, "b" * 60, 4)
    assert run("c" * CONTEXT)[0].text == ""


def test_bad_prompts_are_lines(draw):
    with pytest.raises(UserError, match="^the prompt has 65 tokens, .* context of 64; shorten it$"):
        draw("a" * 65)
    with pytest.raises(UserError) as caught:
        draw("a" * 99, "fine", "")
    lines = str(caught.value).splitlines()
    assert [line[:15] for line in lines] == ["prompt 1 of 3 h", "prompt 3 of 3 h"]
    assert draw() == []


@pytest.mark.parametrize("steps", [1, 3, 32])
@pytest.mark.parametrize(
    "stop, text, made",
    [
        (("\n\n",), "one", 5),
        (("nothing",), "one\n\ntwo, three", 15),
        (("two", "e\n"), "on", 4),
        (("e\n\ntw!", "wo,"), "one\n\nt", 9),  # what began as the first goes on as the second
        (("one",), "", 3),
        (("three", ""), "one\n\ntwo, ", 15),
    ],
)
def test_a_stop_text_ends_it_across_tokens(stop, text, made, steps):
    pieces = []
    (got,) = write("one\n\ntwo, three", stop=stop, steps=steps, emit=lambda i, p: pieces.append(p))
    assert got.text == text == "".join(pieces)
    assert got.reason == ("length" if stop == ("nothing",) else "stop")
    assert len(got.ids) == made


def test_a_stop_text_inside_one_token():
    words = {1: "Yes", 2: ". User: no", 3: "x"}

    def decode(ids):
        return "".join(words.get(int(i), "") for i in ids)

    (got,) = write(bytes([1, 2, 3]), stop=("User:",), decode=decode)
    assert (got.text, got.ids.tolist(), got.reason) == ("Yes. ", [1, 2], "stop")


def test_rows_stop_by_themselves():
    got = write("abcdefgh", "xxabyyyy", stop=("ab",))
    assert [g.text for g in got] == ["", "xx"] and [g.reason for g in got] == ["stop"] * 2
    got = write("abcdefgh", "xxxxyyyy", eos=(ord("b"),))
    assert [(g.text, g.reason) for g in got] == [("a", "eos"), ("xxxxyyyy", "length")]


@pytest.mark.parametrize("steps", [1, 2, 32])
def test_pieces_are_whole_characters_and_joined_the_text(steps):
    texts = "naïve 東京 🙂👍🏽!", "ünïcödé ok, and then some"
    pieces = [[], []]
    got = write(*texts, steps=steps, emit=lambda i, piece: pieces[i].append(piece))
    for row, (result, mine) in enumerate(zip(got, pieces, strict=True)):
        assert "".join(mine) == result.text == decode(result.ids)
        assert result.text.startswith(texts[row])
        assert all(mine) and not any("\ufffd" in piece for piece in mine)
    assert len(pieces[0]) > 1 or steps == 32


def test_a_character_that_stays_incomplete_is_left_out():
    (got,) = write("ab東", max_tokens=4)
    assert got.text == "ab" and len(got.ids) == 4
    (got,) = write(b"ab\xffcd\xe6\x9d")
    assert got.text == "ab\ufffdcd"  # bytes that are no character, and have text behind them, stay
    (got,) = write(
        bytes([1]), decode=lambda ids: "".join({1: "a\ufffd"}.get(int(i), "") for i in ids)
    )
    assert got.text == "a"


def test_text_goes_on_from_the_prompt():
    """Decoders that leave out a text's first space see the prompt's last tokens."""
    words = {1: "▁Hello", 2: "▁world", 3: "▁again"}

    def decode(ids):
        return "".join(words.get(int(i), "") for i in ids).replace("▁", " ").removeprefix(" ")

    (got,) = write(bytes([2, 3]), prompts=[np.array([1], np.int32)], decode=decode)
    assert got.text == " world again"


def test_streaming_comes_before_the_end(draw):
    seen = []
    draw("hello", steps=4, emit=lambda i, piece: seen.append(piece), max_tokens=40)
    assert len(seen) > 3
