"""Tiny footage with known scenes, for tests and tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vdit.video.write import write_video

RATE = 10


def scene(kind: int, frames: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [t h w 3]: a texture of its own that moves, the same for the same arguments."""
    height, width = size
    blocks = np.random.default_rng(kind).integers(0, 255, (height // 8, width // 4, 3), dtype=np.uint8)
    texture = blocks.repeat(8, 0).repeat(8, 1)
    speed = 1 + kind % 3
    return np.stack([texture[:, (speed * k) % width :][:, :width] for k in range(frames)])


def write_footage(folder: Path) -> Path:
    """Three films: a of two scenes, b of another, c a copy of b in another file, and a file that is no film."""
    folder.mkdir()
    write_video(folder / "a.mp4", np.concatenate([scene(1, 14), scene(2, 16)]), fps=RATE)
    write_video(folder / "b.mp4", scene(3, 20), fps=RATE)
    write_video(folder / "c.mkv", scene(3, 20), fps=RATE)
    (folder / "d.mp4").write_bytes(b"no film at all")
    (folder / "captions.csv").write_text("file,caption\na.mp4,waves move\nb.mp4,other waves\n")
    return folder
