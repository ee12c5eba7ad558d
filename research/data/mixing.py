"""Mixing pictures in pairs: mixup and cutmix. B, H, W, C as in augment.py.

Each batch has a partner for every row, one weight, and for cutmix one box, drawn for the whole batch from (seed, n).
"""

from typing import NamedTuple

import numpy as np

from research.data.random import generator


class Mix(NamedTuple):
    """How a batch is mixed."""

    partners: np.ndarray  # int [B] the row that each row is mixed with
    weight: float  # of the row itself; its partner has the rest
    box: (
        tuple[slice, slice] | None
    )  # rows and columns of a picture that come from the partner; None is mixup


def draw_mix(
    seed: int, n: int, batch_size: int, height: int, width: int, *, mixup: float, cutmix: float
) -> Mix:
    """Draws how batch n is mixed; a coin decides where both are on.

    mixup: weight ~ Beta(mixup, mixup) (Zhang et al. 2018). cutmix: the box has a share 1 - weight of the area, with
    weight ~ Beta(cutmix, cutmix), and a centre anywhere; weight is then what is left outside of it (Yun et al. 2019).
    """
    random = generator(seed, "mix", n)
    partners = random.permutation(batch_size)
    cut = random.random() < 0.5 if mixup and cutmix else bool(cutmix)
    alpha = cutmix if cut else mixup
    weight = random.beta(alpha, alpha)
    if not cut:
        return Mix(partners, weight, None)
    share = np.sqrt(1 - weight)
    box, area = [], 1
    for size in (height, width):
        centre, half = int(random.integers(size)), int(size * share) // 2
        start, stop = max(centre - half, 0), min(centre + half, size)
        box.append(slice(start, stop))
        area *= stop - start
    return Mix(partners, 1 - area / (height * width), (box[0], box[1]))


def mix_images(images: np.ndarray, others: np.ndarray, mix: Mix) -> np.ndarray:
    """Returns float32 [B, H, W, C]: `images` mixed with `others`, both normalised."""
    if mix.box is None:
        weight = np.float32(mix.weight)
        return weight * images + (1 - weight) * others
    mixed = images.copy()
    mixed[:, *mix.box] = others[:, *mix.box]
    return mixed
