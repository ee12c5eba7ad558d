"""Batches of texts against loops over tokens, themselves cut into parts, and statistics of what is masked."""

import json
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

from research.config import defaults
from research.data.prefetch import stream
from research.data.rows import order
from research.data.text import batches
from research.data.text.encode import encode
from research.errors import UserError, UserErrors

BATCH, EVAL = 6, 4
PARTS = [slice(0, 1), slice(1, 4), slice(4, 6)]


class Bytes:
    """A token for each byte, [CLS] and [SEP] around what is classified."""

    pad, unk, bos, eos, cls, sep, mask = range(256, 263)
    size, sha256 = 263, "bytes"

    def encode(self, texts, *, special):
        ends = ([self.cls], [self.sep]) if special else ([], [])
        return [np.array([*ends[0], *text.encode(), *ends[1]], np.int32) for text in texts]

    def encode_bytes(self, texts):
        ids = self.encode(texts, special=False)
        # All bytes of a character stand with its first.
        sizes = np.array([1] * 128 + [0] * 64 + [2] * 32 + [3] * 16 + [4] * 16, np.int32)
        return [(one, sizes[one]) for one in ids]

    def chat(self, messages, *, answer):
        ids, weights = [], []
        for turn in messages:
            said = turn["role"] == "assistant"
            ids += [self.bos, *turn["content"].encode(), self.eos]
            weights += [0.0, *[float(said)] * (len(turn["content"].encode()) + 1)]
        return np.array(ids, np.int32), np.array(weights, np.float32)


class Words(Bytes):
    """A token for each word, whose number is its length; spaces count with none. Only eos, no mask."""

    pad = unk = bos = cls = sep = mask = None
    eos, size, sha256 = 99, 100, "words"

    def encode_bytes(self, texts):
        return [(ids, ids) for ids in self.encode(texts, special=False)]

    def encode(self, texts, *, special):
        return [np.array([len(word) for word in text.split()], np.int32) for text in texts]


class Texts(list):
    def bytes(self, i):
        return len(self[i].encode())


class Store(NamedTuple):
    texts: Texts
    chat: bool
    labels: np.ndarray
    certainty: np.ndarray
    splits: dict
    folder: object


@pytest.fixture
def make_store(tmp_path):
    def make(texts, chat=False, tests=None):
        tests = len(texts) // 4 if tests is None else tests
        where = np.random.default_rng(1).permutation(len(texts))
        splits = {"test": np.sort(where[:tests]), "train": np.sort(where[tests : len(texts) - 1])}
        labels = np.random.default_rng(2).integers(0, 3, len(texts)).astype(np.int32)
        certain = np.ones(len(texts), np.float32)
        return Store(Texts(texts), chat, labels, certain, splits, tmp_path)  # one is in no split

    return make


