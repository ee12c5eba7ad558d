"""LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al. 2024) for any model, which stays as it is.

A Linen interceptor computes s B A x beside each layer that a pattern chooses, and keeps the factors beside that layer's
kernel: 'block_3/qkv/kernel' gets 'block_3/qkv/lora_a' and '.../lora_b' (and '.../lora_m' with DoRA). An adapter starts
as nothing: the adapted model's first outputs are the base's. What each kind of layer gets stands in lora_layers.py.

`config.lora` throughout: rank, alpha, rslora, dora, dropout, layers, train. `re.match` is how patterns apply, as for
the optimizer's groups: to layer paths such as 'block_3/qkv' (layers), to parameter paths such as 'head/bias' (train).
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from research.errors import UserErrors, nearest
from research.ops.pool import max_pool
from research.task import Params, Task
from research.transfer import lora_layers

LEAVES = r"(.*/)?lora_[abm]$"
KINDS = "Dense, Conv, DepthwiseConv or Embed layer"


def adapt(task: Task, lora: Any) -> Task:
    """Returns the task with adapters; with rank 0, the task itself.

    Its `init` gives the parameters of the plain task, to the bit, and the adapters' beside them, float32. A layer whose
    kernel matches `lora.train` is trained as it is and gets none. Dropout (of what enters an adapter; while training)
    draws from the keys [B] that the model is called with, so it does not depend on how a batch is cut.

    Args:
      task: its model is called as `model(x, train=..., keys=[B] or None)`.
      lora: the section `config.lora`.

    Raises:
      UserErrors: a pattern is no regular expression.
    """
    if not lora.rank:
        return task
    if errors := _pattern_errors(lora):
        raise UserErrors(errors)

    def adapted(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with nn.intercept_methods(_interceptor(lora)):
                return function(*args, **kwargs)

        return run

    return task._replace(
        init=adapted(task.init),
        loss=adapted(task.loss),
        predict=adapted(task.predict),
        intermediates=adapted(task.intermediates),
        features=adapted(task.features),
        generate=adapted(task.generate) if task.generate else None,
    )


def is_adapter(path: str) -> bool:
    """True of the path of a parameter that belongs to an adapter."""
    return re.match(LEAVES, path) is not None


def merge(params: Params, lora: Any) -> Params:
    """Returns the parameters of the plain model that computes what the adapted one does (without dropout).

    Kernels become W + s A B, rescaled by columns with DoRA, summed in float32; adapters are gone, all else is
    untouched. Equal up to rounding: the products are summed in another order, and where the model computes in
    bfloat16 the merged kernel is rounded as a whole.
    """
    if not isinstance(params, Mapping):
        return params
    kept = {key: merge(value, lora) for key, value in params.items() if not is_adapter(key)}
    leaves = {key: value for key, value in params.items() if is_adapter(key)}
    if leaves:
        name = "embedding" if "embedding" in kept else "kernel"
        kernel = kept[name]
        new = lora_layers.effective(kernel, leaves, lora_layers.scale(lora))
        kept[name] = new.astype(kernel.dtype)
    return kept


def groups(lora: Any) -> tuple:
    """Returns `config.optimizer.groups` for a config that names none.

    The adapters and what matches `lora.train` train, all else is frozen; with rank 0 it is (): everything trains.
    """
    if not lora.rank:
        return ()
    return ((LEAVES, ()), *((pattern, ()) for pattern in lora.train), (r".*", None))


def problems(lora: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Returns every mistake of the section that shows once the shapes are known, one line each.

    Args:
      lora: the section `config.lora`.
      before: {path: anything} of the plain task's parameters.
      after: {path: array or shape struct} of the adapted task's.
    """
    if not lora.rank:
        return []
    if errors := _pattern_errors(lora):
        return errors
    adapted = [path.removesuffix("/lora_a") for path in after if path.endswith("/lora_a")]
    layers = {path.rpartition("/")[0]: path for path in before if _is_kernel(path)}
    lines = []
    for pattern in lora.layers:
        if any(re.match(pattern, layer) for layer in adapted):
            continue
        as_they_are = [
            x for x, p in layers.items() if re.match(pattern, x) and _matches(lora.train, p)
        ]
        if as_they_are:
            lines.append(
                f"config.lora.layers: {pattern!r} matches only what config.lora.train trains as it is "
                f"({_some(as_they_are)}); name other layers, or shorten config.lora.train"
            )
        else:
            near = difflib.get_close_matches(pattern, adapted or list(layers), n=3, cutoff=0.0)
            lines.append(
                f"config.lora.layers: {pattern!r} matches no {KINDS}; nearest: {_some(near)}"
            )
    lines += [
        f"config.lora.train: {pattern!r} matches no parameter{nearest(pattern, before)}; "
        f"there are {_some(list(before))}"
        for pattern in lora.train
        if not any(re.match(pattern, path) for path in before)
    ]
    largest = {layer: _largest_rank(after, layer) for layer in adapted}
    if small := [f"{layer} ({most})" for layer, most in largest.items() if lora.rank > most]:
        lines.append(
            f"config.lora.rank={lora.rank}: is more than there is in {_some(small)}; lower it, or choose other "
            "layers by config.lora.layers"
        )
    return lines


def _interceptor(lora: Any) -> Callable:
    """What stands between every call of a module's method and the method, for one call of a model."""
    keys: jax.Array | None = None
    inside = False  # an adapter's own computation

    def alone(function: Callable[[], jax.Array]) -> jax.Array:
        nonlocal inside
        inside = True
        try:
            return function()
        finally:
            inside = False

    def intercept(next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        nonlocal keys
        module, method = context.module, context.method_name
        if inside or method not in ("__call__", "attend", "relu_pooled"):
            return next_fun(*args, **kwargs)
        if not module.path:  # the model
            keys = kwargs.get("keys") if kwargs.get("train") else None
        kind = lora_layers.kind_of(module)
        if kind is None or not _chosen(lora, "/".join(module.path), lora_layers.KERNELS[kind]):
            return next_fun(*args, **kwargs)
        (x,) = (*args, *kwargs.values())  # these layers take one argument
        if method == "relu_pooled":  # an adapter stands between the convolution and relu
            return max_pool(nn.relu(module(x)))
        if method == "attend":
            return lora_layers.attend(module, lora, next_fun, x)
        return lora_layers.call(kind, module, lora, next_fun, x, keys, alone)

    return intercept


def _chosen(lora: Any, layer: str, kernel: str) -> bool:
    return _matches(lora.layers, layer) and not _matches(lora.train, f"{layer}/{kernel}")


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.match(pattern, path) for pattern in patterns)


def _is_kernel(path: str) -> bool:
    return path.endswith(("/kernel", "/embedding"))


def _largest_rank(after: Mapping[str, Any], layer: str) -> int:
    a, b = after[f"{layer}/lora_a"], after[f"{layer}/lora_b"]
    return min(math.prod(a.shape[:-1]), b.shape[-1])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _pattern_errors(lora: Any) -> list[str]:
    errors = []
    for key in ("layers", "train"):
        for pattern in lora[key]:
            try:
                re.compile(pattern)
            except re.error as error:
                errors.append(f"config.lora.{key}: {pattern!r} is no regular expression: {error}")
    return errors
