"""Tokenizers made from texts: byte, char, bpe, wordpiece, unigram, each one tokenizer.json.

    name       tokens                                       what comes back from them
    byte       the 256 bytes of UTF-8; id = byte            every text, exactly
    char       the characters of the texts                  every text of those characters, exactly
    bpe        byte-level BPE (GPT-2: Radford et al. 2019)  every text, exactly
    wordpiece  words and their parts (BERT)                 words; spaces and line ends are lost
    unigram    a unigram model's pieces (Kudo 2018)         all but leading spaces and characters never seen

Special tokens: wordpiece has BERT's [PAD] [UNK] [CLS] [SEP] [MASK], and stands as "[CLS] text [SEP]"; the others have
<|pad|>, <|endoftext|>, <|mask|> and where needed <|unk|>, and stand as "<|endoftext|> text <|endoftext|>".

The same texts give the same bytes, whatever the process or the number of threads.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from research.errors import UserError

NAMES = ("byte", "char", "bpe", "wordpiece", "unigram")
VERSION = "1"  # of what the same texts become

Texts = Callable[[], Iterator[str]]
Files = dict[str, str]

END, PAD, MASK, UNK = "<|endoftext|>", "<|pad|>", "<|mask|>", "<|unk|>"
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 1000  # characters that a wordpiece knows, the most frequent ones


def trained(name: str, texts: Texts, *, size: int, lowercase: bool) -> Files:
    """Returns the files of a tokenizer that is made from `texts()`, which may be asked for more than once.

    Args:
      name: one of NAMES.
      texts: -> the texts; a byte tokenizer asks for none.
      size: tokens of a bpe, wordpiece or unigram at most, special ones included.
      lowercase: makes every text lower case first.

    Raises:
      UserError: `size` is too small, or there are no texts.
    """
    make = {"byte": _byte, "char": _char, "bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram}
    if name not in make:
        raise UserError(
            f"config.tokenizer.name={name}: not one that can be trained: {', '.join(NAMES)}"
        )
    tokenizer = make[name](texts, size, lowercase)
    special: dict[str, Any]
    if name == "wordpiece":
        pad, unk, cls, sep, mask = _BERT
        special = {"bos_token": cls, "eos_token": sep, "unk_token": unk, "sep_token": sep}
        special |= {"pad_token": pad, "cls_token": cls, "mask_token": mask}
    else:
        special = {"bos_token": END, "eos_token": END, "pad_token": PAD, "mask_token": MASK}
        if name in ("char", "unigram"):
            special["unk_token"] = UNK
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 10**30,
        **special,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }


def _byte(texts: Texts, size: int, lowercase: bool):
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {letter: byte for byte, letter in enumerate(_byte_letters())}
    vocab |= {token: 256 + i for i, token in enumerate((PAD, END, MASK))}
    return _finished(
        models.BPE(vocab=vocab, merges=[]),
        lowercase,
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
        (PAD, END, MASK),
    )


def _char(texts: Texts, size: int, lowercase: bool):
    from tokenizers import decoders, models

    special = (PAD, END, MASK, UNK)
    characters = sorted(_characters(_lowered(texts, lowercase), "char"))
    vocab = {token: i for i, token in enumerate([*special, *characters])}
    model = models.BPE(vocab=vocab, merges=[], unk_token=UNK)
    return _finished(model, lowercase, None, decoders.Fuse(), special)


def _bpe(texts: Texts, size: int, lowercase: bool):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = (PAD, END, MASK)
    _enough("bpe", size, len(special) + 256, f"{len(special)} special tokens and the 256 bytes")
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw = Tokenizer(models.BPE())
    raw.normalizer, raw.pre_tokenizer = _normalizer(lowercase), splitter
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=_byte_letters(),
        show_progress=False,
    )
    raw.train_from_iterator(_some(texts, "bpe"), trainer)
    return _finished(raw.model, lowercase, splitter, decoders.ByteLevel(), special)


def _wordpiece(texts: Texts, size: int, lowercase: bool):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()

    def normal() -> Iterator[str]:
        return (normalizer.normalize_str(text) for text in _some(texts, "wordpiece"))

    often = _characters(normal, "wordpiece")
    letters = sorted((c for c in often if not c.isspace()), key=lambda c: (-often[c], c))
    letters = letters[:_ALPHABET]
    if not letters:
        raise UserError(_nothing("wordpiece"))

    def train(size: int, first: Sequence[str]) -> dict[str, int]:
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer, raw.pre_tokenizer = normalizer, splitter
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=list(first),
            initial_alphabet=letters,
            limit_alphabet=len(letters),
            show_progress=False,
        )
        raw.train_from_iterator(texts(), trainer)
        return raw.get_vocab()

    # The trainer numbers '##x' as it meets them, in the order of a randomly seeded hash map, and pairs of equal counts
    # are merged in the order of those numbers. A round without merges finds them; the next is told them in order.
    inner = sorted(token for token in train(0, _BERT) if token.startswith("##") and len(token) == 3)
    needed = f"{len(_BERT)} special tokens and the {len(letters)} characters of the texts, at a word's start and inside"
    _enough("wordpiece", size, len(_BERT) + len(letters) + len(inner), needed)
    model = models.WordPiece(vocab=train(size, (*_BERT, *inner)), unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    return _wrapped(tokenizer, _BERT, "[CLS]", "[SEP]")


def _unigram(texts: Texts, size: int, lowercase: bool):
    from tokenizers import Regex, decoders, models, pre_tokenizers

    from research.data.tokenizing import unigram

    special = (PAD, END, MASK, UNK)
    # Line ends and tabs stand alone; a word takes the space before it along.
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S ]+"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    counts: Counter[str] = Counter()
    for text in _lowered(lambda: _some(texts, "unigram"), lowercase)():
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    letters = len(set().union(*counts))
    needed = f"{len(special)} special tokens and the {letters} characters of the texts"
    _enough("unigram", size, len(special) + letters, needed)
    found = unigram.pieces(counts, size=size - len(special))
    # The model would find the other special tokens in a text, so they come after it; UNK must be of it, but unlikely.
    vocab = [(UNK, -1000.0), *found]
    return _finished(
        models.Unigram(vocab, 0),
        lowercase,
        splitter,
        decoders.Metaspace(prepend_scheme="first"),
        special,
    )


def _finished(model, lowercase: bool, splitter, decoder, special: Sequence[str]):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(lowercase)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoder
    return _wrapped(tokenizer, special, END, END)


def _wrapped(tokenizer, special: Sequence[str], first: str, last: str):
    """Returns the tokenizer with its special tokens, a text standing between `first` and `last`."""
    from tokenizers import processors

    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {first: 0, last: 0}],
    )
    return tokenizer


def _normalizer(lowercase: bool):
    from tokenizers import normalizers

    return normalizers.Lowercase() if lowercase else None


def _lowered(texts: Texts, lowercase: bool) -> Texts:
    normalizer = _normalizer(lowercase)
    if normalizer is None:
        return texts
    return lambda: (normalizer.normalize_str(text) for text in texts())


def _characters(texts: Texts, name: str) -> Counter[str]:
    """Returns how often each character occurs."""
    found: Counter[str] = Counter()
    for text in texts():
        found.update(text)
    if not found:
        raise UserError(_nothing(name))
    return found


def _some(texts: Iterable[str] | Texts, name: str) -> Iterator[str]:
    """Yields the texts that are not empty. Raises UserError if there is none."""
    empty = True
    for text in texts() if callable(texts) else texts:
        if text:
            empty = False
            yield text
    if empty:
        raise UserError(_nothing(name))


def _nothing(name: str) -> str:
    return (
        f"config.tokenizer.name={name}: there is no text in the training split to train it on; look at config.data, "
        "or load a tokenizer with config.tokenizer.name=file"
    )


def _enough(name: str, size: int, least: int, what: str) -> None:
    if size < least:
        raise UserError(
            f"config.tokenizer.size={size}: too small for a {name} tokenizer, which needs {least}: {what}; "
            f"set it to {least} or more"
        )


def _byte_letters() -> list[str]:
    """Returns the character by which byte-level tokens write each byte 0..255 (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [table[byte] for byte in range(256)]
