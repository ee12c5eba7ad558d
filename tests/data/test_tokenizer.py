"""Tokenizers: every text comes back, the same texts give the same bytes, foreign files load, chats are marked right."""

import copy
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from research.data import tokenizer as tokenizers
from research.data.tokenizer import Tokenizer, load, obtain, piece_bytes, problems, train
from research.data.tokenizing import chat, training, unigram
from research.errors import UserError

ODD = (
    "",
    " ",
    "def f(x):\n\t  return  x  # é\r\n\n\n",
    "\x00\x7f\u200b\u2028 ﷺ \uff46\uff55 Ǆ ß İ",
    "😀👩‍👩‍👧🇩🇪 漢字 हिन्दी עברית e\u0301",
    "literal <|endoftext|>, <|pad|>, [MASK], [CLS] and <s>",
    "#" * 300 + "\t" * 50,
)
CORPUS = [
    *ODD,
    *(
        f"the {a} {b}ed the {a}s: {a}{b} = {i}\n"
        for i in range(40)
        for a in ("cat", "dog")
        for b in ("chas", "bit")
    ),
]


@pytest.fixture(scope="module")
def made():
    sizes = {"bpe": 300, "wordpiece": 400, "unigram": 300}
    return {
        name: train(name, CORPUS, size=sizes.get(name, 1), lowercase=False)
        for name in training.NAMES
    }


@pytest.mark.parametrize("name", ["byte", "char", "bpe"])
def test_every_text_comes_back(made, name):
    rng = np.random.default_rng(0)
    texts = list(ODD)
    if name != "char":  # which knows the characters it was shown
        points = rng.integers(1, 0x110000, (50, 20))
        points[(points >= 0xD800) & (points < 0xE000)] = 0x41  # halves of a pair are no characters
        texts += ["".join(map(chr, row)) for row in points]
    for special in (False, True):
        for text, ids in zip(texts, made[name].encode(texts, special=special), strict=True):
            assert ids.dtype == np.int32
            assert made[name].decode(ids) == text


def test_bytes_are_their_own_ids(made):
    text = "né 😀\n"
    [ids] = made["byte"].encode([text], special=False)
    assert ids.tolist() == list(text.encode())
    assert made["byte"].size == 259


def test_characters_and_unknown_ones(made):
    [ids] = made["char"].encode(["dog Ж"], special=False)
    assert [made["char"].decode([i]) for i in ids[:4]] == list("dog ")
    assert ids[4] == made["char"].unk
    assert made["char"].decode(ids, special=True) == "dog <|unk|>"


def test_words_and_pieces_come_back(made):
    for name in ("wordpiece", "unigram"):
        [ids] = made[name].encode(["the cat chased the dogs"], special=True)
        assert made[name].decode(ids) == "the cat chased the dogs"
        assert len(ids) < 23
    text = "the cat\n\tbited  the dog\n"  # a unigram keeps the layout
    assert made["unigram"].decode(made["unigram"].encode([text], special=False)[0]) == text


@pytest.mark.parametrize("name", training.NAMES)
def test_special_tokens(made, name):
    t = made[name]
    ids = [t.pad, t.eos, t.mask]
    assert None not in ids and len(set(ids)) == 3 and max(ids) < t.size
    [bare], [wrapped] = (t.encode(["the cat"], special=s) for s in (False, True))
    assert wrapped.tolist() == [t.bos, *bare, t.eos]
    if name == "wordpiece":
        assert (t.bos, t.eos) == (t.cls, t.sep)
    [marked] = t.encode([t.decode([t.mask], special=True)], special=False, markup=True)
    assert marked.tolist() == [t.mask]
    for text in ODD:  # a text can't say a special token
        assert not {t.pad, t.eos, t.mask} & set(t.encode([text], special=False)[0].tolist())


def test_sizes_and_lower_case(made):
    assert made["bpe"].size == 300
    assert made["unigram"].size <= 300 and made["wordpiece"].size <= 400
    for name in training.NAMES:
        low = train(name, ["Ab aB AB ab"] * 9, size=300, lowercase=True)
        first, second = low.encode(["AB ab", "ab AB"], special=False)
        assert first.tolist() == second.tolist()


_HASH = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
from test_tokenizer import CORPUS
from research.data.tokenizer import train
for name in ("char", "bpe", "wordpiece", "unigram"):
    print([train(name, CORPUS, size=size, lowercase=False).sha256 for size in (330, 400)])
