"""Texts and conversations that a user wants gone on with: read strictly, and mended as what a model learns from."""

import json

import pytest

from research.config import defaults
from research.data.text import store
from research.errors import UserError
from research.tasks.shared.prompts import read_prompts, read_texts

# A decomposed letter, a control character, a line of Windows' and a separator at which str.splitlines cuts.
RAW = "cafe\u0301\x07 a\r\nb\u2028c "
MENDED = "caf\u00e9 a\nb\u2028c "  # what the store makes of it, spaces at the end included


def test_texts_are_mended_as_the_store_mends_them(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"text": f"{RAW}{i}", "label": "ab"[i % 2]} for i in range(20)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    data = defaults().data
    data.update(dict(name="table", path=str(path), cache_dir=str(tmp_path / "cache")))
    kept = store.prepare(data, labelled=True)
    names, texts = read_texts([str(path)], None, "NFC")
    assert names == [f"{path}:{i + 1}" for i in range(20)]
    assert texts == list(kept.texts) == [f"{MENDED}{i}" for i in range(20)]
    assert read_texts([], RAW, "NFC") == (["prompt"], [MENDED])
    assert read_texts([], "\ufb01", "NFKC")[1] == ["fi"]
    assert read_texts([], "e\u0301", "")[1] == ["e\u0301"]


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_prompt_is_not_the_same_as_none(chat):
    [prompt] = read_prompts([], "", "NFC", chat=chat)
    assert prompt.name == "prompt"
    assert prompt.given == ([{"role": "user", "content": ""}] if chat else "")
    with pytest.raises(UserError, match="give --prompt='a text', or --inputs="):
        read_prompts([], None, "NFC", chat=chat)


def test_the_end_of_a_prompt_stays(tmp_path):
    [prompt] = read_prompts([], "a  \n\n", "NFC", chat=False)
    assert prompt.given == prompt.shown == "a  \n\n"


def test_lines_of_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "one\u2028still \r\n\r\n two\n".encode())
    names, texts = read_texts([str(path)], None, "NFC")
    assert names == [f"{path}:1", f"{path}:3"] and texts == ["one\u2028still ", " two"]


def test_conversations_are_mended_too(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": RAW}, {"role": "assistant", "content": "yes"}]
    content = json.dumps({"messages": turns}) + "\n" + json.dumps({"prompt": RAW}) + "\n"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    for one in read_prompts([str(path)], RAW, "NFC", chat=True):
        assert one.given == [{"role": "user", "content": MENDED}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"{}\n", ["line 1: must be JSON such as"]),
        ("a.jsonl", b'{"text": null}\n\n{"text": 7}\n', ["line 1: must be", "line 3: must be"]),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', ["line 2: not JSON"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ["line 2: not UTF-8: byte 0xFF"]),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', ["line 1: holds half a character, U+D800"]),
        ("a.jsonl", b"", ["the file is empty"]),
        ("a.txt", b"ab\xff", ["not UTF-8: byte 0xFF at position 2"]),
        ("a.pdf", b"", ["ends in none of .txt, .jsonl"]),
    ],
)
def test_inputs_that_cannot_be_read_are_told(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_texts([str(path)], None, "NFC")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(words)
    for line, said in zip(lines, words, strict=True):
        assert line.startswith(f"--inputs={path}") and said in line


def test_half_a_character_of_the_command_line_is_told():
    with pytest.raises(UserError, match="--prompt: holds half a character"):
        read_prompts([], "a\udc80", "NFC", chat=True)
