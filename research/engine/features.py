"""Features of a frozen trunk: computed once an example, kept in memory-mapped files, read by every later epoch."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import research
from research.data import cache
from research.engine.environment import environment
from research.engine.evaluate import predictions
from research.engine.parallel import Parallel
from research.engine.program import Program
from research.engine.state import TrainState, join, params_sha256, split
from research.task import Batch, Task
from research.transfer.features import cut_point


def cached(
    config: Any,
    program: Program,
    state: TrainState,
    parallel: Parallel,
    say: Callable[[str], None] = print,
) -> Task:
    """Returns the program's task with batches that hold features of the frozen trunk in place of its inputs.

    It is the task as it was if nothing below a point is frozen and free of randomness, if examples are augmented (then
    their features are new in every epoch) or if the files would be larger than `config.train.feature_cache`.

    Args:
      state: the parameters as they are now, NumPy leaves. The files are keyed by everything the features depend on.
    """
    task = program.task
    if not may_be_cached(config, program, state):
        return task
    limit = config.train.feature_cache * 1e9
    trained, frozen = split(state.params, program.trainable)
    batch = task.data.eval_batch("train", 0, slice(0, 2))
    name = cut_point(
        task,
        trained,
        frozen,
        state.model_state,
        batch,
        join=join,
        axis_name=parallel.axis_name,
    )
    if name is None:
        return task
    shapes = jax.eval_shape(task.features, state.params, state.model_state, batch)[name]
    splits = [split for split in ("train", "validation") if split in task.data.sizes]
    size = sum(task.data.sizes[s] for s in splits) * shapes.size // 2 * 4
    if size > limit:
        say(
            f"the frozen trunk's features ({name}) would take {size / 1e9:.1f} GB, more than "
            f"config.train.feature_cache={config.train.feature_cache:g}: they are computed at each step"
        )
        return task

    folder = cache.home() / "features" / _key(config, task, frozen, state, name, parallel)
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def write(split: str, target: Path) -> None:
        def compute(params: Any, model_state: Any, batch: Batch) -> dict[str, Any]:
            return {"x": task.features(params, model_state, batch)[name], "id": batch["id"]}

        found = predictions(
            parallel.map(compute),
            *_placed(parallel, state),
            lambda n, rows: task.data.eval_batch(split, n, rows),
            size=task.data.sizes[split],
            batch_size=config.eval.batch_size,
            parallel=parallel,
        )
        order = np.argsort(found["id"], kind="stable")
        np.save(target / "id.npy", found["id"][order])
        np.save(target / "features.npy", found["x"][order].astype(np.float32))

    for part in splits:
        there = (folder / part).is_dir()
        if not there:
            say(
                f"computing the frozen trunk's features ({name}) of {task.data.sizes[part]:,} {part} examples ..."
            )
        place = cache.built(folder / part, partial(write, part))
        arrays[part] = (
            np.load(place / "id.npy"),
            np.load(place / "features.npy", mmap_mode="r"),
        )
        verb = "read from" if there else "computed once, kept in"
        say(f"features of the frozen trunk ({name}) of {part}: {verb} {place}")

    def with_features(batch: Batch, part: str) -> Batch:
        ids, features = arrays[part]
        places = np.searchsorted(ids, np.maximum(batch["id"], ids[0]))  # padding has the id -1
        return {**batch, "given": {name: np.asarray(features[places])}}

    plain_train, plain_eval = task.data.train_batch, task.data.eval_batch

    # Neither may hold the task: Grain sends them to its workers, and what has a gradient written out can't be sent.
    def train_batch(n: int, rows: slice, inputs: bool = True) -> Batch:
        return with_features(plain_train(n, rows, inputs=False), "train")

    def eval_batch(split: str, n: int, rows: slice, inputs: bool = True) -> Batch:
        if split not in arrays:
            return plain_eval(split, n, rows)
        return with_features(plain_eval(split, n, rows, inputs=False), split)

    return task._replace(data=task.data._replace(train_batch=train_batch, eval_batch=eval_batch))


def may_be_cached(config: Any, program: Program, state: TrainState) -> bool:
    """False if `cached` would return the task as it is, whatever the values of this state, or of its shapes."""
    task = program.task
    _, frozen = split(state.params, program.trainable)
    if not config.train.feature_cache or not jax.tree.leaves(frozen) or not task.data.repeats:
        return False
    if task.constants_in:  # a teacher, which is such a constant, has to see the inputs
        return False
    return config.train.frozen_batch_norm != "batch" or not state.model_state.get("batch_stats")


def _placed(parallel: Parallel, state: TrainState) -> tuple[Any, Any]:
    placed = parallel.put_state({"params": state.params, "model_state": state.model_state})
    return placed["params"], placed["model_state"]


def _code() -> str:
    """A hash of the code that computes them."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for room in ("models", "ops", "tasks", "transfer"):
        for file in sorted((Path(research.__path__[0]) / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _key(
    config: Any, task: Task, frozen: Any, state: TrainState, name: str, parallel: Parallel
) -> str:
    """A hash of everything that the features depend on, the machine's arithmetic included."""
    here = environment()
    what = [
        _code(),
        name,
        params_sha256(frozen),
        params_sha256(state.model_state),
        config.model.to_dict(),
        config.lora.to_dict(),
        [config.train.precision, config.eval.batch_size],
        [parallel.kind, parallel.device_count],
        task.data.fingerprints,
        task.about,
        {key: here[key] for key in ("versions", "cpu_cores", "devices", "xla_flags")},
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
