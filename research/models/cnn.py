"""A family of small convolutional networks: stages of convolutions, pooling, dense layers, a head.

B examples, H, W, K height, width and channels of a picture, C classes. The default is conv 32, pool, conv 64, pool,
conv 64, dense 64, dense C with 3x3 kernels: 93,322 parameters on 28x28x1 and 10 classes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Conv, Dense, Dropout, batch_norm, named
from research.ops.pool import global_avg_pool, max_pool

# Parameter paths from the picture to the classes; numbers count within a pattern.
LAYERS = (r"stage(\d+)_", r"dense(\d+)/", r"head/")


class Model(nn.Module):
    """Intermediates: 'stage1'... [B, H', W', features] (before pooling), 'pooled' [B, D], 'logits' [B, C].

    Raises:
      ValueError: an option is wrong, or the picture is too small for the stages.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    features: tuple[int, ...] = (32, 64, 64)  # of each stage
    convs: int = 1  # convolutions in a stage
    kernel: int = 3  # side, in pixels
    padding: str = "VALID"  # or 'SAME'
    pool: tuple[int, ...] = (1, 2)  # the stages, counted from 1, that a 2x2 max-pool follows
    norm: str = "none"  # or 'batch', between convolution and relu
    norm_epsilon: float = (
        1e-5  # added to a variance before it is divided by; Keras' default is 1e-3
    )
    head: str = "flatten"  # or 'avg', the mean over the picture
    dense: tuple[int, ...] = (64,)  # hidden layers between picture and head
    dropout: float = 0.0  # before each dense layer and the head

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """x float32 [B, H, W, K] and keys [B] (None = no dropout) -> logits float32 [B, C]."""
        self._check(x.shape)
        keys = keys if train else None
        batch = self.norm == "batch"
        norm = batch_norm(
            train=train, dtype=self.dtype, axis_name=self.axis_name, epsilon=self.norm_epsilon
        )
        x = x.astype(self.dtype)
        for stage, features in enumerate(self.features, 1):
            pooled = stage in self.pool
            in_one = pooled and not batch and not self._wanted(f"stage{stage}")
            for i in range(1, self.convs + 1):
                conv = Conv(
                    features,
                    self.kernel,
                    padding=self.padding,
                    use_bias=not batch,  # batch norm has one
                    dtype=self.dtype,
                    name=f"stage{stage}_conv{i}",
                )
                if in_one and i == self.convs:
                    x = conv.relu_pooled(x)
                    continue
                x = conv(x)
                if batch:
                    x = norm(name=f"stage{stage}_norm{i}")(x)
                x = nn.relu(x)
            if not in_one:
                x = named(self, f"stage{stage}", x)
                x = max_pool(x) if pooled else x
        x = x.reshape(x.shape[0], -1) if self.head == "flatten" else global_avg_pool(x)
        x = named(self, "pooled", x)
        for i, width in enumerate(self.dense, 1):
            x = Dropout(self.dropout, name=f"dropout{i}")(x, keys)
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
        x = Dropout(self.dropout, name="dropout_head")(x, keys)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        self.sow("intermediates", "logits", logits)
        return logits

    def _wanted(self, name: str) -> bool:
        """Whether an intermediate is looked at, or given."""
        return self.is_mutable_collection("intermediates") or self.has_variable("given", name)

    def _check(self, shape: tuple[int, ...]) -> None:
        allowed = {
            "padding": ("VALID", "SAME"),
            "norm": ("none", "batch"),
            "head": ("flatten", "avg"),
        }
        for option, choices in allowed.items():
            if getattr(self, option) not in choices:
                raise ValueError(
                    f"config.model.{option}={getattr(self, option)!r} is none of {', '.join(choices)}"
                )
        if not set(self.pool) <= set(range(1, len(self.features) + 1)):
            raise ValueError(
                f"config.model.pool={self.pool} names a stage that is not there: features={self.features}"
            )
        height, width = shape[1:3]
        for stage in range(1, len(self.features) + 1):
            if self.padding == "VALID":
                height, width = (side - self.convs * (self.kernel - 1) for side in (height, width))
            if stage in self.pool:
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ValueError(
                    f"pictures of {shape[1]}x{shape[2]} are too small: nothing is left after stage {stage} of "
                    f"{len(self.features)}; use config.model.padding='SAME', fewer "
                    "config.model.features or a shorter config.model.pool"
                )
