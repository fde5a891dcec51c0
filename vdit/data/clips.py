"""Clips cut from videos of any kind: which part of a video a sample is, and the source of such samples.

A ClipSpec says start, frame rate, frames and size. It is drawn from a seed, never by chance. `Clips` is the one source
behind folders, worlds and TFDS data sets.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vdit.data.config import DataConfig
from vdit.data.data_source import DataSummary, Sample, Source, check_actions, draws
from vdit.errors import DataError
from vdit.reprs import short_repr

# A caption with one of these words may be false of the mirror image.
SIDED = re.compile(
    r"\b((left|right)(wards?|most|-?hand(ed)?)?|(counter|anti)?-?clockwise|(east|west)(wards?|ern)?|mirror\w*|"
    r"texts?|letters?|letter(ed|ing)|words?|writ(es|ing|ten)|reads?|reading|signs?|logos?|subtitles?|captions?|"
    r"numbers?|digits?)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """frames frames from `start` seconds on at `fps`; the whole picture resized to `resize` (h, w), then
    the window of `size` (h, w) at `offset` (y, x)."""

    start: float
    fps: float
    frames: int
    resize: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of VideoHandle.read."""
        return {"start": self.start, "fps": self.fps, "frames": self.frames, "size": self.resize}


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """What a cut shows. video: uint8 [t h w 3]; captions: the first is the short one; synthetic: how many
    of the last of them a model wrote; actions: float32 [t a] or None, what is done in each frame
    (vdit.data.conditions).
    """

    video: np.ndarray
    captions: tuple[str, ...]
    synthetic: int = 0
    actions: np.ndarray | None = None


class VideoHandle(Protocol):
    """One video that can be cut. width and height as displayed.

    elastic: it can be rendered at any size, frame rate and duration (worlds); nothing limits the draw.
    """

    id: str
    label: int
    height: int
    width: int
    fps: float
    seconds: float
    elastic: bool

    def read(self, *, start: float, fps: float, frames: int, size: tuple[int, int]) -> DecodedClip:
        """`frames` frames at `fps` from `start` seconds on, the whole picture resized to size (h, w)."""


SLACK = 5e-3  # seconds; containers round times to ticks of up to this

# A picture's share that is cut off weighs this much more than a share of the pixel budget left unused.
CROP_WEIGHT = 3.0


