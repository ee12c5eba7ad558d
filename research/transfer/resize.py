"""Arrays made to fit another picture: position tables to another grid, first convolutions to other channels.

K a kernel's side, I channels in, O channels out, T tokens, D width.
"""

import math

import numpy as np


def resized(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns a position table [1, T, D] or a kernel [K, K, I, O] in another shape; None where it is neither.

    See `positions` and `channels` for what may change.
    """
    if array.shape == shape:
        return array
    if array.ndim == len(shape) == 3 and array.shape[0] == shape[0] == 1:
        return positions(array, shape[1]) if array.shape[2] == shape[2] else None
    if array.ndim == len(shape) == 4 and array.shape[:2] + array.shape[3:] == shape[:2] + shape[3:]:
        return channels(array, shape[2])
    return None


def positions(table: np.ndarray, tokens: int) -> np.ndarray | None:
    """Resamples a table of positions on a square grid, bicubic with antialiasing, as timm's resample_abs_pos_embed.

    Args:
      table: [1, T, D], T = n*n, or n*n + 1 where the first is the class token's, which stays as it is.
      tokens: T of the result, of the same form.

    Returns:
      float32 [1, tokens, D]; None where the grids are not square, or only one of the two has a class token.
    """
    for first in (0, 1):
        old, new = (math.isqrt(max(t - first, 0)) for t in (table.shape[1], tokens))
        if min(old, new) and old**2 + first == table.shape[1] and new**2 + first == tokens:
            break
    else:
        return None
    grid = table[0, first:].reshape(old, old, -1).astype(np.float64)
    across = _bicubic(old, new)
    grid = np.einsum("ia,jb,abd->ijd", across, across, grid, optimize=True)
    flat = grid.reshape(1, new * new, -1).astype(np.float32)
    return np.concatenate([table[:, :first].astype(np.float32), flat], 1)


def channels(kernel: np.ndarray, count: int) -> np.ndarray:
    """Gives a convolution another number of input channels, as timm's adapt_input_conv.

    To one channel they are summed, so that a grey picture in all of them gives the same. To more or fewer they are
    repeated in turn and scaled by I / count, which keeps the size of what comes out.

    Args:
      kernel: [K, K, I, O].
      count: I of the result.
    """
    old = kernel.shape[2]
    if count == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-count // old), 1))[:, :, :count]
    return repeated * np.float32(old / count)


def _bicubic(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of Keys' cubic, a = -0.5, wider where the grid shrinks: Pillow's, torch's with antialias."""
    step = old / new
    width = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step - 0.5
    x = np.abs((np.arange(old)[None] - centres[:, None]) / width)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
