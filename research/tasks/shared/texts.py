"""What the tasks on text have in common: their data, their tokenizer and a model that fits both."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research.data.text import store
from research.data.tokenizer import Tokenizer, obtain
from research.errors import UserError, UserErrors
from research.tasks.shared import models
from research.tasks.shared.unread import demand_read

ENDINGS = (".txt", ".jsonl")  # of files that hold texts to predict


def prepare(config: Any, *, labelled: bool) -> store.TextStore:
    """Returns the texts.

    Raises:
      UserErrors: they cannot be had, or the config says something of pictures.
    """
    demand_read(config, "texts")
    if config.data.loader != "memory":
        raise UserError(
            f"config.data.loader={config.data.loader}: texts are read from memory; set it to memory"
        )
    return store.prepare(config.data, labelled=labelled)


def with_tokenizer(config: Any, *, labelled: bool) -> tuple[store.TextStore, Tokenizer]:
    """Returns the texts and the tokenizer, which is trained on the training split where the config asks for that.

    Raises:
      UserErrors: the data or the tokenizer cannot be had.
    """
    data = prepare(config, labelled=labelled)
    folder = None
    if config.tokenizer.name == "pretrained" and config.pretrained.source:
        from research.transfer.hf.folder import folder_of

        folder = folder_of(config.pretrained.source)

    def texts():
        return (data.texts[i] for i in data.splits["train"])

    made = obtain(config.tokenizer, folder_of_source=folder, texts=texts, folder=data.folder)
    return data, made.with_template() if data.chat else made


def build_model(
    config: Any,
    tokenizer: Tokenizer,
    axis_name: str | None,
    *,
    head: str,
    outputs: int,
) -> models.Built:
    """Returns a model of tokens int32 [B, T], T = config.data.text.max_length.

    Raises:
      UserErrors: an option is wrong, or the model has fewer tokens than the tokenizer.
    """
    length = config.data.text.max_length
    known = config.model.to_dict().get("vocabulary", 0)
    if known and known < tokenizer.size:
        raise UserErrors(
            [
                f"config.tokenizer: has {tokenizer.size:,} tokens, but the model knows "
                f"config.model.vocabulary={known:,}: take the tokenizer that the weights came with "
                "(config.tokenizer.name=pretrained)"
            ]
        )
    return models.build(
        config,
        f"texts of {length} tokens (config.data.text.max_length)",
        (jnp.zeros((1, length), jnp.int32),),
        {"vocab_size": tokenizer.size, "outputs": outputs, "head": head},
        axis_name,
    )


def fingerprints(data: store.TextStore, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns those of the data, and the tokenizer's: another one makes other examples of the same texts."""
    return {**data.fingerprints, "tokenizer": tokenizer.sha256}


def read_texts(paths: list[str], prompt: str) -> tuple[list[str], list[str]]:
    """Returns names and texts: the prompt, or every line of .txt files and the 'text' of every line of .jsonl files.

    Raises:
      UserErrors: a file is missing, of another kind, not UTF-8 or not JSON; or there is nothing to read.
    """
    import json

    names: list[str] = []
    texts: list[str] = []
    lines: list[str] = []
    if prompt:
        names, texts = ["prompt"], [prompt]
    for path in map(Path, paths):
        if not path.is_file() or path.suffix not in ENDINGS:
            why = "no such file" if not path.exists() else f"ends in none of {', '.join(ENDINGS)}"
            lines.append(f"--inputs={path}: {why}")
            continue
        try:
            content = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            lines.append(f"--inputs={path}: byte {error.start} is not UTF-8; convert the file")
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if not line.strip():
                continue
            if path.suffix == ".jsonl":
                try:
                    line = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    lines.append(
                        f'--inputs={path}, line {number}: must be JSON such as {{"text": "..."}}'
                    )
                    continue
            names.append(f"{path}:{number}")
            texts.append(str(line))
    if lines:
        raise UserErrors(lines)
    if not texts:
        raise UserError(
            "give --prompt='a text', or --inputs=a.txt,b.jsonl with a text on each line"
        )
    return names, texts


def excerpt(text: str, most: int = 200) -> str:
    """Returns a text on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
