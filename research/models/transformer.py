"""Transformers over tokens: the encoder (BERT), the decoder (GPT-2) and the modern decoder (Llama, Qwen, Gemma).

B examples, T tokens of a row, V vocabulary, D width, H heads, K heads of keys and values, E width of a head,
L blocks, S slots of a cache.

Parameters:

    embed/embedding [V, D]   position/embedding [context, D]   type/embedding [types, D]   embed_norm/{scale, bias}
    block_0/{norm1, norm1_post, norm2, norm2_post}/{scale, bias}
    block_0/attention/{query, key, value, out}/{kernel, bias}, block_0/attention/{query_norm, key_norm}/scale
    block_0/mlp/{gate, up, down}/{kernel, bias}   ...   norm/{scale, bias}
    pooler/{kernel, bias}   head/{kernel, bias}   mlm/{dense/{kernel, bias}, norm/{scale, bias}, bias [V]}
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope

from research.models.layers import Dense, Dropout, Embed, named, options
from research.models.layers.block import Block, MaskedHead
from research.models.layers.cache import Slots, empty, extend, filled
from research.models.layers.context import Context, contexts
from research.models.layers.norm import Norm
from research.ops.segments import count_positions, last_token, pool
from research.ops.softmax import capped

# Parameter paths from the tokens to the output; numbers count within a pattern.
LAYERS = (
    r"(?:embed|position|type|embed_norm)/",
    r"block_(\d+)/",
    r"(?:norm|pooler|mlm|head)/",
)


class Model(nn.Module):
    """Intermediates: 'embedded', 'block0'... 'normed' [B, T, D], 'pooled' [B, D], 'logits'; not of a scan's blocks.

    Raises:
      ValueError: an option is wrong, or a row is longer than the position table.
    """

    vocab_size: int
    outputs: int  # of head 'classify'
    head: str  # 'classify', 'lm' or 'mlm'
    dtype: Any
    axis_name: str | None
    vocabulary: int = 0  # rows of the embedding, where weights bring more; 0: vocab_size
    width: int = 256
    depth: int = 6
    heads: int = 8
    kv_heads: int = 0  # of keys and values (Ainslie et al. 2023); 0: heads
    head_width: int = 0  # 0: width / heads
    hidden: int = 0  # 0: 4 width
    context: int = 256  # rows of the position table; the longest row
    causal: bool = True  # a token sees itself and earlier ones
    prenorm: bool = True  # norms at the start of a branch, or after its sum
    norm: str = "layer"  # or 'rms'
    norm_epsilon: float = 1e-5
    norm_offset: bool = False  # the norm's scale is 1 + its parameter
    norm_after: bool = False  # a further norm at the end of each branch
    final_norm: bool = True
    embed_norm: bool = False
    qk_norm: bool = False  # of queries and keys, head by head
    position: str = "learned"  # 'rotary' or 'none'
    position_offset: int = 0  # row of the position table that the first token has
    rotary_base: float = 10000.0
    rotary_local_base: float = 0.0  # of windowed blocks, without scaling; 0: as the others
    rotary_scaling: tuple = ()  # ('linear', factor) or ('llama3', factor, low, high, context)
    types: int = 0  # rows of a table of token types; every token is of type 0
    activation: str = "gelu"  # 'gelu_tanh', 'silu', 'relu'
    gated: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    tied: bool = True  # the output's matrix is the embedding's
    embed_scale: bool = False  # embeddings times sqrt(width)
    window: int = 0  # a token sees so many, itself included; 0: all
    global_every: int = 0  # every so many blocks one without a window
    attention_scale: float = 0.0  # 0: head_width**-0.5
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    dropout: float = 0.0  # of the embeddings, the residual branches and before the head
    attention_dropout: float = 0.0  # of the attention's weights
    attention_block: int = 0  # tokens of a tile, so that no [T, T] is kept; 0: whole rows
    pool: str = "mean"  # for 'classify': the mean, the first or the last token
    pooler: str = ""  # a layer before the head: 'tanh', 'relu'
    head_bias: bool = True
    # The blocks as one loop: compiled sooner from a dozen blocks on, a step takes longer.
    scan: bool = False
    # Kept for the gradient: all, the products with matrices ('dots'), blocks' inputs ('full'). On a CPU only with scan.
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: dict[str, Any] | None = None,
        last: bool = False,
        hidden: bool = False,
        states: jax.Array | None = None,
    ) -> Any:
        """Logits float32, and with a cache (logits, cache).

        Args:
          tokens: int32 [B, T].
          train: whether anything is dropped.
          keys: typed keys [B] of what is dropped; None = nothing.
          segments: int [B, T], 1, 2, .. by document in a row, 0 for padding on either side; None = all 1.
          positions: int [B, T] within the document; None = counted from 0.
          cache: of `empty_cache`, or of the call before. The tokens are appended, to be seen with those before; of
            segments only 0 counts. index + T <= S.
          last: only the last token of each row, [B, V].
          hidden: stops where `states` begins; without a cache.
          states: [B, T, D], of any tokens: the output alone; `tokens` is not read.

        Returns:
          [B, outputs] of head 'classify'; [B, T, V] of 'lm' and 'mlm'; with `hidden` [B, T, D].
        """
        if states is not None:
            return self._decode(states, self._table("embed", self._rows))
        options.check(self, tokens.shape[1], cached=cache is not None)
        keys = keys if train else None
        real, places = segments, jnp.arange(tokens.shape[1])
        if cache is not None:
            cache, real, positions = extend(cache, tokens.shape, segments, positions)
            places = cache["index"] + places
        elif positions is None:
            positions = places[None] if segments is None else count_positions(segments)
        embed = self._table("embed", self._rows)
        x = named(self, "embedded", self._embed(embed(tokens), positions, keys))
        x, cache = self._blocks(x, contexts(self, places, real, positions, cache), keys, cache)
        if last and self.head != "classify":
            x = last_token(x, segments)[:, None]
        if self.final_norm:
            x = self._norm("norm", x)
        x = named(self, "normed", x)
        if hidden:
            return x
        if self.head == "classify":
            logits = self._classify(x, segments, keys)
        else:
            logits = self._decode(x, embed)
            logits = logits[:, 0] if last else logits
        self.sow("intermediates", "logits", logits)
        return logits if cache is None else (logits, cache)

    def empty_cache(self, batch_size: int, slots: int) -> dict[str, Any]:
        """Returns the cache of a row without tokens, for `slots` of them, padding included.

        Its 'keys' and 'values' are L arrays [B, K, S, E] each, so that a donated one is written in place; 'valid'
        bool and 'positions' int32 [B, S] tell of its tokens; 'index' int32 [] is the slot of the next.
        """
        # Not slots: padding on the left takes some, but no rows of the position table.
        options.check(self, 1, cached=True)
        return empty(options.of(self), self.dtype, batch_size, slots)

    @property
    def splits(self) -> bool:
        """Whether a call may end at the states that enter the output's matrix, or begin there."""
        return self.head != "classify"

    @property
    def longest(self) -> int:
        """Tokens that a row may have."""
        return self.context - (self.position_offset if self.position == "learned" else 0)

    @property
    def joined(self) -> dict[str, str]:
        """See `research.task.Task`."""
        why = "config.model.scan=True runs all blocks as one; set config.model.scan=False"
        return {r"block_\d+/": why} if self.scan else {}

    def _embed(self, x: jax.Array, positions: jax.Array, keys: Any) -> jax.Array:
        if self.embed_scale:
            x = x * jnp.asarray(self.width**0.5, x.dtype)
        if self.position == "learned":
            x = x + self._table("position", self.context)(positions + self.position_offset)
        if self.types:
            x = x + self._table("type", self.types)(jnp.zeros((1, 1), jnp.int32))
        if self.embed_norm:
            x = self._norm("embed_norm", x)
        return Dropout(self.dropout, name="dropout")(x, keys)

    def _blocks(self, x: jax.Array, contexts: tuple, keys: Any, cache: Any) -> tuple:
        if self.scan and cache is None:  # a cache's arrays are apart: one loop would copy them
            return self._scan(x, contexts, keys), None
        made = Block
        if self.remat != "none" and cache is None:
            made = nn.remat(Block, policy=options.POLICIES[self.remat])
        parts: list[Slots] = []
        for i in range(self.depth):
            block = made(options.of(self), name=f"block_{i}")
            slots = cache and Slots(cache["keys"][i], cache["values"][i], cache["index"])
            x, slots = block(x, contexts[options.windowed(self, i)], keys, i, slots)
            x = named(self, f"block{i}", x)
            parts += [slots] if slots else []
        return x, cache and filled(cache, parts, x.shape[1])

    def _scan(self, x: jax.Array, contexts: tuple, keys: Any) -> jax.Array:
        """The blocks as one `jax.lax.scan` over their stacked parameters, which the model keeps apart."""
        names = [f"block_{i}" for i in range(self.depth)]
        if self.is_initializing():
            drawn = jax.random.split(self.make_rng("params"), self.depth)
            made = jax.vmap(lambda key: self._one_block({}, x, contexts[0], rng=key)[1])(drawn)
            for i, name in enumerate(names):
                self.put_variable("params", name, jax.tree.map(lambda leaf, i=i: leaf[i], made))
        trees: list[Any] = [self.get_variable("params", name) for name in names]
        for path, _ in jax.tree_util.tree_leaves_with_path(trees):
            if path[-1].key.startswith("lora_"):
                raise ValueError(
                    "config.model.scan=True runs all blocks as one, which cannot hold adapters: "
                    "set config.model.scan=False, or choose config.lora.layers outside of the blocks"
                )

        def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            params, i, local = layer
            context = contexts[0]
            if contexts[1] is not contexts[0]:
                context = jax.tree.map(lambda a, b: jnp.where(local, b, a), *contexts)
            return self._one_block(params, x, context, keys, i)[0], None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=options.POLICIES[self.remat], prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        local = jnp.asarray([options.windowed(self, i) for i in range(self.depth)])
        return jax.lax.scan(body, x, (stacked, jnp.arange(self.depth), local))[0]

    def _one_block(
        self,
        params: Any,
        x: jax.Array,
        context: Context,
        keys: Any = None,
        i: Any = 0,
        rng: Any = None,
    ) -> tuple[jax.Array, Any]:
        """A block with these parameters, or those drawn from `rng`, which are returned too.

        It has a scope of its own, as a loop's body must, and the path of a block for those who intercept its layers.
        """
        rngs, mutable = ({}, False) if rng is None else ({"params": rng}, ["params"])
        scope = Scope({"params": params}, rngs, mutable=mutable, path=("block_0",))
        block = Block(options.of(self), parent=scope)  # type: ignore[arg-type]
        x, _ = block(x, context, keys, i)
        return x, scope.variables()["params"]

    def _classify(self, x: jax.Array, segments: Any, keys: Any) -> jax.Array:
        x = named(self, "pooled", pool(x, segments, self.pool))
        if self.pooler:
            x = Dense(self.width, options.normal(), self.dtype, name="pooler")(x)
            x = jnp.tanh(x) if self.pooler == "tanh" else nn.relu(x)
        x = Dropout(self.dropout, name="head_dropout")(x, keys)
        head = Dense(self.outputs, options.normal(), self.dtype, self.head_bias, True, name="head")
        return head(x)

    def _decode(self, x: jax.Array, embed: Embed) -> jax.Array:
        """x [B, T, D] -> logits [B, T, V]."""
        bias = None
        if self.head == "mlm":
            x, bias = MaskedHead(options.of(self), self._rows, name="mlm")(x)
        if self.tied:
            logits = embed.attend(x)
        else:
            logits = Dense(self._rows, options.normal(), self.dtype, False, True, name="head")(x)
        logits = logits if bias is None else logits + bias
        return capped(logits, self.logit_softcap)[0]

    @property
    def _rows(self) -> int:
        return self.vocabulary or self.vocab_size

    def _table(self, name: str, rows: int) -> Embed:
        return Embed(rows, self.width, self.dtype, embedding_init=options.normal(), name=name)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return Norm(self.norm, self.norm_epsilon, self.norm_offset, name=name)(x)
