"""Affine maps of pictures: rotation, shear and translation. B, H, W, C as in augment.py."""

import numpy as np


def warp(images: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Moves pixels by an affine map, with bilinear interpolation; outside of a picture all is zero.

    The value at (x, y) is taken from matrix @ (x, y, 1), where (0, 0) is the picture's centre, x goes right and y down.

    Args:
      images: uint8 [B, H, W, C].
      matrices: [B, 2, 3].

    Returns:
      uint8 [B, H, W, C], rounded to the nearest.
    """
    b, h, w, c = images.shape
    padded = np.zeros((b, h + 2, w + 2, c), np.uint8)  # a border of the zeros that lie outside
    padded[:, 1:-1, 1:-1] = images
    matrices = matrices.astype(np.float32)
    x = np.arange(w, dtype=np.float32) - np.float32((w - 1) / 2)
    y = np.arange(h, dtype=np.float32) - np.float32((h - 1) / 2)

    def source(row: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole and the fractional part of where pixels come from, in `padded`; [B, H, W]."""
        m = matrices[:, row, :, None]  # [B, 3, 1]
        across = m[:, 0] * x + (m[:, 2] + np.float32((size - 1) / 2 + 1))  # [B, W]
        at = across[:, None, :] + (m[:, 1] * y)[:, :, None]
        np.clip(at, 0, size + 1, out=at)
        whole = np.minimum(
            at.astype(np.int32), size
        )  # [0, size], so that whole + 1 is in `padded` too
        at -= whole
        return whole, at

    column, right = source(0, w)
    line, down = source(1, h)
    first = line * (w + 2) + column
    first += (np.arange(b, dtype=np.int32) * ((h + 2) * (w + 2)))[:, None, None]
    pixels = padded.reshape(-1, c) if c > 1 else padded.reshape(-1)
    if c > 1:
        right, down = right[..., None], down[..., None]

    def between(offset: int) -> np.ndarray:
        left = pixels[offset:].take(first, axis=0).astype(np.float32)
        step = pixels[offset + 1 :].take(first, axis=0) - left
        step *= right
        left += step
        return left

    value = between(0)
    lower = between(w + 2)
    lower -= value
    lower *= down
    value += lower
    value += np.float32(0.5)
    return value.astype(np.uint8).reshape(images.shape)


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Matrices that turn pictures counter-clockwise by degrees [B]."""
    angle = np.deg2rad(degrees)
    return affine(
        len(angle), xx=np.cos(angle), xy=-np.sin(angle), yx=np.sin(angle), yy=np.cos(angle)
    )


def affine(count: int, *, xx=1.0, xy=0.0, x=0.0, yx=0.0, yy=1.0, y=0.0) -> np.ndarray:
    """Returns matrices [B, 2, 3] of entries that are numbers or [B]; without any, the identity."""
    matrices = np.empty((count, 2, 3))
    for i, row in enumerate(((xx, xy, x), (yx, yy, y))):
        for j, entry in enumerate(row):
            matrices[:, i, j] = entry
    return matrices
