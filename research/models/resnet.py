"""Residual networks (He et al. 2015), as torchvision builds them (stride on the 3x3 convolution of a bottleneck).

B examples, H, W, K height, width and channels of a picture, C classes, D channels inside.

    depth  block       blocks in a stage   parameters (stem 'imagenet', 3 channels, 1000 classes)
    18     basic       2, 2, 2, 2          11,689,512
    34     basic       3, 4, 6, 3          21,797,672
    50     bottleneck  3, 4, 6, 3          25,557,032

Names follow torchvision: `layer1.0.conv1` is 'layer1_0/conv1', `downsample.0` and `.1` are 'downsample_conv' and
'downsample_bn', `fc` is 'head'. Padding is symmetric, as there, so its weights give its outputs.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Conv, Dense, Dropout, batch_norm, named
from research.ops.pool import global_avg_pool, max_pool

# Parameter paths from the picture to the classes; numbers count within a pattern.
LAYERS = (r"conv1/|bn1/", r"layer(\d+)_(\d+)/", r"head/")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al. 2015, as torchvision


class Basic(nn.Module):
    """relu(x + bn(conv3x3(relu(bn(conv3x3(x)))))), x [B, H, W, D] -> [B, H/stride, W/stride, features]."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        # Zeros: at first each block is the identity (Goyal et al. 2017).
        y = self.norm(scale_init=nn.initializers.zeros, name="bn2")(y)
        return nn.relu(y + _shortcut(self, x, self.features))


class Bottleneck(nn.Module):
    """1x1 to `features`, 3x3, 1x1 to 4 * features, and the shortcut."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm(name="bn1")(self.conv(self.features, 1, name="conv1")(x)))
        y = self.conv(self.features, 3, self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, 1, name="conv3")(y)
        y = self.norm(scale_init=nn.initializers.zeros, name="bn3")(y)
        return nn.relu(y + _shortcut(self, x, 4 * self.features))


def _shortcut(block: Basic | Bottleneck, x: jax.Array, features: int) -> jax.Array:
    """x itself, or projected where the block changes its shape."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, padding="VALID", name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


class Model(nn.Module):
    """Intermediates: 'stem', 'layer1'..'layer4' [B, H', W', D], 'pooled' [B, D], 'logits' [B, C].

    Raises:
      ValueError: an option is wrong.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    depth: int = 18  # 18, 34 or 50
    width: int = 64  # of the first stage; doubled by each of the others
    stem: str = "small"  # 3x3 and no pooling, or 'imagenet': 7x7 with stride 2 and a 3x3 max-pool with stride 2
    dropout: float = 0.0  # before the head

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """x float32 [B, H, W, K] and keys [B] (None = no dropout) -> logits float32 [B, C]."""
        if self.depth not in BLOCKS:
            raise ValueError(
                f"config.model.depth={self.depth} is none of {', '.join(map(str, BLOCKS))}"
            )
        if self.stem not in ("small", "imagenet"):
            raise ValueError(f"config.model.stem={self.stem!r} is none of small, imagenet")
        conv = partial(Conv, use_bias=False, kernel_init=he, dtype=self.dtype)
        norm = batch_norm(train=train, dtype=self.dtype, axis_name=self.axis_name)
        x = x.astype(self.dtype)
        if self.stem == "small":
            x = nn.relu(norm(name="bn1")(conv(self.width, 3, padding=1, name="conv1")(x)))
        else:
            x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, padding=3, name="conv1")(x)))
            x = max_pool(x, 3, stride=2, padding=1)
        x = named(self, "stem", x)
        block = Bottleneck if self.depth >= 50 else Basic
        for stage, count in enumerate(BLOCKS[self.depth], 1):
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                features = self.width * 2 ** (stage - 1)
                x = block(features, stride, conv, norm, name=f"layer{stage}_{i}")(x)
            x = named(self, f"layer{stage}", x)
        x = global_avg_pool(x)
        x = named(self, "pooled", x)
        x = Dropout(self.dropout, name="dropout")(x, keys if train else None)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        self.sow("intermediates", "logits", logits)
        return logits
