"""Reading a user's picture: the one way from a file to uint8 [H, W, C], for training and for prediction alike."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from research.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy")
_GREY = ("1", "L", "LA", "La", "I", "F")


class PictureError(UserError):
    """A picture that cannot be used; `kind` is the key of data.clean that says what is to be done about it."""

    def __init__(self, kind: str, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.kind = kind


def picture(path: str | Path, height: int, width: int, channels: int) -> np.ndarray:
    """Reads a picture and resizes it (bilinear, with antialiasing; the sides are scaled, nothing is cut off).

    A camera's rotation mark is obeyed, transparency is laid on white, of an animation the first frame is taken. Colour
    becomes grey by ITU-R 601 luma. Light and dark are never swapped. A `.npy` holds [H, W] or [H, W, 1, 3 or 4]:
    uint8, uint16, or floats from 0 to 1.

    Returns:
      uint8 [height, width, channels].

    Raises:
      PictureError: a UserError with a `kind`: unreadable, shape or nan.
    """
    path = Path(path)
    if not path.is_file():
        raise PictureError("unreadable", path, "there is no such file")
    if path.suffix.lower() == ".npy":
        return fit(_load_npy(path), height, width, channels)
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return fit(_to_uint8(np.asarray(image), path), height, width, channels)
            return _resize(_flatten(ImageOps.exif_transpose(image)), height, width, channels)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        reason = "is not a picture, whatever its name says"
        raise PictureError("unreadable", path, reason) from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PictureError("unreadable", path, f"cannot be read as a picture ({reason})") from error


def fit(pixels: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """Resizes uint8 pixels [H, W, 1, 3 or 4] to uint8 [height, width, channels]; the right shape passes untouched."""
    if pixels.shape == (height, width, channels):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return _resize(_flatten(image), height, width, channels)


def is_colour(path: str | Path) -> bool:
    """Whether a picture has colour channels, from its header alone; False for what cannot be read."""
    try:
        if Path(path).suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return len(shape) == 3 and shape[-1] in (3, 4)
        with Image.open(path) as image:
            return image.mode not in _GREY and not image.mode.startswith("I;16")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


def _flatten(image: Image.Image) -> Image.Image:
    """Lays transparency on white; leaves mode L or RGB."""
    grey = image.mode in _GREY
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _resize(image: Image.Image, height: int, width: int, channels: int) -> np.ndarray:
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(image, np.uint8).reshape(height, width, channels)


def _load_npy(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PictureError("unreadable", path, "is not an array that numpy.save wrote") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        reason = (
            f"has shape {pixels.shape}; a picture is [H, W] or [H, W, C] with 1, 3 or 4 channels"
        )
        raise PictureError("shape", path, reason)
    return _to_uint8(pixels, path)


def _to_uint8(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Scales by type: uint8 as it is, 16 bits from 0..65535, floats from 0..1. Returns [H, W, C]."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all():
            raise PictureError("nan", path, "holds NaN or infinite values")
        low, high, top = 0.0, 1.0, "floats run from 0 to 1"
    else:
        low, high, top = 0, 65535, "whole numbers are uint8, or run from 0 to 65535"
        if pixels.dtype.kind not in "iu":
            raise PictureError(
                "unreadable", path, f"holds values of type {pixels.dtype}, not numbers"
            )
    if pixels.min() < low or pixels.max() > high:
        raise PictureError(
            "unreadable", path, f"has values from {pixels.min()} to {pixels.max()}; {top}"
        )
    return np.rint(pixels.astype(np.float64) * (255 / high)).astype(np.uint8)
