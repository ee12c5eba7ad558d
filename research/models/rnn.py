"""Recurrent networks over tokens: Elman's, GRU or LSTM, stacked and in one direction or both.

B examples, T tokens of a row, V vocabulary, E width of the embedding, D width of a state, C outputs, G gates of a cell.
The sums stand in research/ops/recurrence.py; gates are in PyTorch's order (r, z, n; i, f, g, o), and so weights go to
torch.nn.RNN, GRU and LSTM and back. PyTorch has two biases that are added up wherever both act on the same sum: here
they are one, input/bias; of a GRU's candidate they are two, as the reset gate acts on one of them: recurrent/bias.

Initial values: glorot uniform for what comes from the input, orthogonal (each gate by itself) for what comes from the
state, biases zero but an LSTM's forget gate's, which is one (Jozefowicz et al. 2015); the embedding is normal with
variance 1 / E. PyTorch draws all of them from +-1 / sqrt(D) and its embedding with variance 1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Dense, Dropout, Embed, glorot, named
from research.ops.recurrence import GATES, State, input_share, recurrence, zeros
from research.ops.segments import Masks, masks_of

# Parameter paths from the tokens to the outputs; numbers count within a pattern.
LAYERS = (r"embed/", r"layer_(\d+)/", r"head/")
POOLS = ("last", "mean", "max", "first")


class Model(nn.Module):
    """Intermediates: 'embedded' [B, T, E], 'layer0'... [B, T, D or 2 D], 'pooled' (what enters the head), 'logits'.

    `head` is 'classify', one label for a row; 'lm', the next token after each; or 'mlm', the token in each place.

    Raises:
      ValueError: an option is wrong, or does not go with the head.
    """

    vocab_size: int
    outputs: int
    head: str
    dtype: Any
    axis_name: str | None
    cell: str = "elman"  # or 'gru', 'lstm'
    embedding: int = 128  # width
    width: int = 256  # of a state, in each direction
    depth: int = 1
    bidirectional: bool = False
    dropout: float = 0.0  # between layers and before the head
    embed_dropout: float = 0.0  # of single numbers of the embedding
    word_dropout: float = (
        0.0  # of whole tokens; those left are scaled up, as all that a dropout leaves
    )
    recurrent_dropout: float = 0.0  # of the state on its way into the product, one mask a row
    pool: str = "last"  # the state after all tokens, of each direction; or 'mean', 'max', 'first' over tokens
    tied: bool = False  # the head's matrix is the embedding
    head_bias: bool = True

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Any = None,
        last: bool = False,
    ) -> Any:
        """tokens int32 [B, T] -> logits float32 [B, C], or of a language model [B, T, V].

        Args:
          keys: typed keys [B] of the dropouts; None = none.
          segments: int32 [B, T], the document of each token, 0 = padding on either side; None = all of one. A document
            starts from zeros, and padding leaves a state as it is.
          positions: not read; a state counts by itself.
          cache: what `empty_cache` or an earlier call gave; the result is then (logits, cache).
          last: a language model's logits after the last token of each row only, [B, V].
        """
        self._check(cache)
        keys = keys if train else None
        embed = Embed(self.vocab_size, self.embedding, dtype=self.dtype, name="embed")
        x = self._embedded(embed(tokens), keys)
        if segments is None and cache is not None:
            segments = jnp.ones_like(tokens)
        ahead, back, document = None, None, None
        if segments is not None:
            ahead, document = masks_of(segments, None if cache is None else cache["segment"])
            if self.bidirectional:
                back, _ = masks_of(segments, reverse=True)
        new: dict[str, Any] = {"segment": document}
        for i in range(self.depth):
            layer = Layer(
                *(self.cell, self.width, self.bidirectional),
                *(self.recurrent_dropout, self.dtype),
                name=f"layer_{i}",
            )
            state = None if cache is None else cache[f"layer_{i}"]
            x, new[f"layer_{i}"] = layer(x, keys, state, ahead, back)
            x = named(self, f"layer{i}", x)
            if i + 1 < self.depth:
                x = Dropout(self.dropout, name=f"dropout_{i}")(x, keys)
        x = named(self, "pooled", self._pooled(x, segments, last))
        x = Dropout(self.dropout, name="dropout")(x, keys)
        logits = self._logits(embed, x)
        self.sow("intermediates", "logits", logits)
        return logits if cache is None else (logits, new)

    def empty_cache(self, batch_size: int, slots: int) -> dict[str, Any]:
        """The states before anything was read; they take the same room however many `slots` tokens come."""
        state = zeros(self.cell, batch_size, self.width, self.dtype)
        layers = {f"layer_{i}": state for i in range(self.depth)}
        return {"segment": jnp.zeros(batch_size, jnp.int32), **layers}

    def _embedded(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        whole = jnp.ones((*x.shape[:2], 1), x.dtype)
        words = Dropout(self.word_dropout, name="word_dropout")(whole, keys)
        if keys is not None and self.word_dropout:
            x = x * words
        x = Dropout(self.embed_dropout, name="embed_dropout")(x, keys)
        return named(self, "embedded", x)

    def _pooled(self, x: jax.Array, segments: jax.Array | None, last: bool) -> jax.Array:
        """Of [B, T, D] what enters the head."""
        d = self.width
        if self.head == "lm":
            return x[:, -1] if last else x  # padding on the right has left the state as it was
        if self.head == "classify" and self.pool == "last":
            return jnp.concatenate([x[:, -1, :d], x[:, 0, d:]], -1)
        real = jnp.ones(x.shape[:2], bool) if segments is None else segments > 0
        if self.head == "mlm":
            return _token(x, x.shape[1] - 1 - jnp.argmax(real[:, ::-1], 1)) if last else x
        if self.pool == "first":
            return _token(x, jnp.argmax(real, 1))
        if self.pool == "mean":
            total = jnp.where(real[..., None], x, 0).sum(1, dtype=jnp.float32)
            return (total / jnp.maximum(real.sum(1), 1)[:, None]).astype(x.dtype)
        most = jnp.where(real[..., None], x, -jnp.inf).max(1)
        return jnp.where(real.any(1)[:, None], most, 0)

    def _logits(self, embed: Embed, x: jax.Array) -> jax.Array:
        if not self.tied:
            features = self.outputs if self.head == "classify" else self.vocab_size
            return Dense(features, glorot, self.dtype, self.head_bias, True, name="head")(x)
        logits = embed.attend(x)
        return Bias(name="head")(logits) if self.head_bias else logits

    def _check(self, cache: Any) -> None:
        if self.cell not in GATES:
            raise ValueError(f"config.model.cell={self.cell!r} is none of {', '.join(GATES)}")
        if self.pool not in POOLS:
            raise ValueError(f"config.model.pool={self.pool!r} is none of {', '.join(POOLS)}")
        for name in ("embedding", "width", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.model.{name}={getattr(self, name)} must be at least 1")
        if self.bidirectional and self.head == "lm":
            raise ValueError(
                "config.model.bidirectional=True would see the token that it has to guess; set it to False"
            )
        if not self.bidirectional and self.head == "mlm":
            raise ValueError(
                "a masked language model looks both ways; set config.model.bidirectional=True"
            )
        if cache is not None and self.head != "lm":
            raise ValueError(f"a model with the head {self.head!r} goes over whole rows: no cache")
        sides = 2 if self.bidirectional else 1
        if self.tied and self.head == "classify":
            raise ValueError("config.model.tied=True is for language models; set it to False")
        if self.tied and sides * self.width != self.embedding:
            raise ValueError(
                f"config.model.tied=True needs config.model.embedding={self.embedding} to be "
                "as wide as what enters the head, "
                f"{sides * self.width}"
            )


class Layer(nn.Module):
    """x [B, T, ...] -> [B, T, D], or with both directions [B, T, 2 D], and the state after the last token."""

    cell: str
    width: int
    bidirectional: bool
    recurrent_dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array | None,
        state: State | None,
        ahead: Masks | None,
        back: Masks | None,
    ) -> tuple[jax.Array, State]:
        options = (self.cell, self.width, self.recurrent_dropout, self.dtype)
        y, state = Direction(*options, name="forward")(x, keys, state, ahead)
        if self.bidirectional:
            other, _ = Direction(*options, reverse=True, name="backward")(x, keys, None, back)
            y = jnp.concatenate([y, other], -1)
        return y, state


class Direction(nn.Module):
    """A cell over time; x [B, T, ...] -> h [B, T, D], and the state after the last step."""

    cell: str
    width: int
    recurrent_dropout: float
    dtype: Any
    reverse: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, keys: jax.Array | None, state: State | None, masks: Masks | None
    ) -> tuple[jax.Array, State]:
        ones = jnp.ones((x.shape[0], self.width), self.dtype)
        drop = Dropout(self.recurrent_dropout, name="recurrent_dropout")(ones, keys)
        gates = GATES[self.cell] * self.width
        x = Gates(gates, dtype=self.dtype, forget=self.cell == "lstm", name="input")(x)
        kernel, bias = Recurrent(self.cell, self.width, name="recurrent")()
        return recurrence(
            self.cell,
            x,
            kernel.astype(self.dtype),
            bias,
            state=state,
            masks=masks,
            drop=None if keys is None or not self.recurrent_dropout else drop,
            reverse=self.reverse,
        )


class Gates(Dense):
    """The input's share of all gates, [..., E] -> [..., G*D]: a Dense, so that what adapts one (LoRA) adapts it."""

    forget: bool = False  # the second quarter of the bias starts at one

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            place = jnp.arange(shape[0]) * 4 // shape[0]
            return (self.forget & (place == 1)).astype(dtype)

        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return input_share(x, kernel, bias.astype(self.dtype))


class Recurrent(nn.Module):
    """Gives the recurrent kernel [D, G*D] and a GRU's b_n [D]."""

    cell: str
    width: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        d, gates = self.width, GATES[self.cell]
        orthogonal = nn.initializers.orthogonal()

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            parts = [orthogonal(k, (d, d), dtype) for k in jax.random.split(key, gates)]
            return jnp.concatenate(parts, -1)

        kernel = self.param("kernel", init, (d, gates * d), jnp.float32)
        if self.cell != "gru":
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (d,), jnp.float32)


class Bias(nn.Module):
    """Adds a bias to the last axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)


def _token(x: jax.Array, place: jax.Array) -> jax.Array:
    """[B, T, D], the place [B] of a token -> [B, D]."""
    return jnp.take_along_axis(x, place[:, None, None], 1)[:, 0]
