"""What an adapter computes beside its layer, and the kernel that the two amount to.

B examples, R the rank, D channels out. By kind of layer, the adapter's factors 'lora_a' and 'lora_b':

    layer          kernel          lora_a              lora_b         beside the layer
    Dense          [C, D]          [C, R] uniform      [R, D] zeros   x A, times B
    Conv           [K, N, C, D]    [K, N, C, R] unif.  [R, D] zeros   its own convolution with A, then 1x1 with B
    DepthwiseConv  [K, N, 1, D]    [K*N, R] uniform    [R, D] zeros   its own convolution with the product A B
    Embed          [V, D]          [V, R] zeros        [R, D] normal  rows of A, times B

Forms and initial values are those of PEFT 0.21 (kaiming uniform with a = sqrt(5) is uniform within 1 / sqrt(fan in)).
PEFT has no depthwise form: there A and B make a kernel first, so the gradient of that product is of the kernel's size.
The product of the flattened factors is the change of the kernel for every kind, which is what a merge adds.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from research.models.layers import Conv, Dense
from research.ops.dense import dense
from research.ops.dropout import dropout

KERNELS = {
    "Dense": "kernel",
    "Conv": "kernel",
    "DepthwiseConv": "kernel",
    "Embed": "embedding",
}  # kind -> the name of the parameter that is adapted
# A DoRA column whose norm is zero stays zero; nothing is divided by 0.
TINY = float(jnp.finfo(jnp.float32).tiny)


def kind_of(module: nn.Module) -> str | None:
    """Returns a key of KERNELS, or None for a module that gets no adapter."""
    # By name: what applies a kernel [K, N, 1, D] to each channel, wherever it is defined.
    if any(cls.__name__ == "DepthwiseConv" for cls in type(module).__mro__):
        return "DepthwiseConv"
    kinds = {Dense: "Dense", Conv: "Conv", nn.Embed: "Embed"}
    return next((kind for cls, kind in kinds.items() if isinstance(module, cls)), None)


def scale(lora: Any) -> float:
    """alpha / R, or alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023)."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def effective(kernel: jax.Array, leaves: dict[str, jax.Array], s: float) -> jax.Array:
    """Returns W + s A B, or its columns rescaled by the `gain` (DoRA), float32 and of the kernel's shape.

    Args:
      kernel: W, of any of the shapes above.
      leaves: 'lora_a' and 'lora_b', and with DoRA 'lora_m' [D].
      s: the scale.
    """
    changed = _changed(kernel, leaves["lora_a"], leaves["lora_b"], s)
    return changed * gain(kernel, leaves, s) if "lora_m" in leaves else changed


def gain(kernel: jax.Array, leaves: dict[str, jax.Array], s: float) -> jax.Array:
    """m ||W|| / ||W + s A B||, norms of columns (over all axes but the last) -> float32 [D].

    DoRA's magnitude (Liu et al. 2024) is ||W|| m here, m starting at 1: the same function, but its initial value does
    not depend on W, which may come from a file after the parameters are made. The norms are constants to the gradient
    (section 4.3 of the paper), as in PEFT.
    """
    before = _norm(kernel.astype(jnp.float32))
    after = _norm(_changed(kernel, leaves["lora_a"], leaves["lora_b"], s))
    return leaves["lora_m"] * jax.lax.stop_gradient(before / jnp.maximum(after, TINY))


