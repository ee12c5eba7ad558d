"""Where a frozen trunk ends: the last value that is the same for an example at every step.

What lies below it may be computed once for each example and kept; the steps then run from there (`batch["given"]`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from research.task import Batch, Params, Task


def cut_point(
    task: Task,
    trained: Params,
    frozen: Params,
    model_state: Params,
    batch: Batch,
    *,
    join: Callable[[Params, Params], Params],
    axis_name: str | None = None,
) -> str | None:
    """Returns the name of the highest feature that depends on no trained parameter and on no random key; or None.

    All that the loss sees of the inputs must go through it.

    It is read off the jaxpr of the training-mode forward pass, so it holds for any model. Batch norms that take the
    statistics of the batch must be ruled out by the caller.

    Args:
      task: whose `features` are the candidates, and whose `intermediates` of the same names are looked at. What it
        does not take as batch["given"], such as a value that a model only records, is no candidate.
      trained, frozen: the two parts of the parameters, or their shapes; `join` puts them together.
      axis_name: the mapped axis that the task was built for, if there is one.
    """
    names: list[str] = []

    def candidates(params):
        values = task.features(params, model_state, batch)
        names[:] = (
            values  # in order of computation: a transformed function gives its dict back sorted
        )
        return values

    shapes = jax.eval_shape(candidates, join(trained, frozen))

    inputs = {key: x for key, x in batch.items() if key not in ("label", "id", "mask")}

    def taken(name):
        def given(value, inputs, params, key):
            whole = {**batch, **inputs, "given": {name: value}}
            losses = task.loss(params, model_state, whole, {"dropout": key}).losses
            return task.features(params, model_state, whole)[name], losses

        arguments = (shapes[name], inputs, join(trained, frozen), key)
        jaxpr = jax.make_jaxpr(mapped(given))(*arguments).jaxpr
        replaced = _depends(jaxpr, jaxpr.invars[:1])[0]
        # And nothing goes past it: what is kept has to stand for the inputs as a whole.
        return replaced and not _depends(jaxpr, jaxpr.invars[1 : 1 + len(inputs)])[1]

    def forward(moving):
        params, key = moving
        inside = task.intermediates(join(params, frozen), model_state, batch, {"dropout": key})
        return [inside[name] for name in names]

    def mapped(function):  # over an axis of one device, where the task needs one
        def on_an_axis(*args):
            return jax.vmap(lambda _: function(*args), axis_name=axis_name)(jax.numpy.zeros(1))

        return on_an_axis if axis_name else function

    key = jax.eval_shape(lambda: jax.random.key(0))
    closed = jax.make_jaxpr(mapped(forward))((trained, key))
    still = [not moved for moved in _depends(closed.jaxpr, closed.jaxpr.invars)]
    fixed = [name for name, held in zip(names, still, strict=True) if held]
    return next((name for name in reversed(fixed) if taken(name)), None)


def _depends(jaxpr: Any, inputs: Iterable[Any]) -> list[bool]:
    """Whether each output depends on any of the inputs; an equation's outputs depend on all that it reads."""
    moving = set(inputs)
    for equation in jaxpr.eqns:
        if any(not hasattr(atom, "val") and atom in moving for atom in equation.invars):
            moving.update(equation.outvars)
    return [not hasattr(atom, "val") and atom in moving for atom in jaxpr.outvars]
