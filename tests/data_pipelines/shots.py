"""Small films with known content, for the tests of curation."""

from pathlib import Path

import numpy as np

from vdit.video.write import write_video

SIZE = (90, 160)


def texture(seed: int, size: tuple[int, int] = SIZE, cell: int = 6) -> np.ndarray:
    """float32 [h w 3] of 0..255: coloured blobs, another picture for another seed."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.uniform(0, 1, (height // cell + 3, width // cell + 3, 3))
    y, x = np.arange(height) / cell, np.arange(width) / cell
    i, j, fy, fx = y.astype(int), x.astype(int), (y % 1)[:, None, None], (x % 1)[None, :, None]
    grid = lambda a, b: coarse[i + a][:, j + b]  # noqa: E731
    mixed = (grid(0, 0) * (1 - fy) + grid(1, 0) * fy) * (1 - fx) + (grid(0, 1) * (1 - fy) + grid(1, 1) * fy) * fx
    return (30 + 195 * mixed).astype(np.float32)


def shot(seed: int, frames: int, *, size: tuple[int, int] = SIZE, speed: float = 0.0) -> np.ndarray:
    """uint8 [t h w 3]: a still picture, or one over which the camera moves `speed` pixels a frame to the right."""
    wide = texture(seed, (size[0], size[1] + int(abs(speed) * frames) + 1))
    out = []
    for k in range(frames):
        x = speed * k
        whole, part = int(x), x - int(x)
        out.append(wide[:, whole : whole + size[1]] * (1 - part) + wide[:, whole + 1 : whole + 1 + size[1]] * part
                   if part else wide[:, whole : whole + size[1]])  # fmt: skip
    return np.round(np.stack(out)).astype(np.uint8)


def film(path: Path, parts: list[np.ndarray], fps: float = 24) -> str:
    """Writes parts one after the other, lossless for .mkv; the path as text."""
    write_video(path, (frame for part in parts for frame in part), fps=fps)
    return str(path)
