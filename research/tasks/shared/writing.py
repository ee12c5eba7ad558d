"""A language model goes on with texts: tokens in, tokens out, pieces of text as they come."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from research.data.text import encode
from research.data.tokenizer import Tokenizer
from research.decoding.generate import generate


def write(
    module: Any,
    variables: dict[str, Any],
    tokenizer: Tokenizer,
    prompts: list[Any],
    options: Any,
    emit: Callable[[int, str], None],
    *,
    chat: bool,
    context: int,
) -> list[str]:
    """Returns what the model writes after each prompt.

    Args:
      module: a Linen module of tokens with a cache.
      variables: its collections.
      prompts: texts; with `chat` lists of messages, put into the tokenizer's chat template.
      options: the section config.generate.
      emit: called with the number of a prompt and each further piece of what follows it.
      context: tokens that a prompt and what follows it may have together.

    Raises:
      UserErrors: a prompt is longer than the context.
    """
    variables = jax.device_put(variables)  # once, and not with every burst of tokens
    apply, cache_of = _programs(module)
    made = generate(
        apply,
        variables,
        cache_of,
        [_ids(tokenizer, prompt, chat) for prompt in prompts],
        options=options,
        decode=tokenizer.decode,
        context=context,
        eos=ends(tokenizer, chat),
        pad=tokenizer.pad or 0,
        emit=emit,
    )
    return [one.text for one in made]


def ends(tokenizer: Tokenizer, chat: bool) -> tuple[int, ...]:
    """Returns the tokens that end a text: the one in training, and what closes an answer in the chat template."""
    found = [encode.ends(tokenizer)[1]]
    if chat:
        ids, weights = tokenizer.chat(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], answer=False
        )
        # What closes a turn is a token of its own, or it may be part of what is said.
        special = set(tokenizer.special_ids())
        found += [int(i) for i, w in zip(ids, weights, strict=True) if w and int(i) in special]
    return tuple(dict.fromkeys(found))


def _ids(tokenizer: Tokenizer, prompt: Any, chat: bool) -> np.ndarray:
    if chat:
        return tokenizer.chat(prompt, answer=True)[0]
    opening, _ = encode.ends(tokenizer)
    return np.array([opening, *tokenizer.encode([prompt], special=False)[0]], np.int32)


@lru_cache(maxsize=4)
def _programs(module: Any) -> tuple[Callable, Callable]:
    """The same functions for the same module, since programs are compiled for a function."""

    def apply(variables, tokens, **how):
        return module.apply(variables, tokens, train=False, **how)

    return apply, module.empty_cache
