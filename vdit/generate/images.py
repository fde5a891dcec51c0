"""Images that a user gives, fitted to the size of the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vdit.errors import ShapeError, VideoError
from vdit.generate.fit import Fit
from vdit.outputs import note_read
from vdit.types import Array, check_pixels
from vdit.video.source import decoding

MAX_PIXELS = 100_000_000
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM")


def as_bytes(image: Array) -> np.ndarray:
    """uint8, or float in [-1, 1]: [h w 3] or [b h w 3] -> uint8 [b h w 3]; ShapeError for anything else."""
    image = np.asarray(image)
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] != 3 or not image.size:
        raise ShapeError(f"image of shape {image.shape} must be [h w 3], or [b h w 3]")
    if image.dtype != np.uint8:
        check_pixels(image, "image")
        image = np.round((np.clip(image, -1, 1) + 1.0) * 127.5).astype(np.uint8)
    return image


def fit_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [b h w 3] -> uint8 [b height width 3], as vdit.generate.fit.Fit has it: scaled to cover `size` (height,
    width), antialiased, and cut evenly; images of that size are taken as they are. Never squashed.
    """
    fit = Fit(own=images.shape[1:3], size=tuple(size))
    return images if fit.own == fit.size else np.stack([fit.image(image) for image in images])


def is_image(path: str | Path) -> bool:
    """Whether the file holds a picture that `read_image` opens; animations are videos. By content, not by name."""
    if not Path(path).is_file():  # a pipe would wait for ever
        return False
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.format not in ("GIF", "AVIF") or not image.is_animated
    except Exception:  # of a library that reads what anyone may have written
        return False


def read_image(path: str | Path, *, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """uint8 [h w 3] of a still image's file, turned as its camera says; VideoError where it cannot be read.

    What is transparent shows `background`, as in videos (vdit.video.convert). Of 16 bits the upper 8 are taken.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise VideoError(f"{path}: not a regular file")
    with decoding(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width}x{image.height}"
                    raise VideoError(f"{path}: has {size} pixels, more than {MAX_PIXELS}: scale it down")
                if image.format in ("PNG", "WEBP", "TIFF", "AVIF") and image.n_frames > 1:
                    mend = "write them as .gif, .mp4 or .webm, or one alone"
                    raise VideoError(f"{path}: holds {image.n_frames} pictures: {mend}")
                note_read(path)
                return _rgb(ImageOps.exif_transpose(image), background)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(f"{path}: cannot be read as an image: {_reason(error)}") from None


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image.convert("I")) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        below = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(below, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}"
    return getattr(error, "strerror", None) or str(error)
