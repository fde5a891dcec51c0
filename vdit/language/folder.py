"""Captions for all videos of a folder: several at a time, each written as soon as it is there."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vdit import paths
from vdit.errors import LanguageError, VditError, VideoError
from vdit.language.base import Frames
from vdit.language.captioning import Caption, Captioner, sample_frames
from vdit.language.records import PROVENANCE, CaptionFile
from vdit.reprs import short_repr

Outcome = tuple[str, Caption | VditError, Frames | None]  # the video, its caption or why there is none, frames seen
_FAILURES = 3  # in a row, after which the model is taken to be away


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How many videos are captioned together.

    Attributes:
        workers: threads that ask the model.
        batch: videos of one call of the model.
        frames: of each video that the model sees.
        side: pixels of their longer side, at most.
    """

    workers: int = 1
    batch: int = 1
    frames: int = 8
    side: int = 384


@dataclasses.dataclass
class Tally:
    """What became of the videos. marked: file -> problem. failed: file -> why it could not be asked about."""

    captioned: int = 0
    tries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    marked: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.captioned + len(self.marked) + len(self.failed)


def caption_videos(
    videos: Mapping[str, paths.AnyPath], captioner: Captioner, file: CaptionFile, pace: Pace,
    progress: Callable[[Tally, str, Frames | None], None] = lambda tally, name, frames: None,
) -> Tally:  # fmt: skip
    """Captions the videos that the file has no record of.

    Args:
        videos: name in the file -> path.
        captioner: asks the model.
        file: gets a record of each video that was asked about.
        pace: how many at a time.
        progress: called after each video, with its name and what the model saw of it, None where it failed.

    Returns:
        What became of them. Videos that could not be read or asked about have no record, and are tried next time.

    Raises:
        LanguageError: the model failed three times in a row. What was answered before is written.
    """
    tally, in_a_row = Tally(), 0
    names = [name for name in videos if name not in file.records]
    batches = [names[i : i + pace.batch] for i in range(0, len(names), pace.batch)]

    def work(batch: Sequence[str]) -> list[Outcome]:
        return _work({name: videos[name] for name in batch}, captioner, pace)

    pool = concurrent.futures.ThreadPoolExecutor(pace.workers)
    waiting, left = [], iter(batches)
    try:
        while True:
            # A few more than there are workers, so that an interrupt leaves little behind.
            while len(waiting) < pace.workers + 1 and (batch := next(left, None)) is not None:
                waiting.append(pool.submit(work, batch))
            if not waiting:
                return tally
            finished = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED").done
            done = [future for future in waiting if future in finished]  # in the order of the videos
            waiting = [future for future in waiting if future not in finished]
            for future in done:
                for name, caption, frames in future.result():
                    if isinstance(caption, VditError):
                        tally.failed[name] = str(caption)
                        in_a_row = in_a_row + 1 if isinstance(caption, LanguageError) else in_a_row
                    else:
                        in_a_row = 0
                        _book(tally, name, caption)
                        file.add(record_of(name, caption, captioner, len(frames.pixels)))
                    progress(tally, name, frames)
                    if in_a_row >= _FAILURES:
                        raise caption
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for answers


def _work(videos: Mapping[str, paths.AnyPath], captioner: Captioner, pace: Pace) -> list[Outcome]:
    """Reads and captions the videos of one batch."""
    read: dict[str, Frames] = {}
    outcomes: list[Outcome] = []
    for name, path in videos.items():
        try:
            read[name] = sample_frames(paths.local_copy(path, error=VideoError), count=pace.frames, side=pace.side)
        except VideoError as reason:
            outcomes.append((name, reason, None))
    try:
        captions = captioner.caption(list(read.values())) if read else []
    except LanguageError as reason:
        return [*outcomes, *((name, reason, None) for name in read)]
    return [*outcomes, *((name, caption, read[name]) for name, caption in zip(read, captions))]


def _book(tally: Tally, name: str, caption: Caption) -> None:
    tally.tries += caption.tries
    tally.tokens_in += caption.tokens_in
    tally.tokens_out += caption.tokens_out
    if caption.problem is None:
        tally.captioned += 1
    else:
        tally.marked[name] = caption.problem


def record_of(name: str, caption: Caption, captioner: Captioner, frames: int) -> dict[str, Any]:
    """The line of captions.jsonl: the caption or its problem, and where it is from."""
    if caption.problem is None:
        told = {"caption": caption.short, "detailed": caption.detailed, "camera": caption.camera}
    else:
        told = {"problem": caption.problem}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    provenance = {
        "model": captioner.model.name, "prompt": captioner.prompts.name, "date": now, "frames": frames,
        "tries": caption.tries, "tokens_in": caption.tokens_in, "tokens_out": caption.tokens_out,
    }  # fmt: skip
    return {"file": name, **{key: text for key, text in told.items() if text}, PROVENANCE: provenance}
