"""Pictures that a user gives, and how one of any size becomes one that a model takes: the one rule for videos, images,
masks and boxes. Scaled to cover the size, keeping its shape, and the overhang cut off evenly on both sides.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vdit import paths
from vdit.data.clips import fit_size
from vdit.errors import ShapeError, VideoError
from vdit.outputs import note_read
from vdit.pixels import check_pixels
from vdit.video.convert import scaled_size
from vdit.video.source import decoding

if TYPE_CHECKING:  # no jax where pictures are only read
    from vdit.types import Array


def choose_size(height: int, width: int, *, multiple: int = 1, area: int | None = None) -> tuple[int, int]:
    """The size (h, w), in multiples of `multiple`, that suits a picture best (vdit.data.clips.fit_size).

    At most `area` pixels (None: its own), and never above its own height or width. ShapeError if it is smaller than
    one block of `multiple` pixels, or the area is.
    """
    if min(height, width) < multiple:
        raise ShapeError(
            f"a picture of {height}x{width} (height x width) is smaller than a block of {multiple}x{multiple} pixels: "
            "give a larger one, or a size to scale it up to"
        )
    if area is not None and area < multiple**2:
        raise ShapeError(
            f"an area of {area} pixels is smaller than one block of {multiple}x{multiple}: give {multiple**2} or more"
        )
    own = (height // multiple * multiple, width // multiple * multiple)
    if own == (height, width) and (area is None or area >= height * width):
        return own
    most = own[0] * own[1] if area is None else min(area, own[0] * own[1])
    while True:
        size = fit_size(height, width, most, multiple)
        if size[0] <= height and size[1] <= width:
            return size
        most = size[0] * size[1] - 1  # fit_size allows a little above; the next smaller sizes do not reach there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """From pictures of `own` to pictures of `size`, both (h, w)."""

    own: tuple[int, int]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.own, *self.size) < 1:
            raise ShapeError(f"size={self.size} of a picture of {self.own}: give a height and a width from 1 up")

    @property
    def scaled(self) -> tuple[int, int]:
        """(h, w) of the whole picture after scaling, before the cut."""
        return scaled_size(*self.own, self.size, "cover")[0]

    @property
    def offset(self) -> tuple[int, int]:
        """(y, x) of what is kept, in the scaled picture."""
        return tuple((scaled - size) // 2 for scaled, size in zip(self.scaled, self.size))

    def image(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H W 3] of `own` -> uint8 [h w 3] of `size`, antialiased; one of that size is returned as it is."""
        if self.own == self.size:
            return image
        height, width = self.scaled
        scaled = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        return self._cut(np.asarray(scaled))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """bool [... H W] -> bool [... h w]: a pixel is true if any part of it is; scaling loses nothing."""
        if self.own == self.size:
            return mask
        return self._cut(_any(_any(mask, self.scaled[0], axis=-2), self.scaled[1], axis=-1)[..., None])[..., 0]

    def _cut(self, image: np.ndarray) -> np.ndarray:
        (top, left), (height, width) = self.offset, self.size
        return np.ascontiguousarray(image[..., top : top + height, left : left + width, :])

    def __str__(self) -> str:
        """In words: "scaled to 171x96 and 11 columns cut: 160x96" (width x height)."""
        if self.own == self.size:
            return "its own size"
        steps = [] if self.scaled == self.own else [f"scaled {self._direction}to {_shown(self.scaled)}"]
        rows, columns = (scaled - size for scaled, size in zip(self.scaled, self.size))
        cuts = [_count(rows, "row"), _count(columns, "column")]
        if any(cuts):
            steps.append(f"{' and '.join(filter(None, cuts))} cut")
        return f"{' and '.join(steps)}: {_shown(self.size)}" if any(cuts) else steps[0]

    @property
    def _direction(self) -> str:
        return "up " if self.scaled[0] > self.own[0] or self.scaled[1] > self.own[1] else ""


def _any(mask: np.ndarray, length: int, *, axis: int) -> np.ndarray:
    """Along one axis: `length` pixels in the place of those of the mask, each true where it overlaps a true one."""
    own = mask.shape[axis]
    moved = np.moveaxis(mask, axis, 0)
    counts = np.zeros((own + 1, *moved.shape[1:]), np.int32)
    np.cumsum(moved, axis=0, out=counts[1:])
    index = np.arange(length + 1) * own
    first, last = index[:-1] // length, -(-index[1:] // length)
    return np.moveaxis(counts[last] > counts[first], 0, axis)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}" if number else ""


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
    """uint8 [b h w 3] -> uint8 [b height width 3], as vdit.generate.images.Fit has it: scaled to cover `size` (height,
    width), antialiased, and cut evenly; images of that size are taken as they are. Never squashed.
    """
    fit = Fit(own=images.shape[1:3], size=tuple(size))
    return images if fit.own == fit.size else np.stack([fit.image(image) for image in images])


def is_image(path: str | Path) -> bool:
    """Whether the file holds a picture that `read_image` opens; animations are videos. By content, not by name."""
    path = paths.local_copy(path, error=VideoError)
    if not path.is_file():  # a pipe would wait for ever
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
    path = paths.local_copy(path, error=VideoError)
    if path.exists() and not path.is_file():
        raise VideoError(f"{path}: not a regular file")
    with decoding(path):
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width}x{image.height}"
                    raise VideoError(f"{path}: has {size} pixels, more than {MAX_PIXELS}: scale it down")
                if image.format in ("PNG", "WEBP", "TIFF", "AVIF") and image.n_frames > 1:
                    fix = "write them as .gif, .mp4 or .webm, or one alone"
                    raise VideoError(f"{path}: holds {image.n_frames} pictures: {fix}")
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
