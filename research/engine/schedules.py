"""Learning rate schedules: pure functions of the step.

A schedule is its peak, times a warm-up, times a shape. The shapes are the functions of this file; what a config may set
of one is a parameter that has a default. Durations are texts such as 'percent=5' and count from the first step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.config import options_of
from research.errors import UserError, UserErrors, nearest

Schedule = Callable[[Any], jax.Array]  # step [] int, from 0 -> [] float32


class Span(NamedTuple):
    """The run that a shape is stretched over, in steps."""

    warmup: int
    total: int
    to_steps: Callable[[str], int]

    def progress(self, step: Any) -> jax.Array:
        """Returns how much of what follows the warm-up is over, from 0 to 1."""
        return jnp.clip((step - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)


def constant(span: Span) -> Schedule:
    """1."""
    return lambda step: jnp.ones_like(step, jnp.float32)


def linear(span: Span, final: float = 0.0) -> Schedule:
    """From 1 to `final` in a straight line, t the progress: 1 - (1 - final) t."""
    return lambda step: 1.0 - (1.0 - final) * span.progress(step)


def cosine(span: Span, final: float = 0.0) -> Schedule:
    """From 1 to `final` by half a cosine: final + (1 - final) (1 + cos(pi t)) / 2 (Loshchilov & Hutter 2017)."""
    return lambda step: final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * span.progress(step)))


def rsqrt(span: Span, timescale: str = "percent=10") -> Schedule:
    """sqrt(s / (s + n)), n steps after the warm-up, s the timescale: it never ends (Zhai et al. 2022, section 3.5)."""
    scale = max(span.to_steps(timescale), 1)
    return lambda step: jnp.sqrt(scale / (scale + jnp.maximum(step - span.warmup, 0.0)))


def step(
    span: Span, at: tuple[str, ...] = ("percent=50", "percent=75"), factor: float = 0.1
) -> Schedule:
    """`factor` to the power of how many of the moments `at` are past."""
    moments = [span.to_steps(moment) for moment in at]
    return lambda step: (
        factor ** sum((jnp.where(step >= m, 1.0, 0.0) for m in moments), jnp.float32(0.0))
    )


SHAPES = {shape.__name__: shape for shape in (constant, linear, cosine, rsqrt, step)}


def schedule_options(name: str) -> dict[str, Any]:
    """Returns what a config may set of a schedule, and the defaults.

    Raises:
      UserError: there is no such schedule; the message lists what exists.
    """
    if name not in SHAPES:
        raise UserError(
            f"there is no schedule '{name}'{nearest(name, SHAPES)}: {', '.join(SHAPES)}"
        )
    return options_of(SHAPES[name])


def make_schedule(
    config: Any, *, peak: float, total_steps: int, to_steps: Callable[[str], int]
) -> Schedule:
    """Returns the learning rate as a function of the step.

    During a warm-up of W steps it is peak * (step + 1) / W, so that no step is wasted on a rate of zero and the peak
    is reached by the last of them. A run that ends before its warm-up does not reach the peak.

    Args:
      config: `name`, `warmup` (a duration) and the options of that shape.
      peak: the learning rate after the warm-up.
      total_steps: at which the shape reaches its end.
      to_steps: turns a duration into steps.

    Raises:
      UserErrors: unknown schedule or options, values out of range, texts that are no duration; all of them.
    """
    given = dict(config.items())
    name, warmup = given.pop("name", "constant"), given.pop("warmup", "steps=0")
    try:
        options = schedule_options(name)
    except UserError as error:
        raise UserErrors([f"config.optimizer.schedule.name: {error}"]) from None

    where = "config.optimizer.schedule"
    errors = [
        f"{where}.{key}: {name} has no such option{nearest(key, [*options, 'warmup'])}"
        for key in given
        if key not in options
    ]
    errors += [
        f"{where}.{key} is {given[key]!r}, but must be 0 or more"
        for key in ("final", "factor")
        if key in options and key in given and given[key] < 0
    ]
    for key in ("warmup", "timescale", "at"):
        value = warmup if key == "warmup" else given.get(key, ())
        for duration in (value,) if isinstance(value, str) else value:
            try:
                to_steps(duration)
            except UserError as error:
                errors.append(f"{where}.{key}: {error}")
    if errors:
        raise UserErrors(errors)

    span = Span(to_steps(warmup), total_steps, to_steps)
    shape = SHAPES[name](span, **given)
    if not span.warmup:
        return lambda step: peak * shape(step)
    return lambda step: peak * jnp.minimum((step + 1.0) / span.warmup, 1.0) * shape(step)
