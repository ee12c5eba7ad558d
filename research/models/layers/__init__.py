"""What the models are put together from. Parameters are float32; `dtype` is what is computed in.

B examples, H, W height and width, C channels in, D out.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.ops import dense as ops_dense
from research.ops import dropout as ops_dropout
from research.ops.batch_norm import batch_norm as batch_norm_op
from research.ops.conv import conv2d
from research.ops.conv_pool import conv_relu_pool
from research.ops.depthwise import depthwise_conv2d

glorot = nn.initializers.glorot_uniform()


class Conv(nn.Module):
    """A convolution, x [B, H, W, C] -> [B, H', W', features]; Keras' initial values (glorot uniform, zero bias)."""

    features: int
    kernel: int = 3  # side, in pixels
    stride: int = 1
    padding: str | int = "SAME"
    use_bias: bool = True
    kernel_init: Callable = glorot
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._computed(x, pooled=False)

    def relu_pooled(self, x: jax.Array) -> jax.Array:
        """Relu and 2x2 max-pool of it, [B, H' // 2, W' // 2, features], which are faster in one."""
        assert self.use_bias and self.stride == 1
        return self._computed(x, pooled=True)

    @nn.compact
    def _computed(self, x: jax.Array, *, pooled: bool) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            bias = bias.astype(self.dtype)
        if pooled:
            return conv_relu_pool(x, kernel, bias, padding=self.padding)
        y = conv2d(x, kernel, stride=self.stride, padding=self.padding)
        return ops_dense.add_bias(y, bias) if self.use_bias else y


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, x [B, H, W, C] -> [B, H', W', C]; the kernel is [K, K, 1, C]."""

    kernel: int = 3  # side, in pixels
    stride: int = 1
    padding: str | int = "SAME"
    use_bias: bool = False
    kernel_init: Callable = glorot
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (self.kernel, self.kernel, 1, channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = depthwise_conv2d(x, kernel, stride=self.stride, padding=self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class Dense(nn.Module):
    """A matrix and perhaps a bias, x [..., C] -> [..., features]; Keras' initial values."""

    features: int
    kernel_init: Callable = glorot
    dtype: Any = jnp.float32
    use_bias: bool = True
    wide: bool = False  # the result is float32 at least: for logits

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = ops_dense.dense(x.astype(self.dtype), kernel.astype(self.dtype), wide=self.wide)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = ops_dense.add_bias(y, bias.astype(y.dtype))
        return y


class Embed(nn.Embed):
    """Flax's, whose `attend`, the product with the rows, x [..., C] -> logits [..., V], is float32 at least."""

    def attend(self, query: jax.Array) -> jax.Array:
        x, rows = query.astype(self.dtype), self.embedding.astype(self.dtype)
        return ops_dense.dense(x, rows.T, wide=True)


class BatchNorm(nn.BatchNorm):
    """Flax's, with the choice of statistics made when it is built, so that an interceptor may still overrule it.

    Statistics of a batch are taken by research/ops/batch_norm.py, unless a mask leaves entries out.
    """

    train: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        running = not self.train if use_running_average is None else use_running_average
        if running or mask is not None or self.is_initializing():
            return super().__call__(x, use_running_average=running, mask=mask)
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        y, *new = batch_norm_op(x, scale, bias, self.epsilon, self.axis_name)
        if self.is_mutable_collection("batch_stats"):
            for kept, seen in zip((mean, variance), new, strict=True):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * seen
        return y.astype(self.dtype or y.dtype)


def named(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Names an intermediate of a model, and returns what the model goes on with: x, or what the caller gives for it.

    A value in the collection 'given' stands in for x, and what x was computed from is then dead code. So the upper part
    of a model runs on features that were computed before: `apply({"params": ..., "given": {"pooled": features}}, x)`.
    """
    if module.has_variable("given", name):
        # In x's own dtype: kept features are float32, and would carry it on along a residual stream of bfloat16.
        x = module.get_variable("given", name).astype(x.dtype)
    module.sow("intermediates", name, x)
    return x


def batch_norm(
    *,
    train: bool,
    dtype: Any,
    axis_name: str | None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> Callable[..., nn.Module]:
    """Returns the constructor of batch norms whose float32 statistics are over the whole batch on every layout.

    Under jit with shardings the mean over the batch is already global; under pmap `axis_name` makes it so. Running
    statistics (decay `momentum`; 0.9 is torchvision's momentum 0.1) live in the collection 'batch_stats'.
    """
    return partial(
        BatchNorm,
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
    )


class Dropout(nn.Module):
    """Dropout per example; see research/ops/dropout.py. Its salt is its place in the model."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        return ops_dropout.dropout(x, keys, self.rate, _salt(self.path))


class DropPath(nn.Module):
    """Stochastic depth per example: drops the whole of a residual branch."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        return ops_dropout.drop_path(x, keys, self.rate, _salt(self.path))


def _salt(path: tuple[str, ...]) -> int:
    return zlib.crc32("/".join(path).encode())
