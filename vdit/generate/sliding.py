"""Verbs as streams: short loops over canvases, some frames at a time, in flat memory whatever the lengths.

    run = Run.of(generator, "a dog runs", seed=0)
    pieces = extend(run, ArrayFrames(video), after=48)           # float32 [b t h w 3], one piece after the other
    vdit.write_video("longer.mp4", (piece[0] for piece in pieces), fps=8)

vdit.extend, vdit.loop, ... (vdit.generate.verbs) give the same videos whole. Videos that go in are `Frames`: arrays
(ArrayFrames) or files (vdit.generate.inputs.VideoInput), which are read while the result is made.

A model whose training included windows that start mid-clip continues a video in latents (vdit.sampling.sliding). Other
models, and passages that lead up to given frames, go canvas after canvas: each is given the end (or the start) of the
video so far, in pixels.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from vdit.dist.rules import to_host
from vdit.errors import ConfigError, ShapeError, VditWarning
from vdit.generate import known as knowing
from vdit.generate.blend import Blend, Piece, keep_reference, keep_stream
from vdit.generate.generator import Generator, Sampling, frames_of, grouping_of, texts_of, usual_passage, window_of
from vdit.generate.images import as_bytes, fit_images
from vdit.models.vision import clip_pixels
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Grouping, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.kv import use_kv
from vdit.sampling.programs import Reference
from vdit.sampling.sliding import PromptSchedule, SlidingCanvas, Window
from vdit.seeds import check_seed, child_seed
from vdit.types import Array

CHUNK = 32  # frames of a given video that are held at a time

Pieces = Iterator[np.ndarray]


class Frames(Protocol):
    """A video that is given: it may be read more than once, from its beginning.

    size: (height, width). count: how many frames it has, as far as its file says.
    """

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def count(self) -> int: ...

    def __iter__(self) -> Pieces:
        """float32 [1 t h w 3] in [-1, 1], some frames at a time."""


@short_repr
@dataclasses.dataclass(frozen=True)
class ArrayFrames:
    """Frames of an array float32 [1 t h w 3] in [-1, 1]."""

    video: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.video.shape[2:4]

    @property
    def count(self) -> int:
        return self.video.shape[1]

    def __iter__(self) -> Pieces:
        return (self.video[:, start : start + CHUNK] for start in range(0, self.count, CHUNK))


def head_of(video: Frames, most: int) -> np.ndarray:
    """The first frames, at most so many: float32 [1 t h w 3]."""
    parts, count = [], 0
    with contextlib.closing(iter_closing(video)) as pieces:
        for piece in pieces:
            parts.append(piece[:, : most - count])
            count += parts[-1].shape[1]
            if count >= most:
                break
    return np.concatenate(parts, axis=1)


def iter_closing(video: Iterable) -> Pieces:
    """Its pieces, as a generator: closing it closes the file."""
    yield from video


class Tail:
    """The last frames of what has come by."""

    def __init__(self, most: int):
        self._most, self._parts, self.seen = most, collections.deque(), 0

    def add(self, piece: np.ndarray) -> None:
        self._parts.append(piece)
        self.seen += piece.shape[1]
        while sum(part.shape[1] for part in self._parts) - self._parts[0].shape[1] >= self._most:
            self._parts.popleft()

    @property
    def video(self) -> np.ndarray:
        """float32 [b t h w 3], at most `most` frames."""
        return joined(*self._parts)[:, -self._most :]


@short_repr
@dataclasses.dataclass(kw_only=True)
class Run:
    """One call of a verb: canvas after canvas, each by a seed of its own.

    prompts: one for each video. window: frames of the longest canvas. sampling: options of Generator.__call__.
    count: canvases so far; canvas i is sampled by child_seed(seed, i), or in a sliding canvas by a key of the seed
        into which i is folded.
    joins: how generated frames meet given ones (vdit.generate.blend.JOINS).
    """

    generator: Generator
    prompts: list[str]
    window: int
    seed: int
    sampling: Sampling
    joins: str = "motion"
    count: int = 0

    @classmethod
    def of(
        cls, generator: Generator, prompts: str | Sequence[str], *, window: int | None = None, seed: int = 0,
        joins: str | None = None, **sampling,
    ) -> Run:  # fmt: skip
        """window: None is the longest video that the model was trained on or is sampled at. joins: None is as in the
        experiment's `sample`."""
        unknown = sorted(set(sampling) - set(Sampling.__annotations__))
        if unknown:
            raise ConfigError(f"{unknown[0]}={sampling[unknown[0]]!r}: there is no such option")
        return cls(
            generator=generator, prompts=texts_of(prompts), window=window_of(generator, window), seed=check_seed(seed),
            sampling=sampling, joins=Blend(joins=joins or generator.experiment.sample.joins).joins,
        )  # fmt: skip

    @property
    def grouping(self) -> Grouping:
        return grouping_of(self.generator)

    @property
    def slides(self) -> bool:
        """Whether training included windows that start mid-clip (CanvasConfig.window > 0)."""
        return self.generator.experiment.canvases.window > 0

    @property
    def negative(self) -> str:
        return self.sampling.get("negative", "")

    def method(self, *, known: bool) -> SamplingConfig:
        """known: whether anything is given of the canvases."""
        asked = {name: value for name, value in self.sampling.items() if name != "negative"}
        return self.generator.method(given=known, **asked)

    def words(self, texts: list[str]) -> tuple[Prompts, Prompts]:
        """(positive, negative) prompts."""
        tokens = self.generator.tokens
        return tokens(texts), tokens([self.negative] * len(texts))

    def next_seed(self) -> int:
        self.count += 1
        return child_seed(self.seed, self.count - 1)

    def passage_frames(self, name: str, frames: int | None) -> int:
        """`frames` of a passage, checked; None is the usual number."""
        if frames is None:
            return usual_passage(self.generator, self.window)
        self.grouping.check_passage(name, frames)
        return frames

    def sample(self, frames: int, size: tuple[int, int] | None) -> np.ndarray:
        """Made of the prompts alone: float32 [b t h w 3]."""
        made = self.generator(self.prompts, frames=frames, size=size, seed=self.next_seed(), **self.sampling)
        return np.asarray(made)

    def fill(self, given: Reference, frames: int, *, kept: np.ndarray | None = None) -> np.ndarray:
        """A canvas of so many frames, with what was given put back bit for bit: float32 [b t h w 3].

        kept: bool [s], the frames of `given` to put back; None for all pixels whose level is 0. The image encoder of a
        model that has one is shown the first frame, or what stands in its place.
        """
        generator = self.generator
        vision = generator.experiment.vision
        if vision is not None and given.pixels is None:
            pixels = np.stack([clip_pixels(image, vision) for image in as_bytes(np.asarray(given.video[:, 0]))])
            given = dataclasses.replace(given, pixels=pixels)
        made = generator(self.prompts, given=given, frames=frames, seed=self.next_seed(), **self.sampling)
        known = np.asarray(given.level) == 0 if kept is None else np.asarray(kept)[None, :, None, None]
        pick = lambda x, i: x[i if len(x) > 1 else 0]  # noqa: E731
        return np.stack(
            [
                keep_reference(video, pick(given.video, i), pick(known, i), Blend(joins=self.joins))
                for i, video in enumerate(np.asarray(made))
            ]
        )

    def continued(self, tail: np.ndarray, wanted: int, *, has: int, context: int | None = None) -> Pieces:
        """The next `wanted` frames after a video of `has`, of which the last ones are `tail` [b t h w 3]."""
        more = {"has": has, "window": self.window, "grouping": self.grouping, "context": context}
        windows, left = knowing.forward_windows(wanted, **more), wanted
        if len(windows) > 1 and self.slides and Window.fits(self.grouping, self.window):
            yield from self._slid(tail, wanted, windows[0].context, windows[-1].context)
            return
        for canvas in windows:
            video = self.fill(knowing.forward(tail, context=canvas.context), canvas.frames)
            new = video[:, canvas.context :][:, :left]
            tail, left = joined(tail, new)[:, -self.window :], left - new.shape[1]
            yield new

    def preceded(self, head: np.ndarray, wanted: int, *, has: int, context: int | None = None) -> Pieces:
        """The `wanted` frames that lead up to a video of `has` that begins with `head`, some at a time, in their order.

        They are made from the last on, and wait in a file until the first are there.
        """
        more = {"has": has, "window": self.window, "grouping": self.grouping, "context": context}
        windows, video = knowing.backward_windows(wanted, **more), head
        with tempfile.TemporaryDirectory(prefix="vdit-") as folder:
            names = []
            for number, canvas in enumerate(windows):
                given = knowing.backward(video, context=canvas.context, frames=canvas.frames)
                video = self.fill(given, canvas.frames)
                names.insert(0, Path(folder) / f"{number}.npy")
                np.save(names[0], video[:, : canvas.frames - canvas.context])
            beyond = sum(canvas.frames - canvas.context for canvas in windows) - wanted
            for name in names:
                piece = np.load(name, allow_pickle=False)
                if beyond < piece.shape[1]:
                    yield piece[:, beyond:]
                beyond = max(0, beyond - piece.shape[1])

    def passage(self, first: Tail, second: np.ndarray, frames: int, *, has: int) -> Pieces:
        """`frames` from the end of the first video to the second, of `has` frames, which begins with `second`.

        A passage too long for a window with known ends begins as the first video goes on.
        """
        closing = self.closing_frames(frames, has=(first.seen, has))
        if frames > closing:
            for piece in self.continued(first.video, frames - closing, has=first.seen):
                first.add(piece)
                yield piece
        more = {"window": self.window, "grouping": self.grouping}
        before, after = knowing.contexts(closing, has=(first.seen, has), **more)
        given = knowing.connect(*_as_many(first.video, second), frames=closing, before=before, after=after)
        yield self.fill(given, before + closing + after)[:, before : before + closing]

    def closing_frames(self, frames: int, *, has: tuple[int, int]) -> int:
        """Of a passage of `frames` between videos of `has`, the last ones, which know both ends.

        ShapeError where the window or a video is too short for any.
        """
        more = {"has": has, "window": self.window, "grouping": self.grouping}
        if knowing.contexts(frames, **more) is not None:
            return frames
        closing = min(frames, usual_passage(self.generator, self.window))
        if knowing.contexts(closing, **more) is None:
            least = self.grouping.first + 2 * self.grouping.step
            raise ShapeError(f"window={self.window} holds no passage between known ends: give {least} or more")
        return closing

    def blend_ends(self, frames: int, *, has: tuple[int, int]) -> tuple[int, int]:
        """(before, after): known frames on both sides of `frames` in which two videos of `has` run at once.

        ShapeError where the window or a video is too short.
        """
        grouping = self.grouping
        for name, count, known in (("first", has[0], grouping.first), ("second", has[1], grouping.step)):
            if count < frames + known:
                raise ShapeError(
                    f"frames={frames} in which both run at once: {name} has {count} frames, give a video of "
                    f"{frames + known} or more, or a shorter blend"
                )
        left = has[0] - frames, has[1] - frames
        ends = knowing.contexts(frames, has=left, window=self.window, grouping=grouping)
        if ends is None:
            most = grouping.tail(self.window - grouping.first - grouping.step)
            fix = f"give at most {most}" if most else f"give a window of {grouping.first + 2 * grouping.step} or more"
            raise ShapeError(f"frames={frames} do not fit a window of {self.window} between known ends: {fix}")
        return ends

    def _slid(self, tail: np.ndarray, wanted: int, known: int, context: int) -> Pieces:
        """`continued` by a canvas that slides in latents: nothing that was made is encoded again."""
        grouping = self.grouping
        context = max(grouping.step, grouping.tail(context))
        window = Window.of(grouping, window=self.window, context=context)
        engine = SlidingCanvas(model=self.generator, sampling=self.method(known=True), window=window)
        self.generator.check_negative(self.negative, engine.sampling)
        head, words = tail[:, -known:], self.words(self.prompts)
        canvas = first_canvas(self.generator, head, count=len(self.prompts), frames=self.window)
        pieces = self.going_on(engine, canvas, lambda made: words)
        yield from _without(_put_back(pieces, head, Blend(joins=self.joins)), known, wanted)

    def going_on(
        self, engine: SlidingCanvas, canvas: Canvas | None, words: Callable[[int], tuple[Prompts, Prompts]]
    ) -> Pieces:
        """Frames [b t h w 3] of an engine, without end, or to the end of its source.

        words: of the number of frames that there are, the prompts for the next ones.
        """
        state, made = engine.init(canvas, self.seed, index=self.count), 0
        while True:
            state, frames = engine.step(state, words(made))
            self.count = state.index
            if state.done:
                return
            made += frames.shape[1]
            yield frames


