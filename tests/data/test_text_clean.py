import json
import random
import re
import unicodedata

import numpy as np
import pytest

from research.config import defaults
from research.data.duplicates import exact_groups
from research.data.text import duplicates
from research.data.text.clean import mend
from research.data.text.store import prepare
from research.errors import UserError

WORDS = [
    a + b + c for a in ("ka", "mo", "ri", "te", "su", "lon") for b in "bdfgl" for c in ("a", "en")
]


def sentences(seed, count, words=18):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


def runs(text):
    """The runs of five characters, as the docstring says, as a set of strings."""
    plain = re.sub(r"\s+", " ", text.lower()).strip()
    return {plain[i : i + 5] for i in range(max(len(plain) - 4, 1))} if plain else set()


def brute_force(texts):
    """(i, j) -> Jaccard similarity of all pairs that are near duplicates and not equal."""
    sets = [runs(text) for text in texts]
    found = {}
    for i in range(len(texts)):
        for j in range(i + 1, len(texts)):
            if sets[i] and sets[j] and texts[i] != texts[j]:
                same = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
                if same >= 0.8:
                    found[i, j] = same
    return found


@pytest.fixture
def store(data_config, tmp_path):
    """Prepares texts, class and split of each: store([('text', 'a', 'train'), ...], blank='keep') -> TextStore."""

    def make(rows, labelled=True, longest=1_000_000, normalise="NFC", **policy):
        for i, (text, label, split) in enumerate(rows):
            place = tmp_path / "texts" / split / label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:04d}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        data = data_config("text_folder", path=str(tmp_path / "texts"), validation_fraction=0.0)
        data.text.longest, data.text.normalise = longest, normalise
        for kind, value in policy.items():
            data.clean[kind] = value
        return prepare(data, labelled=labelled)

    return make


def rows_of(texts, test=6):
    """The texts in two classes in turn, the last of them in test."""
    split = ["train"] * (len(texts) - test) + ["test"] * test
    return [(text, "ab"[i % 2], split[i]) for i, text in enumerate(texts)]


def left(got):
    """The numbers of the texts that are in a split."""
    return sorted(int(got.keys[i][-8:-4]) for indices in got.splits.values() for i in indices)


def test_near_duplicates_are_those_of_all_pairs_compared():
    rng = random.Random(0)
    texts = sentences(0, 250)
    for text in list(
        texts[:120]
    ):  # changed by none to eight words of 18: on either side of the threshold
        words = text.split()
        for place in rng.sample(range(18), rng.randrange(9)):
            words[place] = rng.choice(WORDS).upper()
        texts.append("  ".join(words))
    texts += [
        texts[0],
        texts[3],
        "",
        "ab",
        "AB ",
        "abcd",
        "日本語の文章です。",
        "日本語の文章です!",
    ]
    expected = brute_force(texts)
    found, crowded = duplicates.find(texts)
    assert {tuple(pair) for pair in found.pairs.tolist()} == set(expected)
    assert len(expected) > 40 and crowded == 0
    for pair, distance in zip(found.pairs.tolist(), found.distances, strict=True):
        assert distance == pytest.approx(1 - expected[tuple(pair)], abs=1e-6)  # float32
    assert found.blank.nonzero()[0].tolist() == [texts.index("")]
    assert {tuple(g) for g in exact_groups(found.digests)} == {(0, 370), (3, 371)}


def test_long_texts_are_compared_whole():
    rng = random.Random(1)
    letters = [chr(c) for c in range(0x4E00, 0x4E00 + 300)]  # many, or any two share most pieces
    other, long, more = ("".join(rng.choices(letters, k=n)) for n in (60_000, 60_000, 6_000))
    texts = [other, long, long[:-6_000] + more]
    assert (
        duplicates.find(texts)[0].pairs.tolist() == list(map(list, brute_force(texts))) == [[1, 2]]
    )


