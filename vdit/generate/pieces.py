"""The pieces that videos are made of: what comes next, what came before, what lies between."""

from __future__ import annotations

import dataclasses

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import known as connecting
from vdit.generate import known as extending
from vdit.generate import known as looping
from vdit.generate.filling import (
    Prompts,
    Sampling,
    fill,
    grouping_of,
    put_back,
    texts_of,
    usual_passage,
    window_of,
)
from vdit.generate.generator import Generator
from vdit.generate.windows import Remake
from vdit.reprs import short_repr
from vdit.sampling.canvas import Grouping
from vdit.sampling.programs import Reference
from vdit.seeds import check_seed, child_seed


@short_repr
@dataclasses.dataclass(kw_only=True)
class Pieces:
    """One call of a function of vdit.generate.making: canvas after canvas, each with a seed of its own.

    Videos are float32 [b t h w 3] in [-1, 1], of b = 1 or one for each prompt. window: frames of the longest canvas.
    """

    generator: Generator
    prompts: list[str]
    window: int
    seed: int
    sampling: Sampling
    count: int = 0

    @classmethod
    def of(
        cls, generator: Generator, prompts: Prompts, *, window: int | None, seed: int, sampling: Sampling
    ) -> Pieces:
        return cls(
            generator=generator, prompts=texts_of(prompts), window=window_of(generator, window), seed=check_seed(seed),
            sampling=sampling,
        )  # fmt: skip

    def next_seed(self) -> int:
        self.count += 1
        return child_seed(self.seed, self.count - 1)

    @property
    def grouping(self) -> Grouping:
        return grouping_of(self.generator)

    @property
    def slides(self) -> bool:
        """Whether training included windows that start mid-clip (CanvasConfig.window > 0)."""
        return self.generator.experiment.canvases.window > 0

    def passage_frames(self, name: str, frames: int | None) -> int:
        if frames is None:
            return usual_passage(self.generator, self.window)
        self.grouping.check_passage(name, frames)
        return frames

    def fill(self, given: Reference, frames: int, **kept) -> np.ndarray:
        """vdit.generate.filling.fill"""
        return fill(
            self.generator, self.prompts, given, frames=frames, seed=self.next_seed(), sampling=self.sampling, **kept
        )

    def sample(self, frames: int, size: tuple[int, int] | None) -> np.ndarray:
        """Made of the prompts alone."""
        return np.asarray(
            self.generator(self.prompts, frames=frames, size=size, seed=self.next_seed(), **self.sampling)
        )

    def longer(self, video: np.ndarray, frames: int) -> np.ndarray:
        """The video, made longer or cut to `frames`."""
        missing = frames - video.shape[1]
        return joined(video, self.forward(video, missing, None)) if missing > 0 else video[:, :frames]

    def forward(self, video: np.ndarray, wanted: int, context: int | None) -> np.ndarray:
        """The next `wanted` frames after the video."""
        more = {"has": video.shape[1], "window": self.window, "grouping": self.grouping, "context": context}
        windows, parts = extending.forward_windows(wanted, **more), []
        if len(windows) > 1 and self.slides:
            return self._slid(video, wanted, windows[0].context, windows[-1].context)
        for canvas in windows:
            video = self.fill(extending.forward(video, context=canvas.context), canvas.frames)
            parts.append(video[:, canvas.context :])
        return joined(*parts)[:, :wanted]

    def _slid(self, video: np.ndarray, wanted: int, known: int, context: int) -> np.ndarray:
        """`forward` by windows that slide in latents: nothing that was made is encoded again, so nothing wears off."""
        tail, size = video[:, -known:], video.shape[2:4]

        def begin(first: int, stop: int) -> Reference:
            number = np.arange(first, stop)
            level = np.broadcast_to(np.float32(number >= known)[:, None, None], (len(tail), len(number), 1, 1))
            return Reference(video=tail[:, np.minimum(number, known - 1)], level=level)

        sampling = dict(self.sampling)
        negative = sampling.pop("negative", "")
        remake = Remake(
            generator=self.generator, method=self.generator.method(given=True, **sampling), prompts=self.prompts,
            begin=begin,
            frames=known + wanted, size=size, negative=negative, seed=self.next_seed(), window=self.window,
            overlap=max(self.grouping.step, self.grouping.tail(context)),
        )  # fmt: skip
        self.count += len(remake.windows) - 1
        return put_back(joined(*remake), begin(0, known))[:, known:]

    def backward(self, video: np.ndarray, wanted: int, context: int | None) -> np.ndarray:
        """The `wanted` frames that lead up to the video."""
        more = {"has": video.shape[1], "window": self.window, "grouping": self.grouping, "context": context}
        parts = []
        for canvas in extending.backward_windows(wanted, **more):
            given = extending.backward(video, context=canvas.context, frames=canvas.frames)
            video = self.fill(given, canvas.frames)
            parts.insert(0, video[:, : canvas.frames - canvas.context])
        return joined(*parts)[:, -wanted:]

    def passage(self, first: np.ndarray, second: np.ndarray | None, frames: int) -> np.ndarray:
        """`frames` from the end of the first to the beginning of the second, or of the first itself.

        A passage too long for a window with known ends begins as the first video goes on.
        """
        has = first.shape[1], (first if second is None else second).shape[1]
        more = {"window": self.window, "grouping": self.grouping}
        ends, early, closing = connecting.contexts(frames, has=has, **more), [], frames
        if ends is None:
            closing = min(frames, usual_passage(self.generator, self.window))
            ends = connecting.contexts(closing, has=has, **more)
            if ends is None:
                least = self.grouping.first + 2 * self.grouping.step
                raise ShapeError(f"window={self.window} holds no passage between known ends: give {least} or more")
            if frames > closing:
                early = [self.forward(first, frames - closing, None)]
                first = joined(first, *early)
                ends = connecting.contexts(closing, has=(first.shape[1], has[1]), **more)
        before, after = ends
        sides = {"frames": closing, "before": before, "after": after}
        if second is None:
            given = looping.loop(first, **sides)
        else:
            given = connecting.connect(*_as_many(first, second), **sides)
        made = self.fill(given, before + closing + after)
        return joined(*early, made[:, before : before + closing])

    def blend(self, first: np.ndarray, second: np.ndarray, frames: int, strength: float) -> np.ndarray:
        """`frames` in which the end of the first turns into the beginning of the second."""
        if self.generator.experiment.network.reference_channels:
            raise ConfigError("this model is told of given frames, not of blends: connect the videos without blend")
        grouping = self.grouping
        for name, video, known in (("first", first, grouping.first), ("second", second, grouping.step)):
            if video.shape[1] < frames + known:
                raise ShapeError(
                    f"frames={frames} in which both run at once: {name} has {video.shape[1]} frames, give a video of "
                    f"{frames + known} or more, or a shorter blend"
                )
        has = first.shape[1] - frames, second.shape[1] - frames
        ends = connecting.contexts(frames, has=has, window=self.window, grouping=grouping)
        if ends is None:
            most = grouping.tail(self.window - grouping.first - grouping.step)
            mend = f"give at most {most}" if most else f"give a window of {grouping.first + 2 * grouping.step} or more"
            raise ShapeError(f"frames={frames} do not fit a window of {self.window} between known ends: {mend}")
        before, after = ends
        sides = {"before": before, "after": after, "strength": strength, "grouping": grouping}
        given = connecting.blend(first, second, frames=frames, **sides)
        return self.fill(given, before + frames + after)[:, before : before + frames]


def _as_many(*videos: np.ndarray) -> list[np.ndarray]:
    """Videos of one entry beside others of b: all of b."""
    count = max(map(len, videos))
    return [np.broadcast_to(video, (count, *video.shape[1:])) for video in videos]


def joined(*videos: np.ndarray) -> np.ndarray:
    """One after the other: [b t h w 3]."""
    return np.concatenate(_as_many(*videos), axis=1)