def first_canvas(generator: Generator, head: np.ndarray | None, *, count: int, frames: int, size=None) -> Canvas:
    """The first of canvases that slide on: so many frames long, of which the first are known, as `head` has them.

    head: float32 [1 or b t h w 3] or None. Fewer frames than are made at once stand still to the end of their group,
    as far as the model is told.
    """
    experiment, grouping = generator.experiment, grouping_of(generator)
    patch = experiment.network.backbone.patch[0]
    groups = 1 + (frames - grouping.first) // grouping.step
    cell = experiment.vae.latent_shape(1, *(head.shape[2:4] if head is not None else size))[1:]
    latents = np.zeros((count, groups * patch, *cell), np.float32)
    level = np.ones((count, groups * patch, 1, 1), np.float32)
    if head is not None and head.shape[1]:
        head = np.concatenate([head, np.repeat(head[:, -1:], max(0, grouping.first - head.shape[1]), axis=1)], axis=1)
        with jax.set_mesh(generator.mesh):
            known = to_host(generator.vae.encode(head))
        latents[:, : known.shape[1]], level[:, : known.shape[1]] = known, 0.0
    return Canvas(latents=latents, level=level)


def animate(
    run: Run, images: Sequence[Array], *, times: Sequence[int], frames: int, size: tuple[int, int]
) -> Pieces:
    """vdit.animate."""
    experiment, grouping = run.generator.experiment, run.grouping
    _positive("frames", frames)
    pictures = [as_bytes(image) for image in images]
    if not pictures or len(pictures) != len(times) or any(len(picture) != 1 for picture in pictures):
        raise ShapeError(f"{len(pictures)} images for {len(times)} times: give one [h w 3] for each time")
    length = min(run.window, grouping.canvas(frames))
    shown = frames_of(np.concatenate([fit_images(picture, size) for picture in pictures]), "images")
    alone = bool(experiment.network.reference_channels)
    given = knowing.animate(shown, times=times, frames=min(length, frames), grouping=grouping, alone=alone)
    if experiment.vision is not None:  # the encoder cuts the picture as it was given, in its own way
        first = pictures[int(np.argmin(times))][0]
        given = dataclasses.replace(given, pixels=clip_pixels(first, experiment.vision)[None])
    kept = np.isin(np.arange(given.video.shape[1]), times)
    yield from longer(run, run.fill(given, length, kept=kept), frames)