def call(
    kind: str,
    module: nn.Module,
    lora: Any,
    base: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    keys: jax.Array | None,
    alone: Callable[[Callable[[], jax.Array]], jax.Array],
) -> jax.Array:
    """Returns W x + b + s B A drop(x), or with DoRA g (W x + s B A drop(x)) + b, in the layer's dtype.

    The factored form: no gradient by W is needed for that by A and B (DepthwiseConv excepted, see above).

    Args:
      kind: of `module`; see `kind_of`.
      module: the bound layer, whose scope holds the adapter's parameters too.
      lora: the section `config.lora`.
      base: the layer itself.
      x: [B, ...] what the layer is called with; an Embed's are integers, and are not dropped.
      keys: typed keys [B] of the dropout; None = no dropout.
      alone: runs a function in which no further layer is adapted.

    Raises:
      ValueError: dropout before a layer whose first axis is not the examples'.
    """
    # First: when parameters are made, the layer's own draw the keys that they draw without an adapter.
    y = base(x)
    kernel: Any = module.get_variable("params", KERNELS[kind])
    leaves, s = _leaves(kind, module, lora, kernel), scale(lora)
    a, b = leaves["lora_a"].astype(y.dtype), leaves["lora_b"].astype(y.dtype)
    if kind == "Embed":
        beside = dense(jnp.take(a, x, axis=0), b)
    else:
        x = _drop(x.astype(y.dtype), keys, lora.dropout, module.path)
        if kind == "Dense":
            beside = dense(dense(x, a), b)
        elif kind == "Conv":
            beside = dense(alone(lambda: _convolved(module, a, x)), b)
        else:
            beside = alone(lambda: _convolved(module, (a @ b).reshape(kernel.shape), x))
    if "lora_m" not in leaves:
        return y + s * beside
    g = gain(kernel, leaves, s)
    plain = y
    if module.has_variable("params", "bias"):
        plain = y - module.get_variable("params", "bias").astype(y.dtype)
    # In this form an untrained adapter changes nothing, to the bit, where g is 1.
    return y + (g - 1.0).astype(y.dtype) * plain + g.astype(y.dtype) * (s * beside)


def attend(
    module: nn.Embed, lora: Any, base: Callable[[jax.Array], jax.Array], query: jax.Array
) -> jax.Array:
    """The adapted `Embed.attend`: query [..., D] times the transpose of (E + s A B) g -> [..., V]."""
    embedding: Any = module.get_variable("params", "embedding")
    leaves, s = _leaves("Embed", module, lora, embedding), scale(lora)
    if "lora_m" in leaves:
        query = query * gain(embedding, leaves, s).astype(query.dtype)
    y = base(query)
    a, b = leaves["lora_a"].astype(y.dtype), leaves["lora_b"].astype(y.dtype)
    return y + s * dense(dense(query.astype(y.dtype), b.T), a.T)


def _leaves(kind: str, module: nn.Module, lora: Any, kernel: jax.Array) -> dict[str, jax.Array]:
    """The adapter's parameters, float32; made if parameters are being made."""
    fan_in, out, r = math.prod(kernel.shape[:-1]), kernel.shape[-1], lora.rank
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    rows = (*kernel.shape[:-1], r) if kind == "Conv" else (fan_in, r)
    zeros, normal = nn.initializers.zeros, nn.initializers.normal(1.0)
    init_a, init_b = (zeros, normal) if kind == "Embed" else (uniform, zeros)
    made = {"lora_a": _param(module, "lora_a", init_a, rows)}
    made["lora_b"] = _param(module, "lora_b", init_b, (r, out))
    if lora.dora:
        made["lora_m"] = _param(module, "lora_m", nn.initializers.ones, (out,))
    return made


def _param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """`module.param`, also outside of a compact method (Embed has a setup) and when a layer is called twice."""
    scope = module.scope
    assert scope is not None
    if not scope.has_variable("params", name):
        return scope.param(name, init, shape, jnp.float32)
    value = scope.get_variable("params", name)
    if value.shape != shape:  # another rank, say
        raise ScopeParamShapeError(name, scope.path_text, value.shape, shape)
    return value


def _drop(x: jax.Array, keys: jax.Array | None, rate: float, path: tuple[str, ...]) -> jax.Array:
    if keys is None or not rate:
        return x
    if x.shape[0] != keys.shape[0]:
        raise ValueError(
            f"config.lora.dropout={rate}: layer '{'/'.join(path)}' is called with {x.shape[0]} rows for "
            f"{keys.shape[0]} examples, so none of them is an example's own; set it to 0 or leave the layer out"
        )
    return dropout(x, keys, rate, zlib.crc32("/".join((*path, "lora")).encode()))


def _convolved(module: nn.Module, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """The layer's own convolution, with its stride and padding, with another kernel and without its bias."""
    fields: dict[str, Any] = {"parent": None, "features": kernel.shape[-1], "use_bias": False}
    known = {key: value for key, value in fields.items() if key == "parent" or hasattr(module, key)}
    return module.clone(**known).apply({"params": {"kernel": kernel}}, x)  # type: ignore[return-value]


def _changed(kernel: jax.Array, a: jax.Array, b: jax.Array, s: float) -> jax.Array:
    product = jnp.matmul(a.reshape(-1, a.shape[-1]), b, precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(jnp.float32) + s * product.reshape(kernel.shape)


def _norm(kernel: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(kernel.ndim - 1))))
