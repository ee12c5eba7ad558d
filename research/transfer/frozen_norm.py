"""What a frozen batch norm does in training: by Linen interceptors, no model changed.

A batch norm whose scale and bias are frozen keeps its running statistics as they are. It normalises by these
(mode 'running'): the trunk is then the same function in training and in prediction, an example's features depend on no
other example, and they may be computed once. In mode 'batch' it normalises by the statistics of the batch, as when it
was trained; the running ones stay all the same, and prediction goes on with them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from research.task import LossOutput, Task


def hold_statistics(task: Task, frozen: Callable[[str], bool], mode: str) -> Task:
    """Returns the task with batch norms that keep their statistics.

    Args:
      frozen: whether the module of that path ('layer1_0/bn1') is frozen.
      mode: 'running' or 'batch'.
    """

    def interceptor(function: Callable, args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        module = context.module
        norm = isinstance(module, nn.BatchNorm) and context.method_name == "__call__"
        if norm and frozen("/".join(module.path)):
            kwargs = {**kwargs, "use_running_average": True}
        return function(*args, **kwargs)

    def within(function: Callable) -> Callable:
        def intercepted(*args):
            with nn.intercept_methods(interceptor):
                return function(*args)

        return intercepted

    if mode == "running":
        return task._replace(loss=within(task.loss), intermediates=within(task.intermediates))

    def loss(params, model_state, batch, rngs) -> LossOutput:
        out = task.loss(params, model_state, batch, rngs)

        def keep(path, old, new):
            return old if frozen("/".join(key.key for key in path[1:-1])) else new

        held = jax.tree_util.tree_map_with_path(keep, model_state, out.model_state)
        return out._replace(model_state=held)

    return task._replace(loss=loss)