def test_a_crowd_is_not_measured_pair_by_pair_and_said(store):
    texts = sentences(9, 20)
    crowd = [
        f"the door number {i} of the long corridor was opened at night by nobody"
        for i in range(250)
    ]
    found, crowded = duplicates.find(texts + crowd)
    assert crowded == 250 - duplicates.PARTNERS
    assert len(found.pairs) < 250 * duplicates.PARTNERS
    assert set(found.pairs.ravel().tolist()) == set(range(20, 270)), "each of them is found"
    got = store(rows_of(texts + crowd), near_duplicate="drop", label_conflict="keep")
    assert got.report["found"]["near_duplicate"]["crowded"] == crowded


@pytest.mark.parametrize(
    ("raw", "form", "kept"),
    [
        ("e\u0301a", "NFC", "\u00e9a"),
        ("\ufb01x\u00b2", "NFC", "\ufb01x\u00b2"),
        ("\ufb01x\u00b2", "NFKC", "fix2"),
        ("e\u0301a", "", "e\u0301a"),
        ("a\x00b\x07\x7f\x85c", "NFC", "abc"),
        ("a\tb\nc", "NFC", "a\tb\nc"),
        ("a\r\nb\rc\r\n", "NFC", "a\nb\nc\n"),
        ("\u200b\u00ad", "NFC", "\u200b\u00ad"),
    ],
)
def test_what_is_mended(raw, form, kept):
    assert mend(raw, form).text == kept


def test_every_control_character_but_two_goes():
    everything = "".join(map(chr, range(0x300)))
    kept = set(mend(everything, "").text)
    assert {c for c in everything if c not in kept} == {
        c for c in everything if unicodedata.category(c) == "Cc" and c not in "\t\n"
    }


def test_mended_texts_are_counted_with_examples(store):
    texts = sentences(1, 20)
    texts[3] += " cafe\u0301"
    texts[4] += "\x07\x07\x0c"
    got = store(rows_of(texts))
    assert got.texts[got.keys.tolist().index("train/b/0003.txt")].endswith("caf\u00e9")
    found = got.report["found"]
    assert found["normalised"]["total"] == found["control"]["total"] == 1
    (line,) = found["control"]["listed"]
    assert line["key"] == "train/a/0004.txt" and line["detail"] == "U+0007 (2), U+000C taken out"
    assert found["normalised"]["listed"][0]["key"] == "train/b/0003.txt"


def test_texts_equal_once_normalised_are_duplicates(store):
    texts = sentences(2, 20)
    texts[2], texts[4] = "the cafe\u0301 is here", "the caf\u00e9\x07 is here"
    got = store(rows_of(texts), duplicate="drop")
    assert 2 in left(got) and 4 not in left(got)
    apart = store(rows_of(texts), normalise="", duplicate="drop")
    assert {2, 4} <= set(left(apart))


def test_empty_texts(store):
    texts = sentences(3, 20)
    texts[1], texts[2] = "", " \n\x00\t "
    got = store(rows_of(texts))
    assert {1, 2}.isdisjoint(left(got)) and got.report["found"]["blank"]["dropped"] == 2
    assert {1, 2} <= set(left(store(rows_of(texts), blank="keep")))
    with pytest.raises(UserError) as caught:
        store(rows_of(texts), blank="error")
    first, second = str(caught.value).splitlines()
    assert "train/a/0002.txt" in first and "is empty" in first and "data.clean.blank=drop" in first
    assert "train/b/0001.txt" in second


def test_conversations_without_an_answer_are_empty(data_config, tmp_path):
    def turns(*contents):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]

    said = [turns(one, two) for one, two in zip(sentences(5, 20), sentences(6, 20), strict=True)]
    said[3] = turns("how are you?", " \n", "well?", "\x00")
    said[4] = turns("how are you?", "", "well?", "fine")
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    data = data_config("table", path=str(path))
    got = prepare(data, labelled=False)
    assert got.report["found"]["blank"]["dropped"] == 1
    there = {got.keys[i] for indices in got.splits.values() for i in indices}
    assert len(there) == 19 and "chat/0000004" not in there
    data.clean.blank = "error"
    with pytest.raises(UserError, match=r"chat/0000004 \(train\) has no answer but empty ones"):
        prepare(data, labelled=False)


