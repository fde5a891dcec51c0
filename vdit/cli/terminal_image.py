"""A frame as text: half blocks in 24-bit colour, two pixels in each character (ANSI terminals)."""

from __future__ import annotations

import shutil


def rows_of(frame, *, columns: int | None = None) -> list[str]:
    """uint8 [h w 3] -> lines, as wide as the frame, or as `columns` (None: the terminal's) if these are fewer.

    The upper half of a character is its foreground, the lower its background; it is about as high as two are wide.
    """
    import numpy as np
    from PIL import Image

    height, width = frame.shape[:2]
    wide = min(width, shutil.get_terminal_size().columns if columns is None else columns)
    high = max(2, round(height * wide / width / 2) * 2)
    if (high, wide) != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.LANCZOS))
    lines = []
    for upper, lower in zip(frame[::2].tolist(), frame[1::2].tolist()):
        cells = (f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m▀" for (r, g, b), (x, y, z) in zip(upper, lower))
        lines.append("".join(cells) + "\x1b[0m")
    return lines
