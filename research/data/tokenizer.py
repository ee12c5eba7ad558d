"""Texts to token ids and back: trained here, or any tokenizer.json of Hugging Face's library `tokenizers`.

tokenizer = train("bpe", texts, size=4096, lowercase=False)      # or load("folder/")
[ids] = tokenizer.encode(["def main():"], special=False)         # int32 [n]
tokenizer.decode(ids) == "def main():"
ids, weights = tokenizer.chat([{"role": "user", "content": "1 + 1?"}], answer=True)
for name, content in tokenizer.to_files().items(): ...           # transformers.AutoTokenizer loads these
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data import cache
from research.data.tokenizing import chat, folders, training
from research.errors import UserError

Ids = np.ndarray  # int32 [n]


class Tokenizer:
    """A tokenizer and its files, which never change. It can be pickled, and threads may share one.

    Attributes:
      size: token ids are 0 .. size - 1.
      pad, unk, bos, eos, cls, sep, mask: ids of the special tokens, None where it has none.
      chat_template: a Jinja template, '' where it has none.
      sha256: of its files.
    """

    def __init__(self, files: Mapping[str, str], where: str = "tokenizer.json"):
        self._files = dict(files)
        self._where = where
        self._config = folders.settings(self._files)
        vocab = self._marking.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values(), default=-1) + 1
        self.chat_template: str = self._config["chat_template"]
        self.pad, self.unk, self.bos, self.eos, self.cls, self.sep, self.mask = (
            vocab.get(folders.content(self._config.get(f"{role}_token"))) for role in folders.ROLES
        )
        digest = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            digest.update(f"{name}\0{len(content)}\0{content}\0".encode())
        self.sha256 = digest.hexdigest()

    def __reduce__(self):
        return Tokenizer, (self._files, self._where)

    def encode(self, texts: Sequence[str], *, special: bool, markup: bool = False) -> list[Ids]:
        """Returns the token ids of each text, int32 [n], neither cut nor padded.

        Args:
          texts: the texts.
          special: with the tokens that the tokenizer puts around a text, such as [CLS] and [SEP].
          markup: takes '[MASK]' and its like within a text for the special token of that name, as transformers does;
            else they are text like any other, so that no text can pass for what it is not.
        """
        made = self._rust(markup).encode_batch_fast(list(texts), add_special_tokens=special)
        return [np.array(encoding.ids, np.int32) for encoding in made]

    def encode_bytes(self, texts: Sequence[str]) -> list[tuple[Ids, np.ndarray]]:
        """Returns for each text (ids int32 [n], bytes int32 [n]): the UTF-8 bytes for which each token stands.

        A text's bytes sum to all it has (if it has tokens): what no token holds, such as a space, counts to the next
        one, or to the last; a character of several tokens counts to the first of them.
        """
        made = self._rust(False).encode_batch(list(texts), add_special_tokens=False)
        return [
            (
                np.array(encoding.ids, np.int32),
                piece_bytes(text, np.array(encoding.offsets, np.int32).reshape(-1, 2)),
            )
            for text, encoding in zip(texts, made, strict=True)
        ]

    def decode(self, ids: Sequence[int] | Ids, *, special: bool = False) -> str:
        """Returns the text of token ids; `special` shows special tokens too."""
        whole = np.asarray(ids, np.int64).ravel().tolist()
        return self._marking.decode(whole, skip_special_tokens=not special)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, answer: bool
    ) -> tuple[Ids, np.ndarray]:
        """Returns (ids int32 [n], weights float32 [n]) of a conversation: 1 where the assistant speaks, else 0.

        The tokens by which its turns end count as its. Text and ids are those of transformers' `apply_chat_template`.
        Where the tokenizer brings no template, `chat.DEFAULT` is used.

        Args:
          messages: each {"role": "system", "user" or "assistant", "content": text}.
          answer: adds what opens the assistant's next turn.

        Raises:
          UserError: the template refuses the conversation, or hides which part is the assistant's.
        """
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise UserError(
                    f"message {i + 1} of a conversation: expected role and content, found {message!r}"
                )
        text, spans = chat.spans(
            self.chat_template or chat.DEFAULT,
            messages,
            answer=answer,
            special=self._named,
            ends=self._special_tokens,
        )
        made = self._marking.encode(text, add_special_tokens=False)
        weights = np.zeros(len(made.ids), np.float32)
        offsets = np.array(made.offsets, np.int64).reshape(-1, 2)
        for start, end in spans:
            weights[(offsets[:, 1] > start) & (offsets[:, 0] < end)] = 1
        return np.array(made.ids, np.int32), weights

    def special_ids(self) -> tuple[int, ...]:
        """Returns the ids of all special tokens, ascending."""
        added = self._marking.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in added.items() if token.special))

    def opening(self) -> "Tokenizer":
        """Returns this tokenizer with texts opened but not closed, as a text to be gone on with is.

        Of those trained here, which close texts as well; it changes what `encode(special=True)` and an export do.
        """
        main = json.loads(self._files[folders.MAIN])
        template = (main.get("post_processor") or {}).get("single", [])
        if len(template) < 3 or "SpecialToken" not in template[-1]:
            return self
        main["post_processor"]["single"] = template[:-1]
        main["post_processor"]["pair"] = main["post_processor"]["pair"][:-1]
        return Tokenizer(
            {**self._files, folders.MAIN: json.dumps(main, indent=2, ensure_ascii=False)},
            self._where,
        )

    def with_template(self) -> "Tokenizer":
        """Returns this tokenizer with a chat template: its own, else `chat.DEFAULT`, written into its files."""
        if self.chat_template:
            return self
        config = json.loads(self._files[folders.CONFIG]) | {"chat_template": chat.DEFAULT}
        return Tokenizer(
            {**self._files, folders.CONFIG: json.dumps(config, indent=2) + "\n"}, self._where
        )

    def with_padding(self) -> "Tokenizer":
        """Returns this tokenizer with a token to fill rows with: its own, else one that no text to classify ends in.

        Decoders of transformers classify by the last token that is not the padding. So eos, if the tokenizer does not
        put it around a text itself, or else its first special token of which that is true; none if there is none.
        """
        if self.pad is not None:
            return self
        (around,) = self.encode([""], special=True)
        used = {self.unk, *around.tolist()}
        there = [i for i in (self.eos, *self.special_ids()) if i is not None and i not in used]
        if not there:
            return self
        added = {"pad_token": self._marking.id_to_token(there[0])}
        files = {
            name: json.dumps(json.loads(self._files[name]) | added, indent=2, ensure_ascii=False)
            for name in (folders.CONFIG, folders.SPECIAL)
        }
        return Tokenizer({**self._files, **{k: f"{v}\n" for k, v in files.items()}}, self._where)

    def to_files(self) -> dict[str, str]:
        """Returns its files by name, as loaded: tokenizer.json, tokenizer_config.json, special_tokens_map.json.

        Those that were not there are made. Others that belong to it (chat_template.jinja) are among them.
        """
        return dict(self._files)

    def _rust(self, markup: bool):
        return self._marking if markup else self._plain

    # Two of them, as what they do with special tokens in a text is a switch of the object, which threads share.
    @functools.cached_property
    def _marking(self):
        return self._built()

    @functools.cached_property
    def _plain(self):
        rust = self._built()
        rust.encode_special_tokens = True
        return rust

    def _built(self):
        from tokenizers import AddedToken, Tokenizer

        try:
            rust = Tokenizer.from_str(self._files[folders.MAIN])
        except Exception as error:  # the library raises no narrower one
            raise UserError(
                f"{self._where}: not a tokenizer.json that tokenizers can read: {error}"
            ) from error
        rust.no_truncation()
        rust.no_padding()
        there = {token.content for token in rust.get_added_tokens_decoder().values()}
        for token, flags in folders.declared(self._files, self._config):
            if token not in there:
                rust.add_tokens([AddedToken(token, **flags)])
        return rust

    @functools.cached_property
    def _named(self) -> dict[str, str]:
        """The special tokens by the names that templates know them by: bos_token and so on."""
        named = {
            k: folders.content(v) for k, v in self._config.items() if k.endswith("_token") and v
        }
        extra = self._config.get("extra_special_tokens")
        if isinstance(extra, dict):
            named |= {k: folders.content(v) for k, v in extra.items()}
        return {k: v for k, v in named.items() if v}

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        added = self._marking.get_added_tokens_decoder().values()
        return tuple(sorted((t.content for t in added if t.special), key=lambda t: (-len(t), t)))


def train(name: str, texts: Iterable[str], *, size: int, lowercase: bool) -> Tokenizer:
    """Returns a tokenizer made from texts, the same bytes for the same texts; see `tokenizing.training` for the names.

    Raises:
      UserError: `size` is too small for what the texts hold, or there are no texts.
    """
    kept = (
        list(texts) if isinstance(texts, Iterator) else texts
    )  # some are trained in several rounds
    return Tokenizer(training.trained(name, lambda: iter(kept), size=size, lowercase=lowercase))


def load(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json, or of the folder that holds one, with what lies beside it.

    Raises:
      UserError: there is none, or it can't be read.
    """
    return Tokenizer(folders.read(Path(path)), str(path))


