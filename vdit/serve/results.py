"""Files of finished jobs: a lossless master, what browsers play of it, a picture, and other formats when asked for."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vdit.errors import VideoError
from vdit.outputs import write_whole
from vdit.serve.schema import FORMATS
from vdit.video.read import iter_frames
from vdit.video.write import write_growing, write_image, write_video

THUMBNAIL = 320  # pixels of the longer side at most
GIF_FPS = 50


def png_of(frame: np.ndarray, *, longest: int | None = None) -> bytes:
    """A frame float32 [h w 3] in [-1, 1] as PNG, scaled down to `longest` pixels a side."""
    image = Image.fromarray(np.round((np.clip(frame, -1, 1) + 1.0) * 127.5).astype(np.uint8))
    if longest is not None:
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


class Results:
    """The folder of results; files are named by ids of jobs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._making = threading.Lock()

    def master(self, id: str) -> Path:
        return self.folder / f"{id}.mkv"

    def part(self, id: str, name: str) -> Path:
        """A lossless video beside the result: "composed" or "mask" of a timeline canvas."""
        return self.folder / f"{id}.{name}.mkv"

    def stream(self, id: str) -> Path:
        """What is there of a video that is being made, to be played while it grows."""
        return self.folder / f"{id}.growing.mp4"

    def write_master(self, id: str, pieces: Iterable[np.ndarray], fps: float, *, grows: bool = False) -> int:
        """Writes pieces [t h w 3] as they come, without loss; gives the number of frames.

        grows: whether they can be played meanwhile (`stream`).
        """
        count = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal count
            for piece in pieces:
                count += len(piece)
                yield piece

        frames = write_growing(self.stream(id), counted(), fps) if grows else counted()
        write_video(self.master(id), frames, fps=fps)
        return count

    def publish(self, id: str, fps: float) -> None:
        """Makes of the master what browsers show."""
        self._convert(id, "mp4", fps)
        first = next(iter(frame for _, frame in iter_frames(self.master(id))))
        image = Image.fromarray(first)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        write_image(self.folder / f"{id}.png", np.asarray(image))
        self.stream(id).unlink(missing_ok=True)  # those who read it go on to its end

    def get(self, id: str, format: str, fps: float) -> Path:
        """A finished job's file in a format, which is made when it is first asked for. One at a time."""
        if format not in FORMATS:
            raise VideoError(f"format {format!r} is not written, only {', '.join(FORMATS)}")
        path = self.folder / f"{id}.{format}"
        if not path.exists():
            with self._making:
                if not path.exists():
                    self._convert(id, format, fps)
        return path

    def thumbnail(self, id: str) -> Path:
        return self.folder / f"{id}.png"

    def forget(self, id: str) -> None:
        for file in self.folder.glob(f"{id}*"):
            file.unlink(missing_ok=True)

    def _convert(self, id: str, format: str, fps: float) -> None:
        if format == "gif":
            fps = min(fps, GIF_FPS)
        path = self.folder / f"{id}.{format}"
        frames = (frame for _, frame in iter_frames(self.master(id)))
        write_whole(path, lambda part: write_video(part, frames, fps=fps), replace=True)
