"""Norms of each token by itself; x [..., D]. Statistics are float32, the result has x's dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.ops.norm import layer_norm, rms_norm


class Norm(nn.Module):
    """Layer norm ('layer': scale and bias), or RMS norm ('rms': scale alone).

    With `offset` the parameter is what the scale differs from 1 by, as in Gemma; it starts at 0.
    """

    kind: str = "layer"
    epsilon: float = 1e-5
    offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", init, shape, jnp.float32)
        if self.offset:
            scale = 1.0 + scale
        if self.kind == "rms":
            return rms_norm(x, scale, self.epsilon)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon)
