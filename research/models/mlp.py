"""A multilayer perceptron on flattened inputs. B examples, C classes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.layers import Dense, Dropout, named

# Parameter paths from the picture to the classes; numbers count within a pattern.
LAYERS = (r"dense(\d+)/", r"head/")


class Model(nn.Module):
    """Intermediates: 'layer1'... [B, width], 'pooled' (the last of them), 'logits' [B, C]."""

    num_classes: int
    dtype: Any
    axis_name: str | None
    widths: tuple[int, ...] = (256, 256)  # of the hidden layers
    dropout: float = 0.0  # after each hidden layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """x float32 [B, ...] and keys [B] (None = no dropout) -> logits float32 [B, C]."""
        keys = keys if train else None
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths, 1):
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
            x = named(self, f"layer{i}", x)
            x = Dropout(self.dropout, name=f"dropout{i}")(x, keys)
        x = named(self, "pooled", x)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        self.sow("intermediates", "logits", logits)
        return logits