def extend(run: Run, video: Frames, *, before: int = 0, after: int = 0, context: int | None = None) -> Pieces:
    """vdit.extend: what comes before, the video, what comes after."""
    for name, count in (("before", before), ("after", after)):
        if count < 0:
            raise ShapeError(f"{name}={count}: frames to be made, give 0 or more")
    if before == after == 0:
        raise ShapeError("before=0 and after=0: nothing is to be made, give one of them")
    if before:
        head = head_of(video, run.window)
        yield from run.preceded(head, before, has=head.shape[1], context=context)
    tail = Tail(run.window)
    for piece in video:
        tail.add(piece)
        yield piece
    if after:
        yield from run.continued(tail.video, after, has=tail.seen, context=context)


def sample(run: Run, *, frames: int, size: tuple[int, int] | None) -> Pieces:
    """A video of the prompts alone."""
    _positive("frames", frames)
    yield from longer(run, run.sample(min(run.window, run.grouping.canvas(frames)), size), frames)


def longer(run: Run, video: np.ndarray, frames: int) -> Pieces:
    """The video, made longer or cut to `frames`."""
    yield video[:, :frames]
    if frames > video.shape[1]:
        yield from run.continued(video, frames - video.shape[1], has=video.shape[1])


def loop(run: Run, video: Iterable[np.ndarray], *, passage: int) -> Pieces:
    """vdit.loop: the video, and a passage from its end back to its beginning."""
    tail, head = Tail(run.window), None
    for piece in video:
        if head is None or head.shape[1] < run.window:
            head = piece if head is None else np.concatenate([head, piece], axis=1)[:, : run.window]
        tail.add(piece)
        yield piece
    yield from run.passage(tail, head, passage, has=tail.seen)