def obtain(
    section: Any,
    *,
    folder_of_source: Path | None,
    texts: Callable[[], Iterator[str]],
    folder: Path,
    form: str = "",
) -> Tokenizer:
    """Returns the tokenizer that a config asks for.

    Args:
      section: config.tokenizer (name, size, path, lowercase).
      folder_of_source: the folder of config.pretrained.source, for name='pretrained'.
      texts: -> what to train it on; it is only asked where nothing is kept in `folder`.
      folder: of these very texts: trained tokenizers are kept there.
      form: names the form in which `texts` gives them, where there are several.

    Raises:
      UserError: it can't be had.
    """
    if section.name == "file":
        if not section.path:
            raise UserError(
                "config.tokenizer.name=file: set config.tokenizer.path to a tokenizer.json or the folder of one"
            )
        return load(section.path)
    if section.name == "pretrained":
        if folder_of_source is None:
            raise UserError(
                "config.tokenizer.name=pretrained: config.pretrained.source names no folder with a tokenizer.json; "
                "set it to hf:DIR, or train a tokenizer with config.tokenizer.name=bpe"
            )
        return load(folder_of_source)

    options = dict(size=section.size, lowercase=section.lowercase)
    if section.name == "byte":
        return train("byte", (), **options)

    def build(empty: Path) -> None:
        for name, content in training.trained(section.name, texts, **options).items():
            (empty / name).write_bytes(content.encode())

    from importlib import metadata

    made_by = "-".join(filter(None, (training.VERSION, metadata.version("tokenizers"), form)))
    size = 0 if section.name == "char" else section.size
    kept = f"tokenizer-{section.name}-{size}{'-lower' if section.lowercase else ''}-{made_by}"
    return load(cache.built(folder / kept, build))


def piece_bytes(text: str, offsets: np.ndarray) -> np.ndarray:
    """Returns the UTF-8 bytes of `text` for which each token stands, int32 [n]; see `Tokenizer.encode_bytes`."""
    if not len(offsets):
        return np.zeros(0, np.int32)
    lengths = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (lengths > 0x7F) + (lengths > 0x7FF).astype(int) + (lengths > 0xFFFF)
    upto = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.maximum.accumulate(offsets[:, 1])
    ends[-1] = len(text)
    return np.diff(upto[ends], prepend=0).astype(np.int32)
