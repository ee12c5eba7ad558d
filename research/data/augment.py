"""Random changes to training pictures, each a pure function of (seed, epoch, example).

B examples in a batch, H, W, C height, width and channels of a picture. All of it works on uint8, before pixels
are normalised, so what is filled in is black. What happens to an example depends on nothing but (seed, epoch,
example): not on its batch, its row in it, nor its neighbours.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from research.data.randaugment import randaugment
from research.data.random import uniforms
from research.data.warp import rotation, warp


def augment(
    images: np.ndarray,
    options: Mapping[str, Any],
    *,
    seed: int,
    epochs: np.ndarray,
    examples: np.ndarray,
) -> np.ndarray:
    """Applies what is switched on, in the order of the code.

    Args:
      images: uint8 [B, H, W, C]; left as they are.
      options: `config.data.augment`.
      epochs: int [B], which epoch each row is of.
      examples: int [B], the number of each row's example.

    Returns:
      uint8 [B, H, W, C].
    """

    def draw(stream: str, n: int) -> np.ndarray:
        return uniforms(seed, f"augment/{stream}", epochs, examples, n=n)  # [B, n]

    if options["flip"]:
        images = flip(images, draw("flip", 1)[:, 0] < 0.5)
    for name in ("crop", "shift"):
        if options[name]:
            images = shift(images, options[name], draw(name, 2))
    if options["rotate"]:
        images = rotate(images, (2 * draw("rotate", 1)[:, 0] - 1) * options["rotate"])
    if options["randaugment"]:
        steps = draw("randaugment", 2 * options["randaugment"]).reshape(len(images), -1, 2)
        images = randaugment(images, steps, options["magnitude"])
    if options["cutout"]:
        images = cutout(images, options["cutout"], draw("cutout", 2))
    return images


def flip(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirrors the chosen rows, bool [B], left to right."""
    flipped = images.copy()
    flipped[chosen] = images[chosen][:, :, ::-1]
    return flipped


def shift(images: np.ndarray, pixels: int, draws: np.ndarray) -> np.ndarray:
    """Shifts by whole pixels, up to `pixels` up, down, left and right, and fills with zeros.

    The same as padding with zeros and cutting out a picture of the old size at random, which is the usual
    augmentation of CIFAR (He et al. 2016, section 4.2).

    Args:
      draws: uniform numbers [B, 2], for y and x. Pixel (y, x) comes from (y, x) + floor((2 pixels + 1) draw) - pixels.
    """
    b, h, w, c = images.shape
    padded = np.zeros((b, h + 2 * pixels, w + 2 * pixels, c), np.uint8)
    padded[:, pixels : pixels + h, pixels : pixels + w] = images
    y, x = (draws * (2 * pixels + 1)).astype(np.int64).T
    # Channels are folded into the width, so that a window is cut out in long runs of memory.
    windows = sliding_window_view(padded.reshape(b, h + 2 * pixels, -1), (h, w * c), (1, 2))
    return windows[np.arange(b), y, x * c].reshape(b, h, w, c)


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Turns each picture counter-clockwise about its centre, by degrees [B]; bilinear, filled with zeros."""
    return warp(images, rotation(degrees))


def cutout(images: np.ndarray, side: int, draws: np.ndarray) -> np.ndarray:
    """Blackens a square whose centre is anywhere in the picture, so that part of it may lie outside.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017).

    Args:
      side: of the square, in pixels.
      draws: uniform numbers [B, 2], for the centre's y and x.
    """
    _, h, w, _ = images.shape
    rows, columns = (
        np.abs(2 * (np.arange(size) - np.floor(draws[:, i : i + 1] * size)) + (side + 1) % 2) < side
        for i, size in enumerate((h, w))
    )  # bool [B, H] and [B, W]; an even square reaches a pixel further before its centre than behind
    return images * ~(rows[:, :, None] & columns[:, None, :])[..., None]
