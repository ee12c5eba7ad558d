"""Folders of tokenizer files as Hugging Face lays them: read, checked, and made of a vocabulary alone."""

import json
from pathlib import Path
from typing import Any

from research.errors import UserError

Files = dict[str, str]

MAIN, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
_BESIDE = (CONFIG, SPECIAL, TEMPLATE, "added_tokens.json")

ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
# What a tokenizer.json that stands alone most likely means by the names of its tokens.
_LIKELY = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}


def read(path: Path) -> Files:
    """Returns the tokenizer's files by name, unchanged: of a folder, or of the one that a tokenizer.json lies in.

    A folder with only BERT's vocab.txt, or GPT-2's vocab.json and merges.txt, gets a tokenizer.json made of them.

    Raises:
      UserError: there is no tokenizer at `path`, or a file is not what its name says.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; a tokenizer.json or the folder of one is wanted"
        )
    folder = path if path.is_dir() else path.parent
    main = folder / MAIN if path.is_dir() else path
    files = {name: _text(folder / name) for name in _BESIDE if (folder / name).is_file()}
    for name in files:
        if name != TEMPLATE:
            _object(files[name], folder / name)
    if main.is_file():
        text = _text(main)
        if "model" not in _object(text, main):
            raise UserError(
                f"{main}: not a tokenizer.json of the library `tokenizers`: it has no entry 'model'"
            )
        files[MAIN] = text
    else:
        files[MAIN] = _made(folder, json.loads(files.get(CONFIG, "{}")))
    if CONFIG not in files:
        files[CONFIG] = json.dumps(_guessed(files), indent=2) + "\n"
    if SPECIAL not in files:
        config = json.loads(files[CONFIG])
        named = {f"{role}_token": content(config.get(f"{role}_token")) for role in ROLES}
        files[SPECIAL] = json.dumps({k: v for k, v in named.items() if v}, indent=2) + "\n"
    return files


def settings(files: Files) -> dict[str, Any]:
    """Returns tokenizer_config.json with what special_tokens_map.json adds to it, and the chat template as text."""
    config = json.loads(files[CONFIG])
    if "added_tokens_decoder" not in config:  # later transformers write all of it there
        config |= json.loads(files[SPECIAL])
    padding = json.loads(files[MAIN]).get("padding") or {}
    if "pad_token" in padding:
        config.setdefault("pad_token", padding["pad_token"])
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()), "")
    return config | {"chat_template": files.get(TEMPLATE, template)}


def declared(files: Files, config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the tokens that stand beside tokenizer.json, in the order in which they are added: content, flags."""
    found: dict[str, dict[str, Any]] = {}
    known = config.get("added_tokens_decoder", {})
    for index in sorted(known, key=int):
        _declare(found, known[index], {})
    extra = json.loads(files.get("added_tokens.json", "{}"))
    for token in sorted(extra, key=lambda token: extra[token]):
        found.setdefault(token, {"special": False})
    for role in ROLES:
        _declare(found, config.get(f"{role}_token"), {"special": True})
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key) or []
        for token in more.values() if isinstance(more, dict) else more:
            _declare(found, token, {"special": True})
    return list(found.items())


def content(token: str | dict | None) -> str:
    """Returns a token's text, which files hold as such or in an object with its flags; '' for none."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""


def _declare(found: dict[str, dict[str, Any]], token, flags: dict[str, Any]) -> None:
    if content(token):
        kept = ("single_word", "lstrip", "rstrip", "normalized", "special")
        own = {k: token[k] for k in kept if k in token} if isinstance(token, dict) else {}
        found.setdefault(content(token), own | flags)


def _guessed(files: Files) -> dict[str, Any]:
    """Returns a config for a tokenizer.json that came without one."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if SPECIAL in files:
        return config
    main = json.loads(files[MAIN])
    there = {token["content"] for token in main.get("added_tokens") or []}
    for role, names in _LIKELY.items():
        for name in names:
            if name in there:
                config.setdefault(f"{role}_token", name)
    return config


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; it is damaged or another kind of file"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _object(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}); it is damaged or another kind of file"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: an object was expected, found {type(value).__name__}")
    return value


def _made(folder: Path, config: dict[str, Any]) -> str:
    """Returns a tokenizer.json for a folder that holds a vocabulary in an older form."""
    if (folder / "vocab.txt").is_file():
        return _bert(_text(folder / "vocab.txt"), config)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = _object(_text(folder / "vocab.json"), folder / "vocab.json")
        return _gpt2(vocab, _text(folder / "merges.txt"), config, folder)
    older = [
        name
        for name in ("tokenizer.model", "spiece.model", "vocab.json")
        if (folder / name).is_file()
    ]
    having = (
        f"only {older[0]}; save it"
        if older
        else "nor a vocab.txt; if it is a tokenizer's at all, save it"
    )
    raise UserError(
        f"{folder}: no tokenizer.json, {having} again by transformers' "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _bert(text: str, config: dict[str, Any]) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab = {token: i for i, token in enumerate(text.rstrip("\n").split("\n"))}
    named = {role: content(config.get(f"{role}_token")) or f"[{role.upper()}]" for role in ROLES}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=named["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [named[role] for role in ("pad", "unk", "cls", "sep", "mask") if named[role] in vocab]
    tokenizer.add_special_tokens(special)
    cls, sep = named["cls"], named["sep"]
    if cls in vocab and sep in vocab:
        tokenizer.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    return tokenizer.to_str()


def _gpt2(vocab: dict[str, int], merges: str, config: dict[str, Any], folder: Path) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    pairs: list[Any] = [tuple(line.split(" ")) for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        wrong = next(i for i, pair in enumerate(pairs) if len(pair) != 2)
        raise UserError(
            f"{folder / 'merges.txt'}: merge {wrong + 1} is not two tokens: {lines[wrong]!r}"
        )
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # the library raises no narrower one
        raise UserError(
            f"{folder}: vocab.json and merges.txt don't fit together: {error}"
        ) from error
    spaced = config.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    cls, sep = (content(config.get(f"{role}_token")) for role in ("cls", "sep"))
    if cls in vocab and sep in vocab:  # RoBERTa
        tokenizer.post_processor = processors.RobertaProcessing(
            (sep, vocab[sep]), (cls, vocab[cls]), trim_offsets=True, add_prefix_space=spaced
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer.to_str()
