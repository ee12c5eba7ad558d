"""What the tasks on text have in common: their data, their tokenizer and a model that fits both."""

from typing import Any

import jax.numpy as jnp

from research.data.text import store
from research.data.tokenizer import Tokenizer, obtain
from research.errors import UserError, UserErrors
from research.tasks.shared import models
from research.tasks.shared.unread import demand_read


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


def fingerprints(data: store.TextStore, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns those of the data, and the tokenizer's: another one makes other examples of the same texts."""
    return {**data.fingerprints, "tokenizer": tokenizer.sha256}


def excerpt(text: str, most: int = 200) -> str:
    """Returns a text on one line, cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
