"""What a program compiles to: its step, one for each shape of batch, and its prediction; made side by side.

XLA compiles without Python. So what a start needs is compiled in threads, while the run does what else has to be done
before its first step: fresh parameters (which are compiled too), pretrained files, a checkpoint, the first batches.
One compilation of XLA's keeps two cores busy by itself. Where there are no more (`CORES`), two at once take as long as
one after the other, or longer, since they share one heap; there each is made when it is needed.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax

from research.durations import Durations
from research.engine import features
from research.engine.checkpoint import Checkpoints
from research.engine.environment import cpu_cores
from research.engine.evaluate import first_batch
from research.engine.parallel import Parallel, compiled
from research.engine.program import Plan, Program, make_program
from research.engine.state import TrainState, evaluated_params
from research.engine.window import Clock
from research.task import Batch, Params, Task

CORES = 4  # from so many on


def foreseen(
    config: Any,
    task: Task,
    plan: Plan,
    parallel: Parallel,
    units: Durations,
    checkpoints: Checkpoints,
) -> "Compiled | None":
    """Begins to compile what a run's next steps need, before their state is there; None if it can't be known yet."""
    if cpu_cores() < CORES:
        return None
    at = checkpoints.newest()
    if (at is None and config.resume) or (at or 0) >= plan.total:
        return None
    program = make_program(config, task, parallel, units, at=at or 0)
    shapes = jax.eval_shape(program.create)
    if features.may_be_cached(config, program, shapes):
        return None
    return Compiled(config, program, parallel, plan, at or 0, shapes)


class Compiled:
    """The compiled forms of a program on a layout.

    Args:
      at: the step from which on the program is used. Its batch, and that of the first evaluation, say for which
        shapes the step and the prediction are compiled in the background at once, where there are cores for it.
      state: on the host, or the shapes of one.
    """

    def __init__(
        self,
        config: Any,
        program: Program,
        parallel: Parallel,
        plan: Plan,
        at: int,
        state: TrainState,
    ):
        self.program, self.at = program, at
        self._parallel = parallel
        self._steps: dict[Any, Callable] = {}
        self._begun: dict[Any, Future[tuple[Callable, float]]] = {}
        self._mapped: Any = parallel.map(program.task.predict)
        self._predictions: dict[Any, Future[Callable]] = {}

        self._like: tuple = ()
        if cpu_cores() < CORES:
            return
        like, data = parallel.like(state), program.task.data
        self._like = _shapes(like)
        traced = threading.Event()
        batch = parallel.put_batch(data.train_batch(at, parallel.rows(config.train.batch_size)))
        self._begun[_shapes(batch)] = _begin(lambda: self._make_step(like, batch, traced.set))
        if not plan.eval_every:
            return
        evaluated = first_batch(config, program.task, parallel, "validation")

        def make_prediction() -> Callable:
            traced.wait()  # tracing is Python's, so one waits for the other: the step comes first
            given = evaluated_params(like), like.model_state, evaluated
            return compiled(self._mapped.lower(*given))

        self._predictions[_shapes(evaluated)] = _begin(make_prediction)

    def step(self, state: TrainState, batch: Batch, clock: Clock, *, apart: bool) -> Callable:
        """Returns the step for such a batch, waiting for it if need be; adds to 'seconds_compile' what it took.

        Args:
          apart: the wait is taken out of the time of training.
        """
        shapes = _shapes(batch)
        if shapes not in self._steps:
            began = time.perf_counter()
            begun = self._begun.pop(shapes, None)
            if begun is None or _shapes(state) != self._like:
                run, seconds = self._make_step(state, batch)
            else:
                run, seconds = begun.result()
            self._steps[shapes] = run
            clock.add(
                "seconds_compile", seconds, apart=time.perf_counter() - began if apart else 0.0
            )
        return self._steps[shapes]

    def predict(self, params: Params, model_state: Params, batch: Batch) -> dict[str, Any]:
        """`task.predict` as the layout maps it, of a batch on devices."""
        shapes = _shapes(batch)
        if shapes not in self._predictions:
            done: Future = Future()
            done.set_result(compiled(self._mapped.lower(params, model_state, batch)))
            self._predictions[shapes] = done
        return self._predictions[shapes].result()(params, model_state, batch)

    def _make_step(
        self, state: TrainState, batch: Batch, traced: Callable[[], None] = lambda: None
    ) -> tuple[Callable, float]:
        """Returns the compiled step, and the seconds that it took."""
        began = time.perf_counter()
        try:
            lowered = self._parallel.lower_train(self.program.step, state, batch)
        finally:
            traced()
        return compiled(lowered), time.perf_counter() - began


def _begin(make: Callable[[], Any]) -> Future:
    """Runs `make` in a thread that the end of the process does not wait for."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="compile", daemon=True).start()
    return future


def _shapes(tree: Any) -> tuple:
    """What something is compiled for; batches of text, for one, differ in their lengths."""
    return tuple((x.shape, x.dtype) for x in jax.tree.leaves(tree))