def random_texts(count, longest, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcde  fgh é€𝄞"))
    texts = ["".join(rng.choice(letters, rng.integers(0, longest))) for _ in range(count)]
    return ["", "  ", *texts]


def config(max_length, buckets=(), **options):
    data = defaults().data
    data.text.update(max_length=max_length, buckets=buckets)
    data.update(options)
    return data


def classify(store, data, tokenizer=None, seed=3, batch_size=BATCH):
    return batches.classification(
        store, tokenizer or Bytes(), data, seed=seed, batch_size=batch_size, eval_batch_size=EVAL
    )


def model(store, max_length, objective="causal", tokenizer=None, **options):
    sizes = dict(seed=3, batch_size=BATCH, eval_batch_size=EVAL) | options
    data = config(max_length)
    return batches.language_model(store, tokenizer or Bytes(), data, objective=objective, **sizes)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def split_batches(eval_batch, split, size):
    return [eval_batch(split, n, slice(None)) for n in range(-(-size // EVAL))]


def rows_of_batches(given, split):
    """The rows of a split's evaluation that are not padding."""
    rows = joined(split_batches(given.eval_batch, split, given.sizes[split]))
    return {key: values[rows["mask"] > 0] for key, values in rows.items()}


def chats(count=30):
    rng = np.random.default_rng(4)
    made = []
    for _ in range(count):
        turns = []
        for _ in range(rng.integers(1, 3)):
            turns.append({"role": "user", "content": "q" * rng.integers(1, 9)})
            turns.append({"role": "assistant", "content": "ä" * rng.integers(0, 6)})
        made.append(json.dumps(turns))
    return made


# Every kind of batches there is, by what makes them.
KINDS = {
    "plain": lambda make: classify(make(random_texts(50, 30)), config(16))[:2],
    "buckets": lambda make: classify(make(random_texts(50, 30)), config(24, (8, 16)))[:2],
    "causal": lambda make: model(make(random_texts(50, 30)), 16)[:2],
    "masked": lambda make: model(make(random_texts(50, 30)), 16, "masked")[:2],
    "chat": lambda make: model(make(chats(), chat=True), 40)[:2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_joined_are_the_whole_whatever_was_made_before(make_store, kind):
    train_batch, eval_batch = KINDS[kind](make_store)
    whole = [train_batch(n, slice(0, BATCH)) for n in range(20)]
    again, _ = KINDS[kind](make_store)
    for n in (17, 3, 19, 0):
        same(whole[n], joined([again(n, rows) for rows in PARTS]))
    for n in range(9):
        parts = [eval_batch("test", n, slice(i, i + 1)) for i in range(EVAL)]
        same(eval_batch("test", n, slice(0, EVAL)), joined(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_model_reads_can_be_left_out(make_store, kind):
    train_batch, eval_batch = KINDS[kind](make_store)
    for whole, rest in (
        (train_batch(2, slice(None)), train_batch(2, slice(None), inputs=False)),
        (eval_batch("test", 1, slice(None)), eval_batch("test", 1, slice(None), inputs=False)),
    ):
        assert whole.keys() - rest.keys() >= {"tokens", "segments"}
        same({key: whole[key] for key in rest}, rest)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_in_other_processes_make_the_same(make_store, kind):
    cloudpickle = pytest.importorskip("cloudpickle")  # what Grain sends functions with
    train_batch, _ = KINDS[kind](make_store)
    sent = cloudpickle.dumps(train_batch)
    same(train_batch(4, slice(None)), cloudpickle.loads(sent)(4, slice(None)))


@pytest.mark.parametrize("kind", ["buckets", "chat"])
def test_workers_of_grain_make_the_same(make_store, kind):
    train_batch, _ = KINDS[kind](make_store)
    made = {}
    for loader, workers in (("memory", 0), ("grain", 0), ("grain", 2)):
        data = config(16, loader=loader, workers=workers)
        with stream(train_batch, slice(1, 4), 2, 7, data) as given:
            made[loader, workers] = list(given)
    expected = made.pop(("memory", 0))
    assert [n for n, _ in expected] == list(range(2, 7))
    for got in made.values():
        for (n, one), (m, other) in zip(expected, got, strict=True):
            assert n == m
            same(one, other)


def test_a_copy_in_another_process_moves_no_tokens(make_store):
    cloudpickle = pytest.importorskip("cloudpickle")
    encoded = encode(make_store(random_texts(200, 200)), Bytes(), "language_model")
    sent = cloudpickle.dumps(encoded)
    assert encoded.texts.ids.nbytes > 20 * len(sent)
    np.testing.assert_array_equal(cloudpickle.loads(sent).texts.ids, encoded.texts.ids)


@pytest.mark.parametrize("size", [30, 46, 120, 600])
def test_buckets_see_every_example_once_an_epoch(size):
    lengths = np.random.default_rng(0).integers(1, 100, size)
    count = 5 * size // BATCH
    made = [batches.bucketed(7, n, BATCH, lengths) for n in range(count)]
    stream, sorted_ones = np.concatenate(made), 0
    for epoch in range(count * BATCH // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    for n, indices in enumerate(made):
        if n * BATCH // size == (n * BATCH + BATCH - 1) // size:  # in one epoch
            assert len(set(indices)) == BATCH
            sorted_ones += (np.diff(lengths[indices]) >= 0).all()
        else:
            np.testing.assert_array_equal(indices, order(7, n, BATCH, size)[0])
    assert sorted_ones >= count - 5


def test_a_group_of_batches_is_the_same_examples_as_without_buckets_in_another_order():
    lengths = np.random.default_rng(0).integers(1, 100, 32 * BATCH)
    made = [batches.bucketed(7, n, BATCH, lengths) for n in range(32)]
    first = [lengths[indices].min() for indices in made]
    assert first != sorted(first)  # short ones do not come first
    ranks = np.argsort(first, kind="stable")
    by_length = lengths[np.concatenate([made[n] for n in ranks])]
    np.testing.assert_array_equal(by_length, np.sort(lengths))


def test_buckets_leave_little_padding(make_store):
    rng = np.random.default_rng(0)
    store = make_store(["a" * n for n in np.minimum(rng.geometric(0.02, 4000), 254)], tests=5)

    def padding(buckets):
        train_batch, *_ = classify(store, config(256, buckets), batch_size=32)
        made = [train_batch(n, slice(None))["segments"] for n in range(100)]
        return 1 - sum(s.sum() for s in made) / sum(s.size for s in made)

    assert padding(()) > 0.75  # 52 tokens of 256 on average
    assert padding(tuple(range(8, 256, 8))) < 0.15


@pytest.mark.parametrize("buckets", [(), (8, 16)])
def test_a_text_to_classify_is_cut_and_padded(make_store, buckets):
    store, tokenizer = make_store(random_texts(50, 30)), Bytes()
    train_batch, eval_batch, counts = classify(store, config(20, buckets))
    made = [train_batch(n, slice(None)) for n in range(15)]
    made += split_batches(eval_batch, "test", len(store.splits["test"]))
    seen = set()
    for batch in made:
        full = tokenizer.encode([store.texts[i] for i in batch["id"] if i >= 0], special=True)
        longest = min(max(map(len, full)), 20)
        length = min(size for size in (*buckets, 20) if size >= longest)
        seen.add(length)
        assert batch["tokens"].shape == batch["segments"].shape == (len(batch["id"]), length)
        for row, ids in enumerate(full):
            if len(ids) > 20:
                ids = [*ids[:19], tokenizer.sep]
            padding = length - len(ids)
            assert batch["tokens"][row].tolist() == [*ids, *[tokenizer.pad] * padding]
            assert batch["segments"][row].tolist() == [1] * len(ids) + [0] * padding
            assert batch["label"][row] == store.labels[batch["id"][row]]
        assert not batch["segments"][len(full) :].any()
    kinds = {key: str(value.dtype) for key, value in made[0].items()}
    names = ("label", "tokens", "segments", "id")
    assert kinds == dict.fromkeys(names, "int32") | {"mask": "float32"}
    assert seen == {*buckets, 20}
    for split, documents in store.splits.items():
        full = tokenizer.encode([store.texts[i] for i in documents], special=True)
        cut = sum(len(ids) > 20 for ids in full)
        tokens = sum(map(len, full))
        assert counts[split] == {"documents": len(documents), "tokens": tokens, "cut": cut}
        assert 0 < cut < len(documents)


def test_without_buckets_the_order_is_the_plain_one_and_evaluation_is_in_order(make_store):
    store = make_store(random_texts(50, 30))
    train_batch, eval_batch, _ = classify(store, config(16))
    for n in range(20):
        indices, _ = order(3, n, BATCH, len(store.splits["train"]))
        batch = train_batch(n, slice(None))
        np.testing.assert_array_equal(batch["id"], store.splits["train"][indices])
    made = joined(split_batches(eval_batch, "test", 13))
    np.testing.assert_array_equal(made["mask"], [1] * 13 + [0] * 3)
    np.testing.assert_array_equal(made["id"], [*store.splits["test"], -1, -1, -1])


def test_a_users_texts_are_batched_like_the_stores(make_store):
    store = make_store(random_texts(50, 30))
    data = config(20, (8, 16))
    _, eval_batch, _ = classify(store, data)
    test = store.splits["test"]
    given = batches.inputs(
        [store.texts[i] for i in test], list(map(str, test)), Bytes(), data, EVAL
    )
    assert given.names == [str(i) for i in test]
    for n in range(4):
        mine, theirs = given.batch(n, slice(1, 3)), eval_batch("test", n, slice(1, 3))
        same(
            *(
                {key: batch[key] for key in ("tokens", "segments", "mask")}
                for batch in (mine, theirs)
            )
        )


def test_a_text_of_which_no_token_is_left_is_still_one(make_store):
    given = batches.inputs(["  ", "a bc"], ["x", "y"], Words(), config(4), 2)
    batch = given.batch(0, slice(None))
    assert batch["segments"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    assert batch["tokens"].tolist() == [[0, 0, 0, 0], [1, 2, 0, 0]]


def pieces_of(rows):
    """(tokens, targets, weights) of each piece, from the rows that a model gets."""
    made = []
    for row in range(len(rows["tokens"])):
        segments = rows["segments"][row]
        real = segments > 0
        assert real.tolist() == sorted(real.tolist(), reverse=True)  # padding stands at the end
        assert (np.diff(segments[real]) >= 0).all() and set(segments[real]) == set(
            range(1, segments.max() + 1)
        )
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            assert rows["positions"][row][here].tolist() == list(range(here.sum()))
            names = ("tokens", "targets", "weights")
            made.append(tuple(tuple(rows[name][row][here].tolist()) for name in names))
        for name in ("weights", "positions"):
            assert not rows[name][row][~real].any()
    return made


@pytest.mark.parametrize("tokenizer", [Bytes(), Words()], ids=["bytes", "words"])
@pytest.mark.parametrize("max_length", [2, 16, 100])
def test_every_token_is_a_target_once(make_store, tokenizer, max_length):
    store = make_store(random_texts(50, 60))
    given = model(store, max_length, tokenizer=tokenizer, batch_size=1)
    for split, documents in store.splits.items():
        rows = rows_of_batches(given, split)
        expected = []
        for i in documents:
            tokens = tokenizer.encode([store.texts[i]], special=False)[0].tolist()
            before = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
            whole = [before, *tokens, tokenizer.eos]
            for at in range(0, len(whole) - 1, max_length):
                end = min(at + max_length, len(whole) - 1)
                targets = tuple(whole[at + 1 : end + 1])
                expected.append((tuple(whole[at:end]), targets, (1.0,) * (end - at)))
        assert Counter(pieces_of(rows)) == Counter(expected)
        counts = given.counts[split]
        tokens = sum(len(piece[0]) for piece in expected)
        assert counts["documents"] == len(documents) and counts["tokens"] == tokens
        assert counts["rows"] == given.sizes[split] == len(rows["id"])
        assert counts["padding"] == pytest.approx((rows["segments"] == 0).mean(), abs=1e-12)
        # Bits per byte over a split are exact.
        size = sum(len(store.texts[i].encode()) for i in documents)
        assert rows["bytes"].sum() == counts["bytes"] == size
        np.testing.assert_array_equal(rows["id"], np.arange(given.sizes[split]))


def test_bytes_belong_to_the_row_of_their_tokens(make_store):
    rows = rows_of_batches(model(make_store(random_texts(50, 60)), 16), "train")
    for row in range(len(rows["id"])):
        targets = rows["targets"][row][rows["segments"][row] > 0].tolist()
        # A character counts where its first byte is a target.
        expected = sum(
            len(c.encode()) for c in "abcdefgh é€𝄞" for t in targets if t == c.encode()[0]
        )
        assert rows["bytes"][row] == expected


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_every_epoch_sees_each_row_once(make_store, objective):
    given = model(make_store(random_texts(70, 40)), 16, objective)
    size = given.sizes["train"]
    made = joined([given.train_batch(n, slice(None)) for n in range(3 * size // BATCH + 1)])
    whole = rows_of_batches(given, "train")
    orders = [made["id"][epoch * size : (epoch + 1) * size].tolist() for epoch in range(3)]
    assert all(sorted(one) == list(range(size)) for one in orders) and orders[0] != orders[1]
    for key in ("targets", "segments", "positions", *(("bytes",) if objective == "causal" else ())):
        np.testing.assert_array_equal(made[key], whole[key][made["id"]])


@pytest.mark.parametrize("pad", [256, None])  # without one, padding looks like an ordinary token
def test_what_is_masked(make_store, pad):
    store, tokenizer = make_store(["abcdefg" * 20 for _ in range(400)], tests=300), Bytes()
    tokenizer.pad = pad
    given = model(store, 128, "masked", mask_rate=0.15, tokenizer=tokenizer)
    rows = rows_of_batches(given, "test")
    chosen, tokens, targets = rows["weights"] > 0, rows["tokens"], rows["targets"]
    real = (rows["segments"] > 0) & (targets < 256)
    assert not (chosen & ~real).any()  # neither special tokens nor padding
    np.testing.assert_array_equal(tokens[~chosen], targets[~chosen])
    np.testing.assert_array_equal(rows["bytes"], chosen.sum(1))  # all letters are of one byte

    def near(hits, count, share):  # five standard deviations: wrong once in two million
        assert abs(hits - count * share) < 5 * np.sqrt(count * share * (1 - share))

    count = chosen.sum()
    assert real.sum() == 300 * 140
    near(count, real.sum(), 0.15)
    masked, kept = tokens == tokenizer.mask, tokens == targets
    near((masked & chosen).sum(), count, 0.8)
    near((kept & chosen).sum(), count, 0.1 + 0.1 / 256)
    other = tokens[chosen & ~masked & ~kept]
    near(len(other), count, 0.1 * 255 / 256)
    assert other.max() < 256 + (pad is None) and len(set(other)) > 200
    # The whole of a document is there, its ends too, and every token of it once.
    whole = [tokenizer.bos, *store.texts[0].encode(), tokenizer.eos]
    assert Counter(targets[rows["segments"] > 0].tolist()) == Counter(whole * 300)


def test_masks_are_drawn_anew_in_training_and_stay_in_evaluation(make_store):
    store = make_store(["abcdefg" * 20 for _ in range(40)])
    first, second = (model(store, 128, "masked", seed=seed) for seed in (1, 2))
    same(first.eval_batch("test", 0, slice(None)), second.eval_batch("test", 0, slice(None)))
    size = first.sizes["train"]
    made = joined([first.train_batch(n, slice(None)) for n in range(2 * size // BATCH + 1)])
    other = joined([second.train_batch(n, slice(None)) for n in range(2 * size // BATCH + 1)])
    row = made["id"][0]
    again = size + made["id"][size : 2 * size].tolist().index(row)
    elsewhere = other["id"].tolist().index(row)
    masks = [made["weights"][0], made["weights"][again], other["weights"][elsewhere]]
    assert len({mask.tobytes() for mask in masks}) == 3


def test_of_a_conversation_exactly_the_answers_count(make_store):
    store, tokenizer = make_store(chats(60), chat=True), Bytes()
    given = model(store, 32)
    for split, documents in store.splits.items():
        rows = rows_of_batches(given, split)
        found, expected, size, left_out = Counter(), Counter(), 0, 0
        for tokens, targets, weights in pieces_of(rows):
            counted = [target for target, weight in zip(targets, weights, strict=True) if weight]
            found[(tokens, tuple(counted))] += 1
        for i in documents:
            turns = json.loads(store.texts[i])
            ids, _ = tokenizer.chat(turns, answer=False)
            if len(ids) - 1 > 32:
                left_out += 1
                continue
            said = [turn["content"].encode() for turn in turns if turn["role"] == "assistant"]
            counted = [token for answer in said for token in (*answer, tokenizer.eos)]
            expected[(tuple(ids[:-1].tolist()), tuple(counted))] += 1
            size += sum(map(len, said))
        assert found == expected
        assert rows["bytes"].sum() == size == given.counts[split]["bytes"]
        assert given.counts[split]["left_out"] == left_out > 0
        assert given.counts[split]["documents"] == sum(expected.values()) > 0
        assert given.counts[split]["answer_tokens"] == rows["weights"].sum()


def test_tokens_are_made_once_for_each_tokenizer(make_store):
    class Counting(Bytes):
        calls = 0

        def encode_bytes(self, texts):
            Counting.calls += 1
            return super().encode_bytes(texts)

    store = make_store(random_texts(20, 30))
    one = encode(store, Counting(), "language_model")
    two = encode(store, Counting(), "language_model")
    assert Counting.calls == 1 and one.folder == two.folder
    np.testing.assert_array_equal(one.texts.ids, two.texts.ids)
    assert encode(store, Words(), "language_model").folder != one.folder
    assert encode(store, Bytes(), "classification").folder != one.folder
    counts = np.diff(one.texts.offsets)
    unused = set(range(22)) - set(store.splits["train"]) - set(store.splits["test"])
    assert set(np.flatnonzero(counts == 0)) == unused and len(unused) == 1
    file = one.folder / "bytes.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"damaged \(a file is too short\); delete this folder"):
        encode(store, Counting(), "language_model")


def test_other_libraries_make_the_tokens_anew(make_store, monkeypatch):
    talk, plain = make_store(chats(), chat=True), make_store(random_texts(20, 30))
    versions = {"tokenizers": "1", "Jinja2": "1"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions[name])

    def folders():
        return [encode(store, Bytes(), "language_model").folder for store in (plain, talk)]

    before = folders()
    assert folders() == before
    versions["Jinja2"] = "2"
    after = folders()
    assert after[0] == before[0] and after[1] != before[1]
    versions["tokenizers"] = "2"
    assert not set(folders()) & set(after + before)


def test_many_chunks_are_one_stream(make_store, monkeypatch, tmp_path):
    store, tokenizer = make_store(random_texts(30, 30)), Bytes()
    whole = encode(store, tokenizer, "language_model").texts
    monkeypatch.setattr("research.data.text.encode._CHUNK", 40)
    cut = encode(store._replace(folder=tmp_path / "other"), tokenizer, "language_model").texts
    for name in ("ids", "offsets", "bytes"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_what_does_not_fit_is_said_in_a_line(make_store):
    store = make_store(random_texts(50, 30))
    with pytest.raises(UserErrors) as caught:
        classify(store, config(16, (8, 32), workers=2), batch_size=64)
    assert [line.split(" ")[0] for line in caught.value.lines] == [
        "config.train.batch_size",
        "config.data.text.buckets",
        "config.data.workers",
    ]
    with pytest.raises(
        UserError,
        match=r"^config.train.batch_size is 64 .* rows of 100 tokens: set .* to \d+ or less, or",
    ):
        model(store, 100, batch_size=64)
    with pytest.raises(UserError, match=r"^config.tokenizer: the tokenizer has no mask token"):
        model(store, 16, "masked", tokenizer=Words())
    bare = Words()
    bare.eos = None
    with pytest.raises(
        UserError, match=r"^config.tokenizer: .* none of the tokens eos, sep, bos and cls"
    ):
        model(store, 16, tokenizer=bare)
    conversations = make_store(chats(30), chat=True)
    message = r"^config.data.text.max_length=2: \d+ of \d+ conversations of the test split are longer.* needs \d+$"
    with pytest.raises(UserError, match=message):
        model(conversations, 2)
    with pytest.raises(UserError, match="conversations are for a causal language model"):
        model(conversations, 32, "masked")
    with pytest.raises(UserError, match="data.text.buckets is for texts to classify"):
        sizes = dict(seed=0, batch_size=2, eval_batch_size=2, objective="causal")
        batches.language_model(store, Bytes(), config(16, (8,)), **sizes)


def test_labels_that_are_not_certain_are_shared_out(make_store):
    store = make_store(random_texts(50, 30))
    odds = np.linspace(0.5, 1, len(store.texts)).astype(np.float32)
    store = store._replace(labels=store.labels % 2, certainty=odds)
    train_batch, eval_batch, _ = classify(store, config(20, (8,)))
    batch = train_batch(3, slice(1, None))
    np.testing.assert_array_equal(batch["mix"], odds[batch["id"]])
    np.testing.assert_array_equal(batch["label"], store.labels[batch["id"]])
    np.testing.assert_array_equal(batch["label_b"], 1 - batch["label"])
    assert "mix" not in eval_batch("test", 0, slice(None))
