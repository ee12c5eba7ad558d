"""Texts from a model with a cache: prompts are read at once, then tokens are made one after another by one program.

B rows, V vocabulary, L length that prompts are padded to, S slots of the cache. Each program is compiled once for a
model, a number of rows, and L and S, which take few values (powers of two, and for S the numbers halfway).

What a prompt gets does not depend on the prompts beside it, nor on how many steps are taken at a time: keys are
derived from the seed, the prompt's number and the token's. Equality is up to the rounding of the logits, which may
differ between numbers of rows.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.decoding.sample import Sampling, choose, sampling
from research.decoding.stream import Stream
from research.errors import UserErrors

MOST_STEPS = 32  # tokens a row that are made before the host looks at them
PATIENCE = 0.03  # seconds that may pass until it does
SMALLEST = 16  # tokens that prompts are padded to, at least

Apply = Callable[..., tuple[jax.Array, Any]]
CacheOf = Callable[[int, int], Any]


class Generated(NamedTuple):
    """What follows a prompt."""

    ids: np.ndarray  # int32 [N] the tokens made, without the one that ended it
    reason: str  # 'eos', 'stop': one of the texts came, 'length': max_tokens or the context
    text: str  # without the stop text, and without an incomplete character at the end


class State(NamedTuple):
    """What a step hands to the next."""

    cache: Any
    token: jax.Array  # int32 [B] the last one made, which the model has not read yet
    position: jax.Array  # int32 [B] its position
    made: jax.Array  # int32 [] tokens made for each row
    done: jax.Array  # bool [B]
    seen: (
        jax.Array | None
    )  # bool [B, V] tokens of the prompt and made; None without a repetition penalty


def generate(
    apply: Apply,
    params: Any,
    cache_of: CacheOf,
    prompts: Sequence[np.ndarray],
    *,
    options: Any,
    decode: Callable[[np.ndarray], str],
    context: int,
    eos: Sequence[int] = (),
    pad: int = 0,
    emit: Callable[[int, str], None] | None = None,
    rows: int = 16,
    steps: int = 0,
) -> list[Generated]:
    """Goes on with each prompt until a token of `eos`, a stop text, `options.max_tokens` or the context's end.

    Args:
      apply: (params, tokens int32 [B, T], *, segments, positions, cache, last=True) -> (logits float32 [B, V], cache),
        segments 0 being padding. Programs are kept by `apply` and `cache_of`: hand in the same functions again.
      cache_of: (batch size, slots) -> an empty cache.
      prompts: int32 [n], each at least one token.
      options: config.generate: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed.
      decode: ids -> text; may give U+FFFD for an incomplete character.
      context: tokens a prompt and what follows it may have, together.
      pad: a token for the places in front of shorter prompts. The model is told to leave them out.
      emit: called as (number of the prompt, further piece of its text); the pieces joined are the text.
      rows: how many prompts are gone on with at a time, at most.
      steps: tokens made before the host looks; 0: as many as take about PATIENCE. What is made does not depend on it.

    Raises:
      UserErrors: prompts that are empty or longer than the context, a line for each.
    """
    _check(prompts, context)
    how = sampling(options)
    rows = min(rows, len(prompts))
    made: list[Generated] = []
    for first in range(0, len(prompts), rows or 1):
        part = prompts[first : first + rows]
        room = [min(options.max_tokens, context - len(prompt)) for prompt in part]
        streams = [
            Stream(prompt, decode, eos, tuple(options.stop), limit, first + i, emit)
            for i, (prompt, limit) in enumerate(zip(part, room, strict=True))
        ]
        numbers = first + np.arange(
            rows, dtype=np.uint32
        )  # rows that are too many are done from the start
        batch = _pad([*part, *[part[0]] * (rows - len(part))], context, pad)
        limits = np.array(room + [0] * (rows - len(part)), np.int32)
        programs = (
            partial(_start, apply, cache_of, how, tuple(eos)),
            partial(_steps, apply, how, tuple(eos)),
        )
        _run(programs, params, batch, numbers, limits, options, context, streams, steps)
        made += [Generated(np.array(s.ids, np.int32), s.reason, s.text) for s in streams]
    return made


def _run(programs, params, batch, numbers, limits, options, context, streams, steps) -> None:
    """Feeds the streams until all of them have ended."""
    start, advance = programs
    slots = _round(batch["tokens"].shape[1] + min(options.max_tokens, context), halves=True)
    fixed = {"numbers": numbers, "limits": limits, "seed": np.uint32(options.seed)}
    if not limits.any():
        return
    state = start(slots, params, batch, **fixed)
    tokens, count = np.asarray(state.token)[:, None], 1
    pace = Pace(steps)
    while True:
        for stream, row in zip(streams, tokens, strict=False):
            stream.feed(row[:count])
        if all(stream.reason for stream in streams):
            return
        ended = np.ones(len(limits), bool)
        ended[: len(streams)] = [bool(stream.reason) for stream in streams]
        with pace:
            state, out, made = advance(params, state, ended=ended, steps=pace.steps, **fixed)
            tokens, count = np.asarray(out), int(made)
        pace.made(count)


class Pace:
    """How many steps to take at a time: `steps`, or as many as take PATIENCE, measured without the first, which
    compiles."""

    def __init__(self, steps: int):
        self._fixed = steps
        self.steps = min(steps, MOST_STEPS) or 1
        self._warm = False

    def __enter__(self):
        self._begin = time.perf_counter()

    def __exit__(self, *error):
        self._seconds = time.perf_counter() - self._begin

    def made(self, count: int) -> None:
        if self._warm and not self._fixed:
            self.steps = int(np.clip(PATIENCE * count / self._seconds, 1, MOST_STEPS))
        self._warm = True


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _start(
    apply: Apply,
    cache_of: CacheOf,
    how: Sampling,
    eos: tuple[int, ...],
    slots: int,
    params: Any,
    batch: dict[str, jax.Array],
    *,
    numbers: jax.Array,
    limits: jax.Array,
    seed: jax.Array,
) -> State:
    """Reads the prompts and makes the first token of each."""
    tokens, segments = batch["tokens"], batch["segments"]
    b, length = tokens.shape
    lengths = segments.sum(1)
    positions = jnp.maximum(jnp.arange(length) - (length - lengths)[:, None], 0)
    logits, cache = apply(
        params,
        tokens,
        segments=segments,
        positions=positions,
        cache=cache_of(b, slots),
        last=True,
    )
    seen = None
    if how.repetition_penalty != 1:
        seen = jnp.zeros(logits.shape, bool)
        seen = seen.at[jnp.arange(b)[:, None], tokens].max(segments > 0)
    state = State(cache, tokens[:, -1], lengths - 1, jnp.int32(0), limits < 1, seen)
    return _add(state, logits, how, eos, numbers, limits, seed)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4,))
def _steps(
    apply: Apply,
    how: Sampling,
    eos: tuple[int, ...],
    params: Any,
    state: State,
    *,
    numbers: jax.Array,
    limits: jax.Array,
    seed: jax.Array,
    ended: jax.Array,
    steps: jax.Array,
) -> tuple[State, jax.Array, jax.Array]:
    """Makes tokens for all rows until `steps` are made or all rows are done: int32 [B, MOST_STEPS], and how many."""

    def goes_on(carry):
        state, _, made = carry
        return (made < steps) & ~state.done.all()

    def step(carry):
        state, out, made = carry
        logits, cache = apply(
            params,
            state.token[:, None],
            segments=jnp.ones((len(ended), 1), jnp.int32),
            positions=state.position[:, None],
            cache=state.cache,
            last=True,
        )
        state = _add(state._replace(cache=cache), logits, how, eos, numbers, limits, seed)
        out = jax.lax.dynamic_update_slice(out, state.token[:, None], (0, made))
        return state, out, made + 1

    state = state._replace(done=state.done | ended)
    out = jnp.zeros((len(ended), MOST_STEPS), jnp.int32)
    return jax.lax.while_loop(goes_on, step, (state, out, jnp.int32(0)))


def _add(state: State, logits, how: Sampling, eos, numbers, limits, seed) -> State:
    """The state with one more token a row, drawn from the logits [B, V]."""
    # A key of threefry is two words. Each hash that deriving it by `fold_in` would take is slow to compile.
    words = jnp.stack([jnp.full_like(numbers, seed), numbers], -1)
    keys = jax.random.wrap_key_data(words, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.made)
    token = choose(logits, how, keys, state.seen)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    made = state.made + 1
    over = jnp.isin(token, jnp.array(eos, jnp.int32)) | (made >= limits)
    return State(state.cache, token, state.position + 1, made, state.done | over, seen)


def _pad(prompts: Sequence[np.ndarray], context: int, pad: int) -> dict[str, np.ndarray]:
    """Left-padded tokens and segments, int32 [B, L]."""
    longest = max(len(prompt) for prompt in prompts)
    length = max(longest, min(_round(longest), context))
    tokens = np.full((len(prompts), length), pad, np.int32)
    segments = np.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        tokens[i, length - len(prompt) :] = prompt
        segments[i, length - len(prompt) :] = 1
    return {"tokens": tokens, "segments": segments}


def _round(n: int, *, halves: bool = False) -> int:
    """The next power of two, from SMALLEST on; with `halves` also 1.5 times one, as a larger cache costs time."""
    power = max(SMALLEST, 1 << (n - 1).bit_length())
    return power * 3 // 4 if halves and n <= power * 3 // 4 else power


def _check(prompts: Sequence[np.ndarray], context: int) -> None:
    mistakes = []
    for i, prompt in enumerate(prompts):
        which = f"prompt {i + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
        if len(prompt) > context:
            mistakes.append(
                f"{which} has {len(prompt)} tokens, more than the model's context of {context}; shorten it"
            )
        if not len(prompt):
            mistakes.append(f"{which} has no tokens; give it at least one character")
    if mistakes:
        raise UserErrors(mistakes)
