"""A task's model: built from its config, called with a key for each example, its intermediates in order."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.config import find_module, first_line
from research.errors import UserError
from research.task import Batch, Params


class Built(NamedTuple):
    """A Linen module that fits the data, and what a task needs of it."""

    module: Any
    init: Callable[[jax.Array], tuple[Params, Params]]  # key -> params, model_state
    layers: tuple[str, ...]  # patterns of parameter paths, from the input to the output
    joined: dict[str, str]  # see `research.task.Task`


def build(config: Any, what: str, inputs: tuple, given: dict[str, Any], axis_name: Any) -> Built:
    """Builds the model that the config names, and tries whether it takes the inputs.

    Args:
      config: reads model and train.precision.
      what: the inputs in words, for messages.
      inputs: what the model is called with, of a batch of one.
      given: the fields that the task sets, beside dtype and axis_name.

    Raises:
      UserError: an option is wrong, or the inputs do not fit.
    """
    options = {key: value for key, value in config.model.items() if key != "name"}
    found = find_module("models", config.model.name)
    if missing := given.keys() - inspect.signature(found.Model).parameters.keys():
        raise UserError(
            f"config.model.name={config.model.name}: takes no {what}: it has no "
            f"{', '.join(sorted(missing))}; choose another"
        )
    module = found.Model(
        dtype=jnp.dtype(config.train.precision), axis_name=axis_name, **given, **options
    )

    def init(key: jax.Array) -> tuple[Params, Params]:
        variables = dict(module.init(key, *inputs, train=False))
        variables.pop("intermediates", None)
        return variables.pop("params"), variables

    try:
        jax.eval_shape(init, jax.random.key(0))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"config.model: does not fit {what}: {first_line(error)}") from error
    return Built(module, init, found.LAYERS, getattr(module, "joined", {}))


def example_keys(batch: Batch, rngs: dict[str, jax.Array]) -> jax.Array:
    """Returns keys [B] that depend on the example and not on where in the batch it lies."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rngs["dropout"], batch["id"])


def intermediates(apply: Callable[..., Any]) -> Callable[..., dict[str, jax.Array]]:
    """Returns `Task.intermediates`, of a model called as `apply(params, model_state, batch, keys, ...)`."""

    def run(params: Params, model_state: Params, batch: Batch, rngs: dict[str, jax.Array]):
        _, variables = apply(
            params,
            model_state,
            batch,
            example_keys(batch, rngs),
            train=True,
            capture_intermediates=True,
            mutable=["intermediates", *model_state],
        )
        return dict(_in_order(variables["intermediates"]))

    return run


def _in_order(tree: Any, path: tuple[str, ...] = ()):
    """Yields ('conv_0/out', array) in the order in which a model computed its intermediates."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _in_order(value, (*path, key))
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from _in_order(value, (*path, str(i)) if len(tree) > 1 else path)
    else:
        yield "/".join(path).replace("/__call__", ""), tree
