"""RandAugment: a few operations drawn at random, all of one strength.

Cubuk, Zoph, Shlens and Le, "RandAugment: practical automated data augmentation with a reduced search space" (2020).
The operations and their ranges are those of torchvision: at magnitude 30, shear by 0.3, translate by 150/331 of the
side, rotate by 30 degrees, change brightness, colour, contrast and sharpness by 90%, solarize all, posterize to
4 bits. Geometric operations are bilinear and fill with zeros; operations on values give what Pillow's ImageOps
and ImageEnhance give.

B, H, W, C as in augment.py; S pictures of a batch that drew the same operation.
"""

from collections.abc import Callable

import numpy as np

from research.data.warp import affine, rotation, warp


def randaugment(images: np.ndarray, draws: np.ndarray, magnitude: float) -> np.ndarray:
    """Applies one random operation after the other.

    Args:
      images: uint8 [B, H, W, C].
      draws: uniform numbers [B, operations, 2]: which one, and its sign.
      magnitude: strength, from 0 to 30.

    Returns:
      uint8 [B, H, W, C].
    """
    names = [name for name in OPERATIONS if name != "colour" or images.shape[-1] == 3]
    for choice, sign in np.moveaxis(draws, 0, -1):  # [B] each
        chosen = (choice * len(names)).astype(np.int64)
        signed = np.where(sign < 0.5, -magnitude / 30, magnitude / 30)
        images = images.copy()
        for number in np.unique(chosen):
            rows = np.flatnonzero(chosen == number)
            images[rows] = OPERATIONS[names[number]](images[rows], signed[rows])
    return images


def shear_x(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return warp(images, affine(len(images), xy=0.3 * signed))


def shear_y(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return warp(images, affine(len(images), yx=0.3 * signed))


def translate_x(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return warp(images, affine(len(images), x=np.trunc(150 / 331 * images.shape[2] * signed)))


def translate_y(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return warp(images, affine(len(images), y=np.trunc(150 / 331 * images.shape[1] * signed)))


def rotate(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return warp(images, rotation(30 * signed))


def brightness(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return _blend(np.zeros_like(images), images, signed)


def colour(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    return _blend(_grey(images)[..., None], images, signed)


def contrast(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    mean = np.floor(_grey(images).mean((1, 2)) + 0.5)
    return _blend(mean[:, None, None, None], images, signed)


def sharpness(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    h, w = images.shape[1:3]
    smooth = images.copy()  # the border stays as it is
    if min(h, w) > 2:
        total = 4 * images[:, 1:-1, 1:-1].astype(np.int32)
        for y in range(3):
            for x in range(3):
                total += images[:, y : y + h - 2, x : x + w - 2]
        smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26  # the kernel's weights sum to 13; rounded
    return _blend(smooth, images, signed)


def posterize(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    bits = 8 - np.rint(4 * np.abs(signed)).astype(np.int64)  # [S]
    kept = (0xFF << (8 - bits) & 0xFF).astype(np.uint8)
    return images & kept[:, None, None, None]


def solarize(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    threshold = 255 * (1 - np.abs(signed))
    return np.where(images < threshold[:, None, None, None], images, 255 - images)


def autocontrast(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    low, high = (
        f(images, (1, 2)).astype(np.float64)[..., None] for f in (np.min, np.max)
    )  # [S, C, 1]
    scale = 255 / np.maximum(high - low, 1)
    table = np.clip(np.arange(256) * scale - low * scale, 0, 255)
    return _look_up(images, np.where(high > low, table, np.arange(256)))


def equalize(images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    s, h, w, c = images.shape
    planes = np.arange(s)[:, None, None, None] * c + np.arange(c)
    counts = np.bincount((planes * 256 + images).ravel(), minlength=s * c * 256).reshape(s, c, 256)
    brightest = images.max((1, 2))[..., None]  # [S, C, 1]
    step = (h * w - np.take_along_axis(counts, brightest.astype(np.int64), -1)) // 255
    below = np.cumsum(counts, -1) - counts
    table = np.minimum((step // 2 + below) // np.maximum(step, 1), 255)
    return _look_up(images, np.where(step > 0, table, np.arange(256)))


# Operations: (uint8 [S, H, W, C], strength with a sign [S], from -1 to 1) -> uint8 [S, H, W, C].
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "identity": lambda images, signed: images,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}


def _blend(dull: np.ndarray, images: np.ndarray, signed: np.ndarray) -> np.ndarray:
    """Goes from `dull` (factor 0) through the picture (factor 1) beyond it; fractions are cut off."""
    factor = (1 + 0.9 * signed).astype(np.float32)[:, None, None, None]
    dull = dull.astype(np.float32)
    return np.clip(dull + factor * (images - dull), 0, 255).astype(np.uint8)


def _grey(images: np.ndarray) -> np.ndarray:
    """uint8 [S, H, W], ITU-R 601 luma in Pillow's fixed point."""
    if images.shape[-1] != 3:
        return images[..., 0]
    luma = images.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)


def _look_up(images: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Replaces each value by its entry in its picture's and channel's table, [S, C, 256]."""
    s, _, _, c = images.shape
    planes = np.arange(s * c).reshape(s, 1, 1, c) * 256
    return tables.astype(np.uint8).ravel()[planes + images]