"""


def test_the_same_texts_give_the_same_bytes(root):
    script = _HASH.format(root=str(root), here=str(root / "tests/data"))
    runs = [("1", "0"), ("2", "1"), ("2", "2"), ("1", "3")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads, seed in runs
    ]
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1, "\n".join(said)
    assert said.pop().count("'") == 16


def test_unigram_is_as_good_as_the_librarys():
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, trainers

    rng = np.random.default_rng(0)
    stems = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 6))) for _ in range(80)]
    ranks = rng.zipf(1.3, 6000) % 80
    words = [stems[r] + ["", "ed", "ing", "s"][rng.integers(4)] for r in ranks]
    text = " ".join(words)
    theirs = Rust(models.Unigram())
    theirs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<u>"], unk_token="<u>", show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    counts = {word: words.count(word) for word in set(words)}
    pieces = unigram.pieces(counts, size=99)
    assert len(pieces) <= 99 and set(text) - {" "} <= {piece for piece, _ in pieces}
    ours = Rust(models.Unigram([("<u>", -1000.0), *pieces], 0))
    ours.pre_tokenizer = pre_tokenizers.Whitespace()
    # Same algorithm, other ties and seeds: within 5% of the length, and most often shorter.
    assert len(ours.encode(text).ids) <= 1.05 * len(theirs.encode(text).ids)


def test_expected_counts_against_all_segmentations():
    words, names = ["abab", "ba", "b"], ["a", "b", "ab", "ba", "aba"]
    scores = np.log([0.3, 0.25, 0.2, 0.15, 0.1])
    weights = np.array([3.0, 2.0, 5.0])
    expected, best = np.zeros(5), []

    def ways(word):
        if not word:
            yield []
        for i, name in enumerate(names):
            if word.startswith(name):
                yield from ([i, *rest] for rest in ways(word[len(name) :]))

    for word, weight in zip(words, weights, strict=True):
        found = list(ways(word))
        likely = np.array([np.exp(scores[way].sum()) for way in found])
        for way, p in zip(found, likely / likely.sum(), strict=True):
            np.add.at(expected, way, weight * p)
        best.append(np.log(likely.max()))
    lattice = unigram._lattice(words, {name: i for i, name in enumerate(names)})
    np.testing.assert_allclose(unigram._expected(lattice, scores, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(unigram._best(lattice, scores)[2], best, rtol=1e-12)


def test_bytes_of_tokens(made):
    for name, t in made.items():
        for text in CORPUS:
            [(ids, count)] = t.encode_bytes([text])
            assert len(ids) == len(count) and (count >= 0).all()
            if len(ids):
                assert count.sum() == len(text.encode()), (name, text)
    # written out: 'é' of two tokens, a space that no token holds, a tail that none holds
    offsets = np.array([[0, 1], [1, 2], [1, 2], [3, 4]])
    assert piece_bytes("aé b  ", offsets).tolist() == [1, 2, 0, 4]


def test_files_come_back_unchanged(made, tmp_path):
    for name, t in made.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in t.to_files().items():
            (folder / file).write_bytes(content.encode())
        again = load(folder)
        assert again.to_files() == t.to_files() and again.sha256 == t.sha256
        assert load(folder / "tokenizer.json").sha256 == t.sha256
        copied = copy.deepcopy(again)
        assert (
            copied.encode(["the cat"], special=True)[0].tolist()
            == t.encode(["the cat"], special=True)[0].tolist()
        )
    assert len({t.sha256 for t in made.values()}) == 5


def _folder(tmp_path, made, **files):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(made.to_files()["tokenizer.json"])
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_stored_cuts_and_padding_are_off_but_exported(made, tmp_path):
    stored = json.loads(made["bpe"].to_files()["tokenizer.json"])
    stored["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    stored["padding"] = {
        "strategy": {"Fixed": 4},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    t = load(tmp_path)
    texts = ["a", "the cat chased the dogs and more"]
    for got, wanted in zip(
        t.encode(texts, special=True), made["bpe"].encode(texts, special=True), strict=True
    ):
        assert got.tolist() == wanted.tolist()
    assert json.loads(t.to_files()["tokenizer.json"]) == stored


def test_settings_beside_it(made, tmp_path):
    folder = _folder(
        tmp_path,
        made["bpe"],
        tokenizer_config__json={
            "bos_token": {"content": "<|endoftext|>", "special": True, "__type": "AddedToken"},
            "eos_token": "<|end|>",  # not in tokenizer.json: one more id
            "pad_token": None,
            "chat_template": [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": "{{ bos_token }}yes"},
            ],
        },
        special_tokens_map__json={"mask_token": "<|mask|>"},
    )
    t = load(folder)
    assert (t.bos, t.eos, t.pad, t.mask) == (1, made["bpe"].size, None, 2)
    assert t.size == made["bpe"].size + 1
    assert t.chat_template == "{{ bos_token }}yes"
    assert t.encode(["<|end|>"], special=False, markup=True)[0].tolist() == [t.eos]
    (folder / "chat_template.jinja").write_text("of the file")
    assert load(folder).chat_template == "of the file"
    assert load(folder).to_files()["chat_template.jinja"] == "of the file"


def test_a_tokenizer_json_alone(made, tmp_path):
    t = load(_folder(tmp_path, made["char"]))
    same = ("pad", "unk", "bos", "eos", "mask")
    assert [getattr(t, role) for role in same] == [getattr(made["char"], role) for role in same]
    assert set(t.to_files()) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }


def test_older_vocabularies(made, tmp_path):
    words = made["wordpiece"]._marking
    vocab = sorted(words.get_vocab(), key=words.token_to_id)
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"do_lower_case": false, "mask_token": "[MASK]"}'
    )
    for text in CORPUS[:20]:
        assert (
            load(tmp_path).encode([text], special=True)[0].tolist()
            == made["wordpiece"].encode([text], special=True)[0].tolist()
        )
    (tmp_path / "vocab.txt").unlink()
    model = json.loads(made["bpe"].to_files()["tokenizer.json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(UserError, match="no tokenizer.json, only vocab.json; save it again"):
        load(tmp_path)
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n"
    )
    for text in ODD:
        [ids] = load(tmp_path).encode([text], special=False)
        assert ids.tolist() == made["bpe"].encode([text], special=False)[0].tolist()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"not json", "tokenizer.json: not JSON"),
        (b"[1]", "an object was expected, found list"),
        (b'{"a": 1}', "it has no entry 'model'"),
        (b'{"model": {"type": "New"}}', "not a tokenizer.json that tokenizers can read"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, wanted):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=wanted) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer.json, nor a vocab.txt"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["char", "bpe", "wordpiece", "unigram"])
def test_nothing_to_train_on(name):
    for texts in ([], ["", ""]):
        with pytest.raises(
            UserError, match=f"tokenizer.name={name}: there is no text in the training split"
        ):
            train(name, texts, size=1000, lowercase=False)


@pytest.mark.parametrize(("name", "least"), [("bpe", 259), ("wordpiece", 11), ("unigram", 9)])
def test_too_small(name, least):
    texts = ["abc cab"] * 5  # wordpiece: 5 + a b c + ##a ##b ##c; unigram: 4 + a b c, space twice
    with pytest.raises(UserError, match=r"tokenizer.size=3: too small .* needs (\d+)") as caught:
        train(name, texts, size=3, lowercase=False)
    told = int(str(caught.value).split("set it to ")[1].split()[0])
    assert told <= least
    assert train(name, texts, size=told, lowercase=False).size <= told
    with pytest.raises(UserError, match="too small"):
        train(name, texts, size=told - 1, lowercase=False)


def test_obtain(made, tmp_path):
    def section(**changes):
        return SimpleNamespace(
            **{"name": "bpe", "size": 300, "path": "", "lowercase": False, **changes}
        )

    asked = []

    def texts():
        asked.append(1)
        return iter(CORPUS)

    def got(**changes):
        return obtain(
            section(**changes), folder_of_source=None, texts=texts, folder=tmp_path / "kept"
        )

    assert got().sha256 == made["bpe"].sha256
    assert len(asked) == 1
    assert got().sha256 == made["bpe"].sha256 and len(asked) == 1  # kept
    assert got(size=310).size == 310 and len(asked) == 2
    assert got(lowercase=True).sha256 != made["bpe"].sha256 and len(asked) == 3
    assert got(name="byte").size == 259 and len(asked) == 3
    assert got(name="wordpiece", size=400).sha256 == made["wordpiece"].sha256

    with pytest.raises(UserError, match="set config.tokenizer.path"):
        got(name="file")
    with pytest.raises(
        UserError, match="config.pretrained.source names no folder with a tokenizer.json"
    ):
        got(name="pretrained")
    folder = _folder(tmp_path, made["char"])
    assert got(name="file", path=str(folder)).size == made["char"].size
    assert (
        obtain(
            section(name="pretrained"), folder_of_source=folder, texts=texts, folder=tmp_path
        ).size
        == made["char"].size
    )


def test_problems(made):
    assert problems(made["byte"], 259) == [] and problems(made["byte"], 300) == []
    [line] = problems(made["byte"], 258)
    assert "it has 259 tokens, the model rows for 258" in line


def test_a_fork_after_tokenizing_is_silent_and_goes_on(root):
    # the library sees to it unless TOKENIZERS_PARALLELISM=true is set: then the child waits forever
    script = (
        "import os, sys; from research.data.tokenizer import train; t = train('byte', (), size=1, lowercase=False)\n"
        "t.encode(['a b'] * 1000, special=True)\n"
        "if os.fork() == 0: t.encode(['a b'] * 1000, special=True); os._exit(0)\n"
        "print(os.wait()[1], 'TOKENIZERS_PARALLELISM' in os.environ)"
    )
    # Python itself warns of any fork with threads from 3.12 on: not what is looked at here
    env = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=root,
        timeout=20,
        env=env,
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.stderr) == ("0 False\n", "")


# Chats


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "user 2?"},
    {"role": "assistant", "content": "user 2"},
]


def _with(made, template, extra=()):
    files = made.to_files()
    config = json.loads(files["tokenizer_config.json"])
    config |= {"chat_template": template, "additional_special_tokens": list(extra)}
    return Tokenizer({**files, "tokenizer_config.json": json.dumps(config)})


def _said(t, messages, **options):
    """The conversation's text, with what has weight 1 in brackets."""
    ids, weights = t.chat(messages, **{"answer": False, **options})
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    text, inside = "", False
    for token, weight in zip(ids, weights, strict=True):
        text += "[" * int(weight and not inside) + "]" * int(inside and not weight)
        text, inside = text + t.decode([token], special=True), bool(weight)
    return text + "]" * inside


