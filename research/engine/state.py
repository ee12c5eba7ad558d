"""What a train step takes and gives back: arrays only."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from research.engine import rng
from research.task import Params, Task


@struct.dataclass
class TrainState:
    step: jax.Array  # [] int32, updates made so far
    params: Params  # what is trained
    model_state: Params  # batch statistics and the like
    opt_state: optax.OptState
    ema: Params | None  # moving average of params, which is then what is evaluated; None is off


def create(task: Task, tx: optax.GradientTransformation, *, seed: int, ema: float) -> TrainState:
    """Returns the state before the first step; a pure function of the seed, meant to be jitted."""
    params, model_state = task.init(rng.stream_key(seed, "init"))
    return TrainState(
        step=jax.numpy.int32(0),
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        ema=jax.tree.map(jax.numpy.array, params) if ema else None,
    )


def evaluated_params(state: TrainState) -> Params:
    """The parameters that evaluation, prediction and export use."""
    return state.params if state.ema is None else state.ema


def with_constants(state: TrainState, task: Task) -> TrainState:
    """Puts in the parts of model_state that the task holds and no step changes."""
    return dataclasses.replace(state, model_state={**state.model_state, **task.constants()})


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {'conv/kernel': leaf} in the order of the tree."""
    return {
        "/".join(_name(key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


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
