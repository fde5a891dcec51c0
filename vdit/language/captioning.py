"""Captions of videos by any model that answers: frames sampled by time, checked answers, a second try.

    captioner = Captioner(model=model, prompts=CaptionPrompts.of(PromptFile.shipped("caption.md")))
    [caption] = captioner.caption([sample_frames("dog.mp4", count=8, side=384)])
    caption.short, caption.detailed, caption.camera, caption.problem
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdit.errors import ConfigError, LanguageError, VideoError
from vdit.language.base import Completion, Frames, GenerationOptions, Request, TextModel
from vdit.language.checks import CaptionRules, check_caption, read_answer
from vdit.language.prompts import FIELDS, CaptionPrompts
from vdit.reprs import short_repr
from vdit.video.read import iter_frames, probe, read_video

_STREAMED = 30.0  # seconds of video that are decoded in one go; in longer ones each frame is sought
MOST_FRAMES = 128
_WARMER = 0.7  # temperature of the second try, so that it is another answer


def sample_frames(path: str | Path, *, count: int, side: int) -> Frames:
    """Frames of a video at the middles of `count` equal parts of its time; fewer where it has fewer.

    Args:
        path: a video file or an image.
        count: of frames, 1 to 128.
        side: pixels of the longer side, at most.

    Raises:
        VideoError: it cannot be read.
    """
    if not 1 <= count <= MOST_FRAMES or side < 16:
        raise ConfigError(f"frames={count} of {side} pixels: give 1 to {MOST_FRAMES} frames of at least 16 pixels")
    info = probe(path)
    scale = min(1.0, side / max(info.height, info.width))
    size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    duration = info.duration or (info.frames / info.fps if info.frames and info.fps else None)
    if duration is None or (info.frames or round(duration * (info.fps or 0))) < count:
        return _streamed(path, count, size)
    times = [(i + 0.5) * duration / count for i in range(count)]
    if duration <= _STREAMED:
        shown = iter_frames(path, fps=count / duration, start=times[0], max_frames=count, size=size)
        pixels = [frame for _, frame in shown]
    else:
        pixels = [frame for time in times for frame in read_video(path, start=time, max_frames=1, size=size).frames]
    if len(pixels) < count and duration <= _STREAMED:
        return _streamed(path, count, size)  # its container told a longer time than its frames last
    if len(pixels) < count:
        raise VideoError(f"{path}: {count - len(pixels)} of {count} frames cannot be read: is the file whole?")
    return Frames(pixels=np.stack(pixels), times=tuple(times))


def _streamed(path: str | Path, count: int, size: tuple[int, int]) -> Frames:
    """By decoding all of it. Of every prefix an even choice of at most 2 * count frames is kept."""
    kept: list[tuple[float, np.ndarray]] = []
    every = 1
    for number, (time, pixels) in enumerate(iter_frames(path, size=size)):
        if number % every == 0:
            kept.append((time, pixels))
        if len(kept) > 2 * count:
            kept, every = kept[::2], every * 2
    places = np.unique(((np.arange(count) + 0.5) * len(kept) / count).astype(int))
    return Frames(pixels=np.stack([kept[i][1] for i in places]), times=tuple(kept[i][0] for i in places))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
    """What a model says of a video.

    Attributes:
        short, detailed: "" where they were not asked for, or where `problem` is.
        camera: how it moves, in a few words.
        problem: why there is no caption, in few words; None where there is one.
        tries: how often the model was asked.
        tokens_in, tokens_out: of all tries.
    """

    short: str = ""
    detailed: str = ""
    camera: str = ""
    problem: str | None = None
    tries: int = 1
    tokens_in: int = 0
    tokens_out: int = 0


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioner:
    """Asks a model about videos, and checks what it answers.

    Attributes:
        model: any TextModel that takes frames.
        prompts: what it is asked.
        rules: what a caption must be.
        max_tokens: of one answer.
        seed: of sampling; the second try has another.
    """

    model: TextModel
    prompts: CaptionPrompts
    rules: CaptionRules = CaptionRules()
    max_tokens: int = 512
    seed: int = 0

    def caption(self, videos: Sequence[Frames]) -> list[Caption]:
        """A caption for each video. An answer that is none is asked for once more, and then marked by `problem`.

        Raises:
            LanguageError: the model cannot answer at all.
        """
        done = self._ask(videos, GenerationOptions(max_tokens=self.max_tokens, seed=self.seed))
        wrong = [i for i, caption in enumerate(done) if caption.problem is not None]
        if wrong:
            options = GenerationOptions(max_tokens=self.max_tokens, seed=(self.seed + 1) % 2**64, temperature=_WARMER)
            for i, again in zip(wrong, self._ask([videos[i] for i in wrong], options)):
                tokens_in, tokens_out = done[i].tokens_in + again.tokens_in, done[i].tokens_out + again.tokens_out
                done[i] = dataclasses.replace(again, tries=2, tokens_in=tokens_in, tokens_out=tokens_out)
        return done

    def _ask(self, videos: Sequence[Frames], options: GenerationOptions) -> list[Caption]:
        asked: list[tuple[int, str, Request]] = []
        for i, frames in enumerate(videos):
            asked += [(i, name, request) for name, request in self.prompts.requests(frames).items()]
        answers: list[dict[str, Completion]] = [{} for _ in videos]
        for (i, name, _), completion in zip(asked, self.model.complete([request for *_, request in asked], options)):
            answers[i][name] = completion
        return [self._read(one) for one in answers]

    def _read(self, answers: dict[str, Completion]) -> Caption:
        tokens = {"tokens_in": sum(one.tokens_in for one in answers.values()),
                  "tokens_out": sum(one.tokens_out for one in answers.values())}  # fmt: skip
        fields: dict[str, str] = {}
        try:
            for name, completion in answers.items():
                if completion.finish_reason == "filter":
                    raise LanguageError("a refusal")
                try:
                    fields |= read_answer(completion.text, name)
                except LanguageError:
                    if completion.finish_reason == "length":
                        raise LanguageError(f"too long (over {self.max_tokens} tokens)") from None
                    raise
                if completion.finish_reason == "length" and name != "caption":
                    raise LanguageError(f"too long (over {self.max_tokens} tokens)")
            for name in FIELDS:
                problem = check_caption(fields[name], self.rules, words=getattr(self.rules, f"{name}_words")) \
                    if name in fields else None  # fmt: skip
                if problem is not None:
                    raise LanguageError(f"{name}: {problem}")
        except LanguageError as reason:
            return Caption(problem=str(reason), **tokens)
        return Caption(**fields, **tokens)
