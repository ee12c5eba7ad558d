"""The transformer's block: attention and a multilayer perceptron, each on a residual branch.

B examples, T tokens, D width, H heads, K heads of keys and values, E width of a head, F width of the hidden layer,
S slots of a cache.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Dense
from research.models.layers.cache import Slots
from research.models.layers.context import Context
from research.models.layers.norm import Norm
from research.models.layers.options import ACTIVATIONS, Options, normal
from research.ops.attention import attend, attention
from research.ops.dropout import dropout
from research.ops.rotary import rotate
from research.ops.slots import write

# Tell the dropouts of one block apart. Not by path: under a scan all blocks have one path, and masks must not change.
SALT_WEIGHTS, SALT_ATTENTION, SALT_MLP = 1, 2, 3


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D], and the slots with the T tokens written into them.

    x + attention(norm1(x)), then x + mlp(norm2(x)); with prenorm=False norm1(x + attention(x)), norm2(x + mlp(x)).
    """

    options: Options

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: Context,
        keys: jax.Array | None = None,
        layer: jax.Array | int = 0,
        slots: Slots | None = None,
    ) -> tuple[jax.Array, Slots | None]:
        """`keys` [B] of the model and the block's number `layer` choose what is dropped; keys None = nothing."""
        o = self.options
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return Norm(o.norm, o.norm_epsilon, o.norm_offset, name=name)(x)

        y = norm("norm1", x) if o.prenorm else x
        y, slots = Attention(o, name="attention")(y, context, keys, slots)
        y = norm("norm1_post", y) if o.norm_after else y
        x = x + dropout(y, keys, o.dropout, SALT_ATTENTION)
        x = x if o.prenorm else norm("norm1", x)

        y = norm("norm2", x) if o.prenorm else x
        y = Mlp(o, name="mlp")(y)
        y = norm("norm2_post", y) if o.norm_after else y
        x = x + dropout(y, keys, o.dropout, SALT_MLP)
        return (x if o.prenorm else norm("norm2", x)), slots


class Attention(nn.Module):
    """Intermediate without a cache: 'weights' [B, H, T, T]."""

    options: Options

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, keys: jax.Array | None, slots: Slots | None
    ) -> tuple[jax.Array, Slots | None]:
        o = self.options
        b, t, _ = x.shape

        def heads(name: str, count: int) -> jax.Array:
            y = Dense(count * o.head_width, normal(), o.dtype, o.qkv_bias, name=name)(x)
            y = y.reshape(b, t, count, o.head_width)
            if o.qk_norm and name != "value":
                y = Norm("rms", o.norm_epsilon, o.norm_offset, name=f"{name}_norm")(y)
            return rotate(y, *context.turns) if context.turns and name != "value" else y

        q, k, v = heads("query", o.heads), heads("key", o.kv_heads), heads("value", o.kv_heads)
        how: dict[str, Any] = {
            "mask": context.mask,
            "scale": o.attention_scale,
            "softcap": o.attention_softcap,
            "keys": keys,
            "rate": o.attention_dropout,
            "salt": SALT_WEIGHTS,
        }
        if slots is None:
            wanted = self.is_mutable_collection("intermediates")
            tiles = (context.view, o.attention_block) if context.view else None
            y, weights = attention(q, k, v, causal=o.causal, weights=wanted, tiles=tiles, **how)
            self.sow("intermediates", "weights", weights)
        else:
            q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))  # [B, heads, T, E]
            k, v = write((slots.keys, slots.values), (k, v), slots.place)
            slots = Slots(k, v, slots.place)
            y = attend(q, k, v, **how)[0].swapaxes(1, 2)
        y = y.reshape(b, t, o.heads * o.head_width)
        return Dense(o.width, normal(o), o.dtype, o.out_bias, name="out")(y), slots


class Mlp(nn.Module):
    """down(activation(up(x))), or gated down(activation(gate(x)) up(x)) (Shazeer 2020)."""

    options: Options

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        activation = ACTIVATIONS[o.activation]
        up = Dense(o.hidden, normal(), o.dtype, o.mlp_bias, name="up")(x)
        if o.gated:
            gate = Dense(o.hidden, normal(), o.dtype, o.mlp_bias, name="gate")(x)
            y = jax.checkpoint(lambda gate, up: activation(gate) * up)(gate, up)
        else:
            # What the gradient needs of it is cheaper to compute again than to keep; gelu's sees to that itself.
            y = activation(up) if o.activation == "gelu" else jax.checkpoint(activation)(up)
        return Dense(o.width, normal(o), o.dtype, o.mlp_bias, name="down")(y)


class MaskedHead(nn.Module):
    """BERT's: norm(activation(dense(x))), x [B, T, D], and the bias [V] that comes after the output's matrix."""

    options: Options
    vocab_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        o = self.options
        x = ACTIVATIONS[o.activation](Dense(o.width, normal(), o.dtype, name="dense")(x))
        x = Norm(o.norm, o.norm_epsilon, o.norm_offset, name="norm")(x)
        return x, self.param("bias", nn.initializers.zeros, (self.vocab_size,), jnp.float32)