def test_the_default_template(made):
    t = made["byte"]
    assert t.chat_template == "" and t.with_template().chat_template == chat.DEFAULT
    end = "<|endoftext|>"
    assert _said(t, TALK) == (
        f"<|system|>\nbe brief{end}\n<|user|>\n1 + 1?{end}\n<|assistant|>\n[2{end}]\n"
        f"<|user|>\nuser 2?{end}\n<|assistant|>\n[user 2{end}]\n"
    )
    assert (
        _said(t, TALK[:2], answer=True)
        == f"<|system|>\nbe brief{end}\n<|user|>\n1 + 1?{end}\n<|assistant|>\n"
    )
    assert _said(t.with_template(), TALK) == _said(t, TALK)
    assert "chat_template" in t.with_template().to_files()["tokenizer_config.json"]


def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day(made):
    # As those of Llama 3 ask; where they can't, they write this date themselves.
    template = (
        "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% else %}"
        "{% set date = 'none' %}{% endif %}{{ date }}: {{ messages[0].content }}"
    )
    ids, _ = _with(made["byte"], template).chat([{"role": "user", "content": "hi"}], answer=True)
    assert made["byte"].decode(ids) == "26 Jul 2024: hi"


def test_the_turns_end_counts(made):
    t = _with(made["byte"], CHATML, ["<|im_start|>", "<|im_end|>"])
    assert _said(t, TALK[1:]) == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n[2<|im_end|>]\n"
        "<|im_start|>user\nuser 2?<|im_end|>\n<|im_start|>assistant\n[user 2<|im_end|>]\n"
    )
    # as a template says it itself
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}.{% endgeneration %};"
        "{% else %}U:{{ m.content }};{% endif %}{% endfor %}"
    )
    assert _said(_with(made["byte"], marked), TALK[1:]) == "U:1 + 1?;A:[2.];U:user 2?;A:[user 2.];"


