"""Images that a user gives, fitted to the size of the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vdit.errors import ShapeError, VideoError
from vdit.types import Array

MAX_PIXELS = 100_000_000


def as_bytes(image: Array) -> np.ndarray:
    """uint8, or float in [-1, 1]: [h w 3] or [b h w 3] -> uint8 [b h w 3]; ShapeError for anything else."""
    image = np.asarray(image)
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] != 3 or not image.size:
        raise ShapeError(f"image of shape {image.shape} must be [h w 3], or [b h w 3]")
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating) or not np.abs(image).max() <= 1.0:
            raise ShapeError(f"image of {image.dtype} must be uint8, or float in [-1, 1]")
        image = np.round((image + 1.0) * 127.5).astype(np.uint8)
    return image


def fit_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [b h w 3] -> uint8 [b height width 3].

    Scaled to cover `size` (height, width), antialiased, and cut around the middle; images of that size are
    taken as they are. Never squashed.
    """
    if images.shape[1:3] == tuple(size):
        return images
    fitted = [ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(frame) for frame in fitted])


def read_image(path: str | Path) -> np.ndarray:
    """uint8 [h w 3] of a still image's file, turned as its camera says; VideoError where it cannot be read."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise VideoError(f"{path}: has {size} pixels, more than {MAX_PIXELS}: scale it down")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be read as an image: {error}") from None