def connect(run: Run, first: Frames, second: Frames, *, frames: int, blend: float | None = None) -> Pieces:
    """vdit.connect: the first video, a passage, the second. blend: the strength of one in its place."""
    if first.size != second.size:
        sizes = " and ".join("{}x{}".format(*video.size) for video in (first, second))
        raise ShapeError(
            f"videos of {sizes} (height x width): give both the same size (vdit.generate.inputs.read_input)"
        )
    if blend is not None:
        yield from _blended(run, first, second, frames=frames, strength=blend)
        return
    head, tail = head_of(second, run.window), Tail(run.window)
    for piece in first:
        tail.add(piece)
        yield piece
    yield from run.passage(tail, head, frames, has=head.shape[1])
    yield from second


def _blended(run: Run, first: Frames, second: Frames, *, frames: int, strength: float) -> Pieces:
    """While both run, one turns into the other."""
    if run.generator.experiment.network.reference_channels:
        raise ConfigError("this model is told of given frames, not of blends: connect the videos without blend")
    grouping = run.grouping
    ahead, behind = Tail(frames + run.window), head_of(second, frames + run.window)
    yield from _held_back(first, frames, ahead)
    before, after = run.blend_ends(frames, has=(ahead.seen, behind.shape[1]))
    sides = {"before": before, "after": after, "strength": strength, "grouping": grouping}
    given = knowing.blend(ahead.video, behind, frames=frames, **sides)
    yield run.fill(given, before + frames + after)[:, before : before + frames]
    yield from _without(second, frames, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """What is asked of a rollout, as of vdit.rollout: prompts over time, frames of the whole at `fps`, and how."""

    prompts: PromptSchedule
    frames: int
    fps: float
    size: tuple[int, int] | None = None
    context: int | None = None
    anchor: bool = False
    keep: bool | None = None


def rollout(run: Run, asked: Rollout, video: Frames | None = None) -> Pieces:
    """vdit.rollout: [1 t h w 3]. video: how it begins. What is wrong is said at once, not at the first frame."""
    generator, grouping, config = run.generator, run.grouping, run.generator.experiment
    if config.network.reference_channels:
        raise ConfigError("this model makes videos of images: it cannot go on from frames of its own, use `extend`")
    if asked.frames < 1:
        raise ShapeError(f"a video of {asked.frames} frames: give 1 or more")
    size = tuple(config.sample.size if asked.size is None else asked.size) if video is None else video.size
    if video is not None and asked.frames <= video.count:
        raise ShapeError(f"a video of {asked.frames} frames: {video.count} are given, give a length of more than that")
    window = None
    if asked.frames > run.window or asked.context is not None:
        window = Window.of(grouping, window=run.window, context=asked.context, anchor=asked.anchor)
    method = run.method(known=video is not None or window is not None)
    generator.check_negative(run.negative, method)
    late = [text for time, text in asked.prompts if time * asked.fps >= asked.frames]
    if late:
        warnings.warn(
            f"{len(late)} of {len(asked.prompts.parts)} prompts have no effect, the first of them {late[0][:30]!r}: "
            f"their times are after the end, at {asked.frames / asked.fps:.4g} s",
            VditWarning,
            stacklevel=3,
        )
    if asked.anchor and window is None:
        warnings.warn(f"anchor has no effect: all {asked.frames} frames are made at once", VditWarning, stacklevel=3)
    if asked.anchor and asked.keep:
        raise ConfigError("anchor=True, keep=True: an anchor is known again in each window, leave one of them out")
    kv = not asked.anchor and use_kv(asked.keep, config.network, method)
    generator.task(method, grouping.first, size, given=True)  # can the model make it?
    engine = SlidingCanvas(
        model=generator, sampling=method, memory="kv" if kv and window is not None else "latents",
        window=Window(first=1, context=1, new=1, start=1) if window is None else window,
    )  # fmt: skip
    return _rollout(run, asked, engine, video, size)


def _rollout(run: Run, asked: Rollout, engine: SlidingCanvas, video: Frames | None, size: tuple[int, int]) -> Pieces:
    grouping, head, sent = run.grouping, None, 0
    if video is not None:
        most = run.window - grouping.step
        if asked.frames > run.window or asked.context is not None:
            most = min(most, grouping.first + (engine.window.context - 1) * grouping.step)
        most = max(most, grouping.first)
        waiting = Tail(most)
        yield from _held_back(video, most, waiting)
        there = waiting.seen
        if asked.frames <= there:
            raise ShapeError(f"a video of {asked.frames} frames: {there} are given, give a length of more than that")
        count = max(grouping.head(min(there, most)), min(there, grouping.first))
        head, sent = waiting.video, there - count
        if count < head.shape[1]:
            yield head[:, : head.shape[1] - count]
            head = head[:, head.shape[1] - count :]
    known = 0 if head is None else head.shape[1]
    length = min(run.window, grouping.canvas(asked.frames - sent))
    canvas = first_canvas(run.generator, head, count=1, frames=length, size=size)

    def words(made: int) -> tuple[Prompts, Prompts]:
        return run.words([asked.prompts.at((sent + (made or known)) / asked.fps)])

    pieces = run.going_on(engine, canvas, words)
    kept = pieces if head is None else _put_back(pieces, head, Blend(joins=run.joins))
    yield from _without(kept, 0, asked.frames - sent)


def _put_back(pieces: Pieces, head: np.ndarray, blend: Blend) -> Pieces:
    """With the first frames as they were given, [1 or b t h w 3], and what follows in their colours."""
    first = next(pieces)
    given = np.broadcast_to(head, (len(first), *head.shape[1:]))

    def parts() -> Iterator[list[Piece]]:
        count = head.shape[1]
        known = np.ones((count, 1, 1), bool)
        yield [Piece(made=one[:count], reference=ref, known=known, more=False) for one, ref in zip(first, given)]
        for piece in itertools.chain([first[:, count:]], pieces):
            yield [Piece(made=one, more=False) for one in piece]

    yield from kept(parts(), len(first), blend)


def kept(pieces: Iterator[list[Piece]], count: int, blend: Blend) -> Pieces:
    """keep_stream of `count` videos side by side."""

    def of_one(stream: Iterator[list[Piece]], number: int) -> Iterator[np.ndarray]:
        return keep_stream((pieces[number] for pieces in stream), blend)

    each = [of_one(stream, number) for number, stream in enumerate(itertools.tee(pieces, count))]
    for parts in zip(*each):
        yield np.stack(parts)


def _held_back(pieces: Iterable[np.ndarray], count: int, tail: Tail) -> Pieces:
    """All frames but the last `count`, which are in `tail` afterwards."""
    waiting: np.ndarray | None = None
    for piece in pieces:
        tail.add(piece)
        waiting = piece if waiting is None else np.concatenate([waiting, piece], axis=1)
        if waiting.shape[1] > count:
            yield waiting[:, : waiting.shape[1] - count]
            waiting = waiting[:, waiting.shape[1] - count :]


def _without(pieces: Iterable[np.ndarray], first: int, wanted: int | None) -> Pieces:
    """`wanted` frames after the first ones; None for all."""
    for piece in pieces:
        skipped = min(first, piece.shape[1])
        first -= skipped
        piece = piece[:, skipped:] if wanted is None else piece[:, skipped : skipped + wanted]
        if piece.shape[1]:
            yield piece
        if wanted is not None:
            wanted -= piece.shape[1]
            if not wanted:
                return


def _as_many(*videos: np.ndarray) -> list[np.ndarray]:
    """Videos of one entry beside others of b: all of b."""
    count = max(map(len, videos))
    return [np.broadcast_to(video, (count, *video.shape[1:])) for video in videos]


def joined(*videos: np.ndarray) -> np.ndarray:
    """One after the other: [b t h w 3]."""
    return np.concatenate(_as_many(*videos), axis=1)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ShapeError(f"{name}={value}: give 1 or more")
