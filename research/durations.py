"""How long, in any unit: 'steps=1000', 'epochs=5', 'examples=300_000', 'percent=10' or '10%', 'minutes=20'."""

import math
from typing import NamedTuple

from research.errors import UserError

UNITS = ("steps", "epochs", "examples", "percent", "minutes")


class Durations(NamedTuple):
    """What is needed to turn a duration into steps."""

    batch_size: int
    epoch_examples: int
    steps_per_minute: float | None = None  # measured once, at the start of a run that uses minutes
    total_steps: int | None = None
    guessed: bool = (
        False  # the pace is any pace: numbers of steps mean nothing, but that they can be had
    )

    def to_steps(self, duration: str) -> int:
        """Returns the number of steps, rounded up, so that whole epochs are seen whole."""
        unit, value = parse_duration(duration)
        if unit == "percent" and self.total_steps is None:
            raise UserError(
                f"config.train.duration={duration}: percent of what? Use steps, epochs, examples or minutes"
            )
        if unit == "minutes" and self.steps_per_minute is None:
            raise ValueError("steps_per_minute has not been measured")
        steps_of_one = {
            "steps": 1.0,
            "epochs": self.epoch_examples / self.batch_size,
            "examples": 1 / self.batch_size,
            "percent": (self.total_steps or 0) / 100,
            "minutes": self.steps_per_minute or 0.0,
        }
        steps = value * steps_of_one[unit]
        return math.ceil(round(steps, 6))


def parse_duration(duration: str) -> tuple[str, float]:
    """Returns (unit, value) of a text such as 'epochs=5', 'examples=300_000' or '10%'."""
    text = str(duration)
    if text.endswith("%"):
        text = f"percent={text[:-1]}"
    unit, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if unit not in UNITS or not 0 <= value < math.inf:
        raise UserError(
            f"{duration!r} is no duration: write UNIT=NUMBER with a unit of {', '.join(UNITS)}"
        )
    return unit, value


def is_duration(text: str) -> bool:
    try:
        parse_duration(text)
    except UserError:
        return False
    return True
