"""What the tasks on text have in common: their data, their tokenizer and a model that fits both."""

import json
import re
from typing import Any

import jax.numpy as jnp

from research.data.text import store
from research.data.tokenizer import Tokenizer, obtain
from research.data.tokenizing import chat, training
from research.errors import UserError, UserErrors
from research.tasks.shared import models
from research.tasks.shared.unread import demand_read
from research.transfer import rules as user_rules


def prepare(config: Any, *, labelled: bool) -> store.TextStore:
    """Returns the texts.

    Raises:
      UserErrors: they cannot be had, or the config says something of pictures.
    """
    demand_read(config, "texts")
    return store.prepare(config.data, labelled=labelled)


def with_tokenizer(config: Any, *, labelled: bool) -> tuple[store.TextStore, Tokenizer]:
    """Returns the texts and the tokenizer, which is trained on the training split where the config asks for that.

    Raises:
      UserErrors: the data or the tokenizer cannot be had, or the weights are of another tokenizer.
    """
    _demand_known_vocabulary(config)
    data = prepare(config, labelled=labelled)
    folder = None
    if config.tokenizer.name == "pretrained" and config.pretrained.source:
        from research.transfer.hf.folder import folder_of

        folder = folder_of(config.pretrained.source)

    def texts():
        kept = (data.texts[i] for i in data.splits["train"])
        return (chat.plain(json.loads(text)) for text in kept) if data.chat else kept

    made = obtain(
        config.tokenizer,
        folder_of_source=folder,
        texts=texts,
        folder=data.folder,
        form=chat.plain_version() if data.chat else "",
    )
    if not labelled and config.tokenizer.name in training.NAMES:
        made = made.opening()
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
    options = config.model.to_dict()
    known, context = options.get("vocabulary", 0), options.get("context", length)
    if length > context and options.get("position") == "rotary":
        raise UserError(
            f"config.data.text.max_length={length}: is more than config.model.context={context}, the longest row that "
            "the model is for; lower it"
        )
    if known and known < tokenizer.size:
        mend = "take the tokenizer that the weights came with (config.tokenizer.name=pretrained)"
        if config.tokenizer.name == "pretrained":
            mend = (
                f"the tokenizer.json and config.json of {config.pretrained.source} are not of one model; get it anew, "
                "or give the model rows for the tokens that were added (resize_token_embeddings of transformers)"
            )
        raise UserErrors(
            [
                f"config.tokenizer: has {tokenizer.size:,} tokens, but the model knows "
                f"config.model.vocabulary={known:,}: {mend}"
            ]
        )
    return models.build(
        config,
        f"texts of {length} tokens (config.data.text.max_length)",
        (jnp.zeros((1, length), jnp.int32),),
        {"vocab_size": tokenizer.size, "outputs": outputs, "head": head},
        axis_name,
    )


def cleaned(data: store.TextStore) -> tuple[str, ...]:
    """Returns a line that says what cleaning left out, or none."""
    found = {kind: entry.get("dropped", 0) for kind, entry in data.report["found"].items()}
    parts = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in found.items() if count]
    line = f"texts left out by config.data.clean: {', '.join(parts)}; data_report.json lists them"
    return (line,) if parts else ()


def fingerprints(data: store.TextStore, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns those of the data, and the tokenizer's: another one makes other examples of the same texts."""
    return {**data.fingerprints, "tokenizer": tokenizer.sha256}


def told(what: str, found: dict[str, tuple[int, int]], rest: str) -> tuple[str, ...]:
    """Returns the line 'WHAT: 3 of 40 in train, REST', or none.

    Args:
      found: split -> how many, of how many.
    """
    parts = [f"{some:,} of {of:,} in {split}" for split, (some, of) in found.items() if some]
    return (f"{what}: {', '.join(parts)}, {rest}",) if parts else ()


def excerpt(text: str, most: int = 200) -> str:
    """Returns a text on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _demand_known_vocabulary(config: Any) -> None:
    """Raises UserError if the rows of a foreign embedding would stand for the tokens of a tokenizer made here."""
    name, source, rules = config.tokenizer.name, config.pretrained.source, config.pretrained.rules
    foreign = source.startswith(("hf:", "package:")) and name in training.NAMES
    if not foreign or user_rules.mistakes(rules):  # which are told elsewhere
        return
    if any(rule[1] == "skip" and re.search(rule[0], "embed/embedding") for rule in rules):
        return
    raise UserError(
        f"config.tokenizer.name={name}: is made anew, but the model of config.pretrained.source={source} knows "
        "the tokens of its own; set config.tokenizer.name=pretrained, or have its embeddings start fresh by the rule "
        "(r'^embed/', 'skip') of config.pretrained.rules"
    )
