"""Clips cut from videos of any kind: the one source behind folders, worlds and TFDS data sets."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from vdit.data.actions import check_actions
from vdit.data.config import DataConfig
from vdit.data.cuts import ClipSpec, VideoHandle, apply_cut, draw_crop, draw_cut, may_flip
from vdit.data.sources import DataSummary, Sample, Source, draws
from vdit.reprs import short_repr

CUT_DRAW, CROP_DRAW, FLIP_DRAW = 2, 3, 4  # see sources.draws


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
    frame, and "view" (ClipView), which part of its video each is; see vdit.data.cuts for how sizes and times are drawn.
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
        return self._sample(footage, draw_cut(footage, self.config, rng), index)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        check_actions(sample, self.config.actions)  # here: a library that has none is no broken item to skip
        return sample

    def crop(self, index: int, *, size: tuple[int, int], frames: int) -> Sample:
        """Like [index], but a random window of size (h, w) and `frames`, the same for every item."""

        def read(item: int, epoch: int) -> Sample:
            index = item + epoch * len(self)
            rng = draws(self.seed, index, CROP_DRAW)
            footage = self.library.open(item, rng)
            cut = draw_crop(footage, self.config, rng, size=size, frames=frames)
            return self._sample(footage, cut, index)

        return self.first_readable(index, read)

    def _sample(self, footage: VideoHandle, cut: ClipSpec, index: int) -> Sample:
        shot = apply_cut(footage, cut)
        video, chance = shot.video, self.config.hflip
        # A mirror image would need other actions; which, only the world knows.
        may = shot.actions is None and may_flip(shot.captions)
        mirrored = bool(chance and may and draws(self.seed, index, FLIP_DRAW).random() < chance)
        if mirrored:
            video = np.ascontiguousarray(video[:, :, ::-1])
        times = cut.start + np.arange(cut.frames) / cut.fps
        view = ClipView(id=footage.id, times=times, resize=cut.resize, offset=cut.offset, size=cut.size,
                        mirrored=mirrored)
        actions = {} if shot.actions is None else {"actions": np.asarray(shot.actions, np.float32)}
        return {"video": video, "captions": list(shot.captions), "fps": cut.fps, "id": footage.id,
                "label": footage.label, "size": [footage.height, footage.width], "start": cut.start,
                "view": view} | actions
