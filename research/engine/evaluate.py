"""Predictions of a whole split, in order, without the padding."""

from collections.abc import Callable
from typing import Any

import numpy as np

from research.data.prefetch import prefetch
from research.engine.parallel import Parallel
from research.engine.state import TrainState, evaluated_params
from research.task import Batch, Params, Task


def predict_split(
    config: Any, task: Task, parallel: Parallel, predict: Callable, state: TrainState, split: str
) -> dict[str, np.ndarray]:
    """Returns the predictions of a split, {name: [N, ...]}, by the parameters that are evaluated."""
    return predictions(
        predict,
        evaluated_params(state),
        state.model_state,
        lambda n, rows: task.data.eval_batch(split, n, rows),
        size=task.data.sizes[split],
        batch_size=config.eval.batch_size,
        parallel=parallel,
    )


def first_batch(config: Any, task: Task, parallel: Parallel, split: str) -> Batch:
    """Returns the first of the batches, on devices, that `predict_split` hands to `predict`."""
    rows = parallel.rows(_batch_size(task.data.sizes[split], config.eval.batch_size, parallel))
    return parallel.put_batch(task.data.eval_batch(split, 0, rows))


def predictions(
    predict: Callable[[Params, Params, Batch], dict[str, Any]],
    params: Params,
    model_state: Params,
    batch: Callable[[int, slice], Batch],
    *,
    size: int,
    batch_size: int,
    parallel: Parallel,
) -> dict[str, np.ndarray]:
    """Returns {name: [size, ...]} of what `predict`, mapped by `parallel`, says of `size` examples."""
    batch_size = _batch_size(size, batch_size, parallel)
    rows = parallel.rows(batch_size)
    parts = []
    with prefetch(
        lambda n: parallel.put_batch(batch(n, rows)), 0, -(-size // batch_size), depth=2
    ) as batches:
        for _, placed in batches:
            parts.append(predict(params, model_state, placed))
    outputs = [parallel.take(part) for part in parts]
    return {name: np.concatenate([part[name] for part in outputs])[:size] for name in outputs[0]}


def _batch_size(size: int, batch_size: int, parallel: Parallel) -> int:
    """A split smaller than a batch is padded no further than the devices need."""
    return min(batch_size, -(-size // parallel.device_count) * parallel.device_count)
