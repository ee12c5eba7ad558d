"""EfficientNet-Lite (Tan & Le 2019, "EfficientNet"; the Lite variants of 2020: relu6 and no squeeze-and-excitation).

B examples, H, W, K height, width and channels of a picture, C classes, D channels.

    variant  width  depth  dropout  pictures  blocks  parameters (3 channels, 1000 classes)
    0        1.0    1.0    0.2      224x224   16       4,652,008
    1        1.0    1.1    0.2      240x240   21       5,416,680
    2        1.1    1.2    0.3      260x260   21       6,092,072
    3        1.2    1.4    0.3      280x280   24       8,197,096
    4        1.4    1.8    0.3      300x300   30      13,006,568

The sizes are those that the published weights were trained on; others work as well. Names follow the PyTorch port
(lukemelas): `_blocks.3._expand_conv` is 'block_3/expand_conv', `_bn0` 'bn0', `_conv_head` 'conv_head', `_fc` 'head'.
Padding is TensorFlow's 'SAME', as there, so its weights give its outputs.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Conv, Dense, DepthwiseConv, Dropout, DropPath, batch_norm, named
from research.ops.pool import global_avg_pool

# Parameter paths from the picture to the classes; numbers count within a pattern.
LAYERS = (r"conv_stem/|bn0/", r"block_(\d+)/", r"conv_head/|bn1/", r"head/")
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))  # width, depth
STEM, HEAD = 32, 1280  # channels, the same in every variant
STAGES = (  # blocks, kernel, stride, expansion, channels out; before scaling
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The original's: normal, variance 2 / fan_out, and a depthwise kernel's fan_out is K * K, which here is its fan_in.
he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_depthwise = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # +-1 / sqrt(D), PyTorch's


class Block(nn.Module):
    """x -> 1x1 to `expansion` times the channels, depthwise, 1x1 to `features`; x itself added where the shape stays.

    x [B, H, W, D] -> [B, H/stride, W/stride, features].
    """

    features: int
    kernel: int
    stride: int
    expansion: int
    drop_path: float
    conv: Any
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        y = x
        if self.expansion != 1:
            y = self.conv(x.shape[-1] * self.expansion, 1, name="expand_conv")(y)
            y = nn.relu6(self.norm(name="bn0")(y))
        depthwise = DepthwiseConv(
            self.kernel,
            self.stride,
            kernel_init=he_depthwise,
            dtype=self.dtype,
            name="depthwise_conv",
        )
        y = nn.relu6(self.norm(name="bn1")(depthwise(y)))
        y = self.norm(name="bn2")(self.conv(self.features, 1, name="project_conv")(y))
        if x.shape != y.shape:
            return y
        return x + DropPath(self.drop_path, name="drop_path")(y, keys)


class Model(nn.Module):
    """Intermediates: 'stem', 'stage1'..'stage7' [B, H', W', D], 'pooled' [B, D], 'logits' [B, C].

    Raises:
      ValueError: an option is wrong.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    variant: int = 0  # 0 to 4
    dropout: float = 0.2  # before the head
    drop_path: float = (
        0.2  # grows linearly: of block i of n it is drop_path * i / n (Huang et al. 2016)
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """x float32 [B, H, W, K] and keys [B] (None = no dropout) -> logits float32 [B, C]."""
        if self.variant not in range(len(SCALES)):
            raise ValueError(f"config.model.variant={self.variant} is none of 0, 1, 2, 3, 4")
        keys = keys if train else None
        conv = partial(Conv, use_bias=False, kernel_init=he, dtype=self.dtype)
        norm = batch_norm(
            train=train, dtype=self.dtype, axis_name=self.axis_name, momentum=0.99, epsilon=1e-3
        )
        x = conv(STEM, 3, 2, name="conv_stem")(x.astype(self.dtype))
        x = nn.relu6(norm(name="bn0")(x))
        x = named(self, "stem", x)
        stages = scaled(*SCALES[self.variant])
        total, done = sum(stage[0] for stage in stages), 0
        for number, (count, kernel, stride, expansion, features) in enumerate(stages, 1):
            for i in range(count):
                block = Block(
                    features,
                    kernel,
                    stride if i == 0 else 1,
                    expansion,
                    self.drop_path * done / total,
                    conv,
                    norm,
                    self.dtype,
                    name=f"block_{done}",
                )
                x, done = block(x, keys), done + 1
            x = named(self, f"stage{number}", x)
        x = nn.relu6(norm(name="bn1")(conv(HEAD, 1, name="conv_head")(x)))
        x = global_avg_pool(x)
        x = named(self, "pooled", x)
        x = Dropout(self.dropout, name="dropout")(x, keys)
        head = Dense(self.num_classes, head_init, self.dtype, name="head")
        logits = head(x).astype(jnp.float32)
        self.sow("intermediates", "logits", logits)
        return logits


def scaled(width: float, depth: float) -> list[tuple[int, int, int, int, int]]:
    """STAGES of a variant: channels to a multiple of 8, more blocks but in the first and the last stage."""
    last = len(STAGES) - 1
    return [
        (
            count if i in (0, last) else math.ceil(depth * count),
            kernel,
            stride,
            expansion,
            _round(width * features),
        )
        for i, (count, kernel, stride, expansion, features) in enumerate(STAGES)
    ]


def _round(channels: float) -> int:
    """To the nearest multiple of 8, but by no more than a tenth down."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
