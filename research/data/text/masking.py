"""Masked language modelling: which tokens are hidden, and what stands in their place.

As in Devlin et al., "BERT" (NAACL 2019): of the tokens that are chosen 80% become the mask token, 10% another token at
random and 10% stay what they are; all of them are to be told.

B rows, T tokens of a row, V vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np

from research.data.random import uniforms
from research.errors import UserError


class Masking(NamedTuple):
    """What masking needs to know of a tokenizer."""

    rate: float  # share of the ordinary tokens that are chosen
    mask: int
    special: np.ndarray  # bool [V]
    ordinary: np.ndarray  # int32, the numbers of all others


def masking(tokenizer: Any, rate: float) -> Masking:
    """Returns the rules for a tokenizer, whose special tokens are never chosen and never put in.

    Raises:
      UserError: it has no mask token, or nothing else.
    """
    if tokenizer.mask is None:
        raise UserError(
            "config.tokenizer: the tokenizer has no mask token, which a masked language model needs: take one that "
            "has, or train a causal model"
        )
    own = tokenizer
    numbers = (own.pad, own.unk, own.bos, own.eos, own.cls, own.sep, own.mask)
    special = np.zeros(own.size, bool)
    special[[number for number in numbers if number is not None]] = True
    ordinary = np.flatnonzero(~special).astype(np.int32)
    if not len(ordinary):
        raise UserError("config.tokenizer: the tokenizer has special tokens only")
    return Masking(rate, tokenizer.mask, special, ordinary)


def hide(
    tokens: np.ndarray,
    real: np.ndarray,
    how: Masking,
    seed: int,
    stream: str,
    *counters: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens with some hidden, int32 [B, T], and which are to be told, bool [B, T].

    Args:
      tokens: int32 [B, T].
      real: bool [B, T], False where there is padding.
      counters: what a row's draws depend on, beside seed and stream: see `uniforms`.
    """
    draws = uniforms(seed, stream, *counters, n=tokens.shape[1])
    chosen = (draws < how.rate) & real & ~how.special[tokens]
    # A draw below the rate, divided by it, is uniform again: one draw for a token serves all three choices.
    share = draws[chosen] / how.rate
    another = ((share - 0.8) / 0.1 * len(how.ordinary)).astype(np.int64)
    another = how.ordinary[another.clip(0, len(how.ordinary) - 1)]
    hidden = tokens.copy()
    hidden[chosen] = np.where(share < 0.8, how.mask, np.where(share < 0.9, another, tokens[chosen]))
    return hidden, chosen
