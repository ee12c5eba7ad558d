"""Vision Transformer (Dosovitskiy et al. 2020), pre-norm, with timm's names and initial values.

B examples, H, W, K height, width and channels of a picture, T tokens, D width, C classes.

           width  depth  heads   parameters (patch 16, 224x224x3, 1000 classes, pool 'cls')
    tiny   192    12     3        5,717,416
    small  384    12     6       22,050,664
    base   768    12     12      86,567,656
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Conv, Dense, Dropout, DropPath, named
from research.models.layers.norm import Norm
from research.ops.activations import gelu
from research.ops.attention import attention

# Parameter paths from the picture to the classes; numbers count within a pattern.
LAYERS = (r"patch_embed/|cls_token|pos_embed", r"block_(\d+)/", r"norm/|head/")
# Normal with deviation 0.02, cut at 2 deviations; Flax's corrects for the cut, hence a little less.
init = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x [B, T, D]. Intermediate: 'attention' [B, heads, T, T]."""

    heads: int
    mlp_ratio: float
    dropout: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        b, t, d = x.shape
        y = Norm("layer", 1e-6, name="norm1")(x)
        qkv = Dense(3 * d, init, self.dtype, name="qkv")(y).reshape(
            b, t, 3, self.heads, d // self.heads
        )
        wanted = self.is_mutable_collection("intermediates")
        y, weights = attention(*(qkv[:, :, i] for i in range(3)), weights=wanted)
        self.sow("intermediates", "attention", weights)
        y = Dense(d, init, self.dtype, name="proj")(y.reshape(b, t, d))
        y = Dropout(self.dropout, name="dropout1")(y, keys)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, keys)

        y = Norm("layer", 1e-6, name="norm2")(x)
        y = gelu(Dense(int(d * self.mlp_ratio), init, self.dtype, name="fc1")(y))
        y = Dropout(self.dropout, name="dropout2")(y, keys)
        y = Dense(d, init, self.dtype, name="fc2")(y)
        y = Dropout(self.dropout, name="dropout3")(y, keys)
        return x + DropPath(self.drop_path, name="drop_path2")(y, keys)


class Model(nn.Module):
    """Intermediates: 'embedded', 'block0'... [B, T, D], 'block_0/attention'..., 'pooled' [B, D], 'logits' [B, C].

    Raises:
      ValueError: an option is wrong, or the picture cannot be cut into the patches.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    patch_size: int = 4  # pixels
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    pool: str = "cls"  # a token of its own, or 'gap': the mean of all
    dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; grows linearly from 0 (Huang et al. 2016)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """x float32 [B, H, W, K] and keys [B] (None = no dropout) -> logits float32 [B, C]."""
        self._check(x.shape)
        keys = keys if train else None
        b, p = x.shape[0], self.patch_size
        x = Conv(self.width, p, p, "VALID", kernel_init=init, dtype=self.dtype, name="patch_embed")(
            x
        )
        x = x.reshape(b, -1, self.width)
        if self.pool == "cls":
            token = self.param(
                "cls_token", nn.initializers.normal(1e-6), (1, 1, self.width), jnp.float32
            )
            token = jnp.broadcast_to(token.astype(self.dtype), (b, 1, self.width))
            x = jnp.concatenate([token, x], 1)
        position = self.param("pos_embed", init, (1, *x.shape[1:]), jnp.float32)
        x = Dropout(self.dropout, name="dropout")(x + position.astype(self.dtype), keys)
        x = named(self, "embedded", x)
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            block = Block(
                self.heads, self.mlp_ratio, self.dropout, rate, self.dtype, name=f"block_{i}"
            )
            x = block(x, keys)
            x = named(self, f"block{i}", x)
        x = Norm("layer", 1e-6, name="norm")(x)
        x = x[:, 0] if self.pool == "cls" else x.mean(1, dtype=jnp.float32)
        x = named(self, "pooled", x)
        logits = Dense(self.num_classes, init, self.dtype, name="head")(x).astype(jnp.float32)
        self.sow("intermediates", "logits", logits)
        return logits

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.pool not in ("cls", "gap"):
            raise ValueError(f"config.model.pool={self.pool!r} is none of cls, gap")
        if self.width % self.heads:
            raise ValueError(
                f"config.model.width={self.width} does not divide by config.model.heads={self.heads}"
            )
        if shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise ValueError(
                f"pictures of {shape[1]}x{shape[2]} cannot be cut into patches of "
                f"config.model.patch_size={self.patch_size}"
            )