def test_thoughts_that_only_the_last_turn_keeps(made):
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    t = _with(made["byte"], template, ["<|end|>"])
    assert _said(t, TALK[1:]) == (
        "<|user|>1 + 1?<|end|><|assistant|>[2<|end|>]<|user|>user 2?<|end|><|assistant|>[<think></think>user 2<|end|>]"
    )


def test_chats_that_a_template_refuses(made):
    def fails(template, messages, match):
        with pytest.raises(UserError, match=match) as caught:
            _with(made["byte"], template).chat(messages, answer=False)
        assert "\n" not in str(caught.value)

    fails(
        "{{ raise_exception('roles must alternate') }}",
        TALK,
        "refuses a conversation .*: roles must alternate",
    )
    fails("{% for", TALK, "chat template, line 1")
    fails("{{ messages[0].content.__class__.__mro__ }}", TALK, "refuses a conversation")
    fails("{{ messages.append(1) }}", TALK, "refuses a conversation")
    fails(CHATML, [{"role": "user"}], "message 1 of a conversation: expected role and content")
    fails(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        TALK,
        "can't tell which tokens",
    )
    fails(CHATML, [{"role": "user", "content": "\ufdd0"}], "U\\+FDD0")


def test_public_door():
    assert {"Tokenizer", "train", "load", "obtain", "problems"} <= set(vars(tokenizers))