@functools.lru_cache(maxsize=4096)
def fit_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """The size (h, w), in multiples of `multiple` and of `area` pixels or fewer, that suits a picture best.

    Best is least CROP_WEIGHT * |log(aspect / the picture's)| + |log(pixels / area)|: the aspect ratio is kept
    as nearly as blocks of `multiple` pixels allow, at the cost of a slightly smaller picture.
    """
    blocks = area // multiple**2
    if blocks < 1:
        raise DataError(f"an area of {area} pixels is less than one block of {multiple} x {multiple}")
    aspect = width / height
    best, chosen = math.inf, (1, 1)
    for rows in range(1, blocks + 1):
        for columns in {math.floor(rows * aspect), math.ceil(rows * aspect)}:
            columns = min(max(columns, 1), blocks // rows)
            cost = (CROP_WEIGHT * abs(math.log(columns / rows / aspect))
                    + math.log(blocks / (rows * columns)))
            if cost < best:
                best, chosen = cost, (rows * multiple, columns * multiple)
    return chosen


def cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size (h, w) of the picture's own aspect ratio that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * scale)), max(size[1], round(width * scale))


def draw_cut(footage: VideoHandle, config: DataConfig, rng: np.random.Generator) -> ClipSpec:
    """A cut of the whole picture, resized to cover the size that fit_size gives and trimmed to it."""
    fps, frames, start = _draw_time(footage, config, rng)
    height, width = footage.height, footage.width
    own = height * width
    allowed = [area for area in config.pixel_budgets if footage.elastic or area <= own]
    area = int(rng.choice(allowed)) if allowed else own
    if area < config.size_multiple**2:
        raise DataError(f"video {footage.id!r} is {width}x{height}, smaller than one block of "
                        f"{config.size_multiple} x {config.size_multiple} pixels (data.size_multiple)")
    size = fit_size(height, width, area, config.size_multiple)
    resize = size if footage.elastic else cover(height, width, size)
    offset = tuple((r - s) // 2 for r, s in zip(resize, size))
    return ClipSpec(start=start, fps=fps, frames=frames, resize=resize, offset=offset, size=size)


def draw_crop(footage: VideoHandle, config: DataConfig, rng: np.random.Generator, *, size: tuple[int, int],
              frames: int) -> ClipSpec:
    """A random window of `size` (h, w) and `frames` from the picture at one of the areas it allows.

    A video too short for every frame rate of the config gives its own frames one by one.
    """
    span = _span(footage)
    rates = [rate for rate in _rates(footage, config) if (frames - 1) / rate <= span]
    if not rates and (frames - 1) / footage.fps <= span:
        rates = [footage.fps]
    if not rates:
        raise DataError(f"video {footage.id!r} is too short for {frames} frames ({footage.seconds:.2f} s at "
                        f"{footage.fps:g} fps)")
    fps = float(rng.choice(rates))
    start = _draw_start(footage, span, (frames - 1) / fps, rng)
    height, width = footage.height, footage.width
    allowed = [area for area in config.pixel_budgets if footage.elastic or area <= height * width]
    scale = math.sqrt(int(rng.choice(allowed or [height * width])) / (height * width))
    resize = round(height * scale), round(width * scale)
    if resize[0] < size[0] or resize[1] < size[1]:
        resize = cover(height, width, size)
    offset = tuple(int(rng.integers(0, r - s + 1)) for r, s in zip(resize, size))
    return ClipSpec(start=start, fps=fps, frames=frames, resize=resize, offset=offset, size=size)


def _rates(footage: VideoHandle, config: DataConfig) -> list[float]:
    """The frame rates to draw from: one above the video's own would only repeat frames, so it is taken
    only when all are above."""
    rates = [rate for rate in config.fps if footage.elastic or rate <= footage.fps * 1.01]
    return rates or [min(config.fps)]


def _span(footage: VideoHandle) -> float:
    """Seconds from the first frame to the last, and a hair more for durations that files round down."""
    return math.inf if footage.elastic else max(0.0, footage.seconds - 1 / footage.fps) + SLACK


def _draw_start(footage: VideoHandle, span: float, length: float, rng: np.random.Generator) -> float:
    room = 0.0 if footage.elastic else max(0.0, span - SLACK - length)
    return float(rng.uniform(0.0, room)) if room else 0.0


def _draw_time(footage: VideoHandle, config: DataConfig, rng: np.random.Generator) -> tuple[float, int, float]:
    """(fps, frames, start) that the footage has room for."""
    fps = float(rng.choice(_rates(footage, config)))
    span = _span(footage)
    counts = [count for count in config.frames if (count - 1) / fps <= span]
    if counts:
        frames = int(rng.choice(counts))
    else:
        most = 1 + int(span * fps) // config.frame_multiple * config.frame_multiple
        frames = min(most, max(config.frames))
    return fps, frames, _draw_start(footage, span, (frames - 1) / fps, rng)


def apply_cut(footage: VideoHandle, cut: ClipSpec) -> DecodedClip:
    """The shot that the cut asks for; raises DataError when the footage gives fewer frames."""
    return cut_window(footage, cut, footage.read(**cut.reading))


def cut_window(footage: VideoHandle, cut: ClipSpec, shot: DecodedClip) -> DecodedClip:
    """The cut's window of what was read of the footage; raises DataError where that is not what the cut asks for."""
    expected = (cut.frames, *cut.resize, 3)
    if shot.video.shape != expected or shot.video.dtype != np.uint8:
        raise DataError(f"video {footage.id!r} gave {shot.video.dtype} {shot.video.shape} from "
                        f"{cut.start:.2f} s on, expected uint8 {expected}: the file is cut short or its "
                        "header is wrong")
    if shot.actions is not None and (shot.actions.ndim != 2 or len(shot.actions) != cut.frames):
        raise DataError(f"video {footage.id!r} has actions of shape {shot.actions.shape} for {cut.frames} frames: give "
                        "[t a], one for each frame")
    (y, x), (h, w) = cut.offset, cut.size
    window = np.ascontiguousarray(shot.video[:, y : y + h, x : x + w])
    return dataclasses.replace(shot, video=window)


def may_flip(captions: Sequence[str]) -> bool:
    """Whether no caption names a side, a direction or writing (when in doubt, it may not)."""
    return not any(SIDED.search(caption) for caption in captions)


def resize_video(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [t h w 3] resized to size (h, w), antialiased."""
    if video.shape[1:3] == tuple(size):
        return video
    height, width = size
    frames = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
              for frame in video]
    return np.stack(frames)


CUT_DRAW, CROP_DRAW, FLIP_DRAW = 2, 3, 4  # see data_source.draws


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipView:
    """Which part of a source's video a clip shows, so that what lies beside the video can be cut in the same way.

    id: of the video. times: float64 [t], seconds of the clip's frames in the video. resize: (h, w) of the whole
    picture; offset: (y, x) and size: (h, w) of the window in it. mirrored: whether left and right are swapped.
    """

    id: str
    times: np.ndarray
    resize: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """Whole pictures of other data, cut as the clip is.

        Args:
            frames: [t H W c] of any size and type, one for each of `times`; resized to the nearest value.

        Returns:
            [t h w c] of the clip's size.
        """
        rows = (np.arange(self.resize[0]) * frames.shape[1] // self.resize[0])[self.offset[0] :][: self.size[0]]
        columns = (np.arange(self.resize[1]) * frames.shape[2] // self.resize[1])[self.offset[1] :][: self.size[1]]
        window = frames[:, rows][:, :, columns]
        return np.ascontiguousarray(window[:, :, ::-1] if self.mirrored else window)


class VideoDataset(Protocol):
    """Videos by number. `broken` maps names to reasons, for those left out when it was opened.

    summary: what was found and what of it is used; None where every video is used as it is.
    """

    broken: dict[str, str]
    summary: DataSummary | None

    def __len__(self) -> int: ...

    def name(self, item: int) -> str: ...

    def open(self, item: int, rng: np.random.Generator) -> VideoHandle:
        """The video; rng is for libraries whose videos have no size of their own."""


class Clips(Source):
    """A cut of each video of a library in each pass: another cut in another pass, the same for a seed.

    Samples have "video" uint8 [t h w 3], and "actions" float32 [t a] where the library knows what is done in each
    frame, and "view" (ClipView), which part of its video each is; see draw_cut.
    """

    def __init__(self, library: VideoDataset, config: DataConfig, *, seed: int = 0):
        super().__init__()
        self.library = library
        self.config = config
        self.seed = seed
        for name, reason in library.broken.items():
            self.skip(name, reason)

    def __len__(self) -> int:
        return len(self.library)

    def name(self, item: int) -> str:
        return self.library.name(item)

    @property
    def summary(self) -> DataSummary | None:
        return self.library.summary

    def read(self, item: int, epoch: int) -> Sample:
        index = item + epoch * len(self)
        rng = draws(self.seed, index, CUT_DRAW)
        footage = self.library.open(item, rng)
        cut = draw_cut(footage, self.config, rng)
        return self.sample(footage, cut, footage.read(**cut.reading), index)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        check_actions(sample, self.config.actions)  # here: a library that has none is no broken item to skip
        return sample

    def crops(self, *, size: tuple[int, int], frames: int) -> Crops:
        """The same videos, cut to random windows of one size.

        Args:
            size: (h, w) of every window, in pixels.
            frames: of every window.
        """
        return Crops(self, size=size, frames=frames)

    def sample(self, footage: VideoHandle, cut: ClipSpec, shot: DecodedClip, index: int) -> Sample:
        """The sample that what was read of the footage gives."""
        shot = cut_window(footage, cut, shot)
        video, chance = shot.video, self.config.hflip
        # A mirror image would need other actions; which, only the world knows.
        may = shot.actions is None and may_flip(shot.captions)
        mirrored = bool(chance and may and draws(self.seed, index, FLIP_DRAW).random() < chance)
        if mirrored:
            video = np.ascontiguousarray(video[:, :, ::-1])
        times = cut.start + np.arange(cut.frames) / cut.fps
        view = ClipView(id=footage.id, times=times, resize=cut.resize, offset=cut.offset, size=cut.size,
                        mirrored=mirrored)
        synthetic = {"synthetic": shot.synthetic} if shot.synthetic else {}
        actions = {} if shot.actions is None else {"actions": np.asarray(shot.actions, np.float32)}
        return {"video": video, "captions": list(shot.captions), "fps": cut.fps, "id": footage.id,
                "label": footage.label, "size": [footage.height, footage.width], "start": cut.start,
                "view": view} | actions | synthetic


class Crops(Source):
    """A random window of one size of each video of `clips` in each pass; made by `Clips.crops`.

    What cannot be read is skipped, and is in the report of `clips` too.
    """

    def __init__(self, clips: Clips, *, size: tuple[int, int], frames: int):
        super().__init__()
        self.clips, self.size, self.frames = clips, size, frames

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, item: int) -> str:
        return self.clips.name(item)

    def skip(self, name: str, reason: str) -> None:
        self.clips.skip(name, reason)

    def report(self) -> dict[str, str]:
        return self.clips.report()

    def read(self, item: int, epoch: int) -> Sample:
        clips, index = self.clips, item + epoch * len(self)
        rng = draws(clips.seed, index, CROP_DRAW)
        footage = clips.library.open(item, rng)
        cut = draw_crop(footage, clips.config, rng, size=self.size, frames=self.frames)
        return clips.sample(footage, cut, footage.read(**cut.reading), index)
