"""What a run says when its loss or its gradient is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.engine import rng
from research.engine.state import TrainState, named_leaves
from research.engine.step import STREAMS
from research.errors import Failure
from research.task import Batch, Task


class NonFinite(Failure):
    """A loss, gradient or parameter is NaN or infinite; the message is one line once it was explained."""

    def __init__(self, step: int, values: dict[str, float], where: str | None = None):
        self.step = step  # the number of its batch, from 0
        self.values = values
        self.where = where
        super().__init__(f"step {step + 1:,}: not finite: {where or values}")


def first_bad(tree: Any) -> str | None:
    """Returns the path and the first NaN or infinity of the first array that holds one."""
    for path, leaf in named_leaves(tree).items():
        array = np.asarray(leaf)
        if (
            jnp.issubdtype(array.dtype, jnp.floating)
            and not np.isfinite(array.astype(np.float32)).all()
        ):
            bad = ~np.isfinite(array.astype(np.float32))
            return f"{path} ({int(bad.sum()):,} of {array.size:,} values are not finite)"
    return None


def explain(
    task: Task, state: TrainState, batch: Batch, seed: int, axis_name: str | None = None
) -> tuple[str, list[int]]:
    """Finds where a step's numbers stop being finite.

    Args:
      state: the state before that step.
      batch: its batch.
      axis_name: the mapped axis that the task was built for, if there is one.

    Returns:
      The first array that is not finite, in the order of computation: the batch, the state, the intermediates of
      the forward pass, the losses, the gradients; and the numbers of the examples whose loss is not
      finite (of all of them, where each loss is).
    """
    order: list[str] = []  # of the intermediates; a transformed function gives its dict back sorted

    def forward(params, model_state, batch):
        rngs = rng.step_keys(seed, jnp.int32(state.step), STREAMS)

        def total(params):
            out = task.loss(params, model_state, batch, rngs)
            return jnp.sum(out.losses * out.weights), out.losses

        gradients, losses = jax.grad(total, has_aux=True)(params)
        inside = task.intermediates(params, model_state, batch, rngs)
        order[:] = inside
        return losses, gradients, inside

    given = (state.params, state.model_state, batch)
    if axis_name is None:
        losses, gradients, inside = jax.jit(forward)(*given)
    else:  # an axis of one device, over which a sum is the whole
        mapped = jax.jit(jax.vmap(forward, axis_name=axis_name))
        results = mapped(*jax.tree.map(lambda x: jnp.asarray(x)[None], given))
        losses, gradients, inside = jax.tree.map(lambda x: x[0], results)

    ids, good = np.asarray(batch["id"]), np.isfinite(np.asarray(losses))
    stages = [
        ("batch", batch),
        ("parameter", state.params),
        ("model state", state.model_state),
        *((f"output of {name}", inside[name]) for name in order),
        ("loss", losses),
        ("gradient", gradients),
    ]
    found = (f"{stage} {bad}".strip() for stage, tree in stages if (bad := first_bad(tree)))
    return next(found, "the updated state"), [int(i) for i in (ids if good.all() else ids[~good])]
