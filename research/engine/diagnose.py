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


def explain(task: Task, state: TrainState, batch: Batch, seed: int) -> tuple[str, list[int]]:
    """Finds where a step's numbers stop being finite.

    Args:
      state: the state before that step.
      batch: its batch.

    Returns:
      The first array that is not finite, in the order of computation: the batch, the state, the intermediates of
      the forward pass, the losses, the gradients; and the numbers of the examples whose loss is not
      finite (of all of them, where each loss is).
    """
    rngs = rng.step_keys(seed, jnp.int32(state.step), STREAMS)
    ids = np.asarray(batch["id"])

    def total(params):
        out = task.loss(params, state.model_state, batch, rngs)
        return jnp.sum(out.losses * out.weights), out

    gradients, out = jax.jit(jax.grad(total, has_aux=True))(state.params)
    losses = np.asarray(out.losses)
    bad_ids = ids[~np.isfinite(losses)] if not np.isfinite(losses).all() else ids
    # Not jitted: a jitted function gives back its dict in another order.
    inside = task.intermediates(state.params, state.model_state, batch, rngs)
    where = first_bad(
        {
            # A leaf's path is sorted by jax.tree; the numbers keep the order of computation.
            "1 batch": batch,
            "2 parameter": state.params,
            "3 model state": state.model_state,
            "5 loss": losses,
            "6 gradient": gradients,
        }
    )
    order = where or "9"
    if order > "4":
        for name, value in inside.items():
            if bad := first_bad({name: value}):
                return f"output of {bad}", [int(i) for i in bad_ids]
    return (where[2:] if where else "the updated state"), [int(i) for i in bad_ids]