def test_long_texts_by_their_characters(store):
    texts = [text[:60].ljust(60, ".") for text in sentences(4, 20)]
    texts[5] = "ä" * 61
    assert 5 in left(store(rows_of(texts), longest=60))
    got = store(rows_of(texts), longest=60, long="drop")
    assert 5 not in left(got) and got.report["found"]["long"]["total"] == 1
    assert 5 in left(store(rows_of(texts), longest=61, long="drop"))
    with pytest.raises(
        UserError, match="0005.txt .* has more characters than config.data.text.longest"
    ):
        store(rows_of(texts), longest=60, long="error")


def test_copies_across_splits_leave_train(store):
    texts = sentences(5, 20)
    texts[1] = texts[15]
    got = store(rows_of(texts))
    assert 1 not in left(got) and 15 in left(got)
    (line,) = got.report["found"]["cross_split"]["listed"]
    assert line["key"] == "train/b/0001.txt" and line["partner_key"] == "test/b/0015.txt"


def test_near_copies_by_their_policies(store):
    texts = sentences(6, 20)
    texts[1], texts[2] = texts[15].upper(), texts[4] + "."
    kept = store(rows_of(texts))
    assert left(kept) == list(range(20))
    found = kept.report["found"]
    assert found["near_duplicate"]["total"] == found["near_cross_split"]["total"] == 1
    got = store(rows_of(texts), near_duplicate="drop")
    assert left(got) == sorted(set(range(20)) - {1, 4})
    with pytest.raises(UserError, match="0001.txt .*is nearly the same as test/b/0015.txt"):
        store(rows_of(texts), near_duplicate="error")


def test_texts_with_two_labels(store):
    texts = sentences(7, 20)
    texts[2] = texts[3] = texts[5]  # a, b, b
    kept = store(rows_of(texts))
    assert {2, 3, 5} <= set(left(kept)) and kept.report["found"]["label_conflict"]["total"] > 0
    got = store(rows_of(texts), label_conflict="drop", duplicate="drop")
    assert {2, 3, 5}.isdisjoint(left(got)), (
        "all of them, and not the last one as a duplicate of none"
    )
    assert got.report["found"]["label_conflict"]["dropped"] == 3
    with pytest.raises(UserError) as caught:
        store(rows_of(texts), label_conflict="error")
    assert "is the same text, but has another label than" in str(caught.value)
    assert "data.clean.label_conflict=drop" in str(caught.value)
    plain = store(rows_of(texts), labelled=False, label_conflict="error")
    assert plain.report["found"]["label_conflict"]["total"] == 0


def test_pictures_with_two_labels_can_be_left_out_too(data_config, tmp_path):
    from PIL import Image

    from research.data import store

    for i in range(12):
        place = tmp_path / "p" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0 if i in (2, 3) else i + 9).integers(
            0, 256, (8, 8), np.uint8
        )
        Image.fromarray(pixels).save(place / f"{i}.png")
    data = data_config("folder", path=str(tmp_path / "p"), validation_fraction=0.0)
    assert store.prepare(data).report["found"]["label_conflict"]["dropped"] == 0
    data.clean.label_conflict = "drop"
    got = store.prepare(data)
    assert got.report["found"]["label_conflict"]["dropped"] == 2
    used = {str(got.keys[i]) for indices in got.splits.values() for i in indices}
    assert len(used) == 10 and used.isdisjoint({"a/2.png", "b/3.png"})
    data.clean.label_conflict = "error"
    with pytest.raises(UserError, match="has the same pixels, but another label than"):
        store.prepare(data)


def test_bytes_that_are_not_utf8(store):
    texts = sentences(8, 20)
    texts[3] = texts[3].encode()[:10] + b"\xe9\xff" + texts[3].encode()[10:]
    with pytest.raises(UserError) as caught:
        store(rows_of(texts))
    (line,) = str(caught.value).splitlines()
    assert "train/b/0003.txt" in line and "byte 0xE9 at position 10" in line
    assert "data.clean.unreadable=drop" in line
    got = store(rows_of(texts), unreadable="drop")
    assert 3 not in left(got) and got.report["found"]["unreadable"]["total"] == 1


def test_the_defaults_are_policies_that_exist():
    assert {"label_conflict", "long"} <= set(defaults().data.clean)
