"""Which form of an operation runs where: the one place that knows the platforms' names beside `lax.platform_dependent`.

The choice is made when a program is traced, for the backend that is the default then. Each form is right on every
platform, so a program that is carried to another one (an export) computes the same there.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Of cuDNN's fused attention, which computes in half precision (jax 0.10 to 0.12): the widest head.
CUDNN_WIDEST = 128


def on_cpu() -> bool:
    """Whether the default backend is the CPU."""
    return jax.default_backend() == "cpu"


def attention_form(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    dtype: Any,
    *,
    softcap: float,
    dropped: bool,
    weights: bool,
    backend: str | None = None,
) -> str:
    """Returns the form of attention: 'rows' (a gradient written out), 'cudnn' or 'plain'.

    Args:
      queries, keys: their shapes, [B, T, H, E] and [B, S, K, E].
      dtype: of both.
      softcap: 0 = none.
      dropped: whether weights are dropped.
      weights: whether they are wanted.
      backend: 'cpu', 'gpu', 'tpu'; None = the default one.
    """
    backend = backend or jax.default_backend()
    if weights or dropped:
        return "plain"
    if backend == "cpu":
        return "rows"
    half = dtype in (jnp.bfloat16, jnp.float16)
    # Its gradient needs even lengths, and all its forms a head that is cut into eights.
    even = queries[1] % 2 == 0 and keys[1] % 2 == 0
    width = queries[3]
    if backend == "gpu" and half and even and width % 8 == 0 and width <= CUDNN_WIDEST:
        return "plain" if softcap else "cudnn"
    return "plain"
