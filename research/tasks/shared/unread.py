"""Keys of a config that say something of the other kind of data: nothing would read them, so they are told."""

from typing import Any

from research.config import flatten
from research.defaults import defaults
from research.errors import UserErrors

# What belongs to one kind alone; a section stands for its keys.
ONLY = {
    "pictures": ("data.image_size", "data.channels", "data.mean", "data.std", "data.augment."),
    "texts": ("data.text.", "data.clean.long", "tokenizer."),
}


def demand_read(config: Any, kind: str) -> None:
    """Raises UserErrors if the config sets what only the other kind of data has.

    Args:
      kind: 'pictures' or 'texts', of the task.
    """
    (other,) = ONLY.keys() - {kind}
    usual, here = flatten(defaults().to_dict()), flatten(config.to_dict())
    lines = [
        f"config.{key}={here[key]!r}: is for {other}, and {config.task.name} reads {kind}; leave it out"
        for key in usual
        if key.startswith(ONLY[other]) and here.get(key) != usual[key]
    ]
    if lines:
        raise UserErrors(lines)
