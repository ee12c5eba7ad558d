"""Which form of an operation runs where: the one place that knows the platforms' names beside `lax.platform_dependent`.

The choice is made when a program is traced, for the backend that is the default then. What is traced `portable` takes
forms that run everywhere.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

# Of cuDNN's fused attention, which computes in half precision (jax 0.10 to 0.12): the widest head.
CUDNN_WIDEST = 128
CUDNN_CAPABILITY = 8.0  # of NVIDIA's GPUs, from which on there is such a form
_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced meanwhile is for other machines and readers: operations that all of them know."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def is_portable() -> bool:
    """Whether what is traced now is for other machines."""
    return _portable.get()


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
) -> str:
    """Returns the form of attention: 'rows' (a gradient written out), 'cudnn' or 'plain'.

    Args:
      queries, keys: their shapes, [B, T, H, E] and [B, S, K, E].
      dtype: of both.
      softcap: 0 = none.
      dropped: whether weights are dropped.
      weights: whether they are wanted.
    """
    if weights or dropped or is_portable():
        return "plain"
    backend = _backend()
    if backend == "cpu":
        return "rows"
    half = dtype in (jnp.bfloat16, jnp.float16)
    # Its gradient needs even lengths, and all its forms a head that is cut into eights.
    even = queries[1] % 2 == 0 and keys[1] % 2 == 0
    width = queries[3]
    if backend == "gpu" and half and even and width % 8 == 0 and width <= CUDNN_WIDEST:
        return "plain" if softcap else "cudnn"
    return "plain"


def _backend() -> str:
    """The default one; a GPU without cuDNN's attention (another maker's, or an old one) is a 'gpu without'."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    try:
        capability = float(getattr(jax.devices()[0], "compute_capability", "0"))
    except ValueError:  # names of other makers, such as gfx90a
        capability = 0.0
    return "gpu" if capability >= CUDNN_CAPABILITY else "gpu without"
