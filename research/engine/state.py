"""What a train step takes and gives back: arrays only."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from research.engine import rng
from research.task import Params, Task

Keep = Callable[[str], bool]  # whether a parameter, by its path, belongs to a part


@struct.dataclass
class TrainState:
    step: jax.Array  # [] int32, updates made so far
    params: Params  # all of them, trained and frozen
    model_state: Params  # batch statistics and the like
    opt_state: optax.OptState  # of what is trained by now, alone
    ema: Params | None  # moving average, which is then what is evaluated; None where frozen, or off


def create(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema: float,
    trainable: Keep = lambda path: True,
) -> TrainState:
    """Returns the state before the first step; a pure function of the seed, meant to be jitted."""
    params, model_state = task.init(rng.stream_key(seed, "init"))
    trained, _ = split(params, trainable)
    return TrainState(
        step=jax.numpy.int32(0),
        params=params,
        model_state=model_state,
        opt_state=tx.init(trained),
        ema=jax.tree.map(jax.numpy.array, trained) if ema else None,
    )


def evaluated_params(state: TrainState) -> Params:
    """The parameters that evaluation, prediction and export use."""
    return state.params if state.ema is None else join(state.ema, state.params)


def split(tree: Params, keep: Keep) -> tuple[Params, Params]:
    """Splits a tree into two of its structure, None marking what is in the other."""

    def part(wanted: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if keep(path_name(path)) is wanted else None, tree
        )

    return part(True), part(False)


def join(first: Params, second: Params) -> Params:
    """The inverse of `split`; where both have a leaf, the first one's."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {'conv/kernel': leaf} in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def path_name(path: Iterable[Any]) -> str:
    """Returns 'conv/kernel' for a path of JAX's."""
    return "/".join(map(_name, path))


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def params_sha256(params: Params) -> str:
    """The hash by which two runs are compared: over the sorted paths and their raw bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(named_leaves(params).items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
