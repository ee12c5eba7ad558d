"""The train step, the only place that differentiates: sums first, one division at the end.

Shapes: B examples in a batch, M micro-batches, [] scalars.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from research.engine import rng
from research.engine.state import Keep, TrainState, join, split
from research.task import Batch, Params, Task

STREAMS = ("dropout",)  # the random streams a loss may draw from
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    micro_batches: int = 1,
    ema: float = 0.0,
    axis_name: str | None = None,
    trainable: Keep = lambda path: True,
) -> TrainStep:
    """Returns the pure `(state, batch) -> (state, metrics)` that every way of running it wraps.

    The gradient is that of the SUM of weighted losses. It is added over micro-batches and over devices (`axis_name`
    under pmap; under jit with shardings the compiler adds it) and divided by the total weight once. So
    accumulation equals the full batch, and unequal masks weigh the same however the batch is cut.

    Args:
      task: supplies the loss.
      tx: the optimizer.
      seed: of the random streams.
      micro_batches: M; micro-batch i holds the examples i, i+M, i+2M, ..., so that each device's share of a
        micro-batch is the same set of examples on every layout. Batch norm sees a micro-batch at a time.
      ema: decay of the average of parameters; at step t it is min(ema, (1 + t) / (10 + t)), so that the
        start is forgotten.
      axis_name: the mapped axis, if there is one.
      trainable: which parameters are trained. The others are no argument of what is differentiated: no gradient of
        theirs is computed, nothing below the lowest trained layer is differentiated, the norm is of the trained ones
        alone, and they come out as they went in.

    Returns:
      The step. Its metrics are [] weighted means of the loss and of the task's sums, 'grad_norm' [] before clipping,
      and 'weight' [], the total weight they are means over.
    """

    def summed_loss(trained: Params, frozen: Params, model_state: Params, batch: Batch, rngs):
        out = task.loss(join(trained, frozen), model_state, batch, rngs)
        chex.assert_equal_shape([out.losses, out.weights])  # [B]
        total = jnp.sum(out.losses * out.weights)
        return total, ({**out.sums, "loss": total, "weight": jnp.sum(out.weights)}, out.model_state)

    gradient = jax.grad(summed_loss, has_aux=True)

    def accumulate(trained: Params, frozen: Params, model_state: Params, batch: Batch, rngs):
        if micro_batches == 1:
            grads, (sums, model_state) = gradient(trained, frozen, model_state, batch, rngs)
            return grads, sums, model_state
        micro = jax.tree.map(
            lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch
        )  # [M, B/M, ...]

        def add(carry, part):
            grads, sums, model_state = carry
            more, (more_sums, model_state) = gradient(trained, frozen, model_state, part, rngs)
            return (
                jax.tree.map(jnp.add, grads, more),
                jax.tree.map(jnp.add, sums, more_sums),
                model_state,
            ), None

        first = jax.tree.map(lambda x: x[0], micro)
        grads, (sums, _) = jax.eval_shape(gradient, trained, frozen, model_state, first, rngs)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, sums))
        return jax.lax.scan(add, (*zeros, model_state), micro)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        rngs = rng.step_keys(seed, state.step, STREAMS)
        trained, frozen = split(state.params, trainable)
        grads, sums, model_state = accumulate(trained, frozen, state.model_state, batch, rngs)
        if axis_name is not None:
            grads, sums = jax.lax.psum((grads, sums), axis_name)
        weight = jnp.maximum(sums["weight"], 1.0)  # a batch of padding alone moves nothing
        grads = jax.tree.map(lambda g: g / weight, grads)

        updates, opt_state = tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        average = state.ema
        if average is not None:
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(
                lambda old, new: old + (1.0 - decay) * (new - old), average, trained
            )
        metrics = {name: value / weight for name, value in sums.items() if name != "weight"}
        metrics |= {"grad_norm": optax.tree.norm(grads), "weight": sums["weight"]}
        return TrainState(
            step=state.step + 1,
            params=join(trained, frozen),
            model_state=model_state,
            opt_state=opt_state,
            ema=average,
        ), metrics

    return step
