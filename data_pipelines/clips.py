"""The encode stage: a kept clip to a small video file of its own, and clips to ArrayRecord shards.

    made = encode_clip(row, ClipOptions(short_side=480), work)      # Encoded: a file in the work folder
    note = write_shard([made, ...], folder, number)                 # a shard, and what the index says of it

Each file is named by what it holds, and appears whole or not at all. A file that is there is not made again, so a
stopped pipeline goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from data_pipelines.select import Row
from vdit import paths
from vdit.data.clip_records import make_record
from vdit.errors import ConfigError, DataError, VideoError, reason
from vdit.video.read import iter_frames, probe
from vdit.video.write import write_video

ENCODING = 2  # of the files: raise it where the same options give other bytes
LEAST_SIDE = 16  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How clips are written.

    Args:
        short_side: pixels; a larger picture is reduced to it. None keeps its size.
        fps: frames a second; a higher rate is reduced to it. None keeps it.
        crop_bars: cut off the black bars that the measures found.
    """

    short_side: int | None = 480
    fps: float | None = None
    crop_bars: bool = True

    def __post_init__(self) -> None:
        if self.short_side is not None and not LEAST_SIDE <= self.short_side <= 8192:
            raise ConfigError(f"short_side={self.short_side}: give {LEAST_SIDE} to 8192 pixels, or none")
        if self.fps is not None and not 0.1 <= self.fps <= 240:
            raise ConfigError(f"fps={self.fps:g}: give 0.1 to 240 frames a second, or none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """A clip that has been written.

    Args:
        row: what it was written from, captions included.
        file: its video file. key: 16 hex digits of the row and the options that it was made by.
        meta: width, height, fps, seconds and bytes of the file, and sha256 of its content.
        error: why it could not be written; then there is no file.
    """

    row: Row
    file: str = ""
    key: str = ""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None


def encode_clip(row: Row, options: ClipOptions, work: str | Path) -> Encoded:
    """Writes a clip's file into the work folder, unless it is there.

    Args:
        row: the clip. Its columns crop_top, crop_left, crop_height and crop_width (pixels) say what is inside of black
            bars, where they were measured.
        options: size and rate.
        work: the folder, local or in a bucket.

    Raises:
        VideoError: the clip cannot be read. OutputError: it cannot be written.
    """
    key = _key(row, options)
    file = paths.path(work) / f"{row.clip.id}-{key}.clip"
    note = paths.path(work) / f"{row.clip.id}-{key}.json"
    meta = _read_note(note, file)
    if meta is None:
        with tempfile.TemporaryDirectory(prefix="vdit-curate-") as folder:
            part = Path(folder) / "clip.mp4"
            _write(part, row, options)
            info, data = probe(part), part.read_bytes()
            meta = {"width": info.width, "height": info.height, "fps": info.fps or 1.0,
                    "seconds": info.duration or 1 / (info.fps or 1.0), "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
            paths.write_atomic(file, data)
            paths.write_atomic(note, json.dumps(meta))
    return Encoded(row=row, file=str(file), key=key, meta=meta)


def _key(row: Row, options: ClipOptions) -> str:
    said = [ENCODING, row.clip.path, str(row.clip.start), str(row.clip.end), dataclasses.asdict(options), _box(row)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _read_note(note: paths.AnyPath, file: paths.AnyPath) -> dict[str, Any] | None:
    """What is known of a file that is complete."""
    if not (paths.is_file(note) and paths.is_file(file)):
        return None
    try:
        meta = paths.read_json(note, limit=paths.MIB, error=DataError)
        whole = {"width", "height", "fps", "seconds", "sha256"} <= meta.keys()
        whole = whole and paths.file_size(file) == meta["bytes"]
    except (DataError, KeyError, TypeError):
        return None
    return meta if whole else None


def _box(row: Row) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of the picture inside its bars, in pixels; None where there are no bars."""
    values = tuple(row.clip.measures.get(name) for name in ("crop_top", "crop_left", "crop_height", "crop_width"))
    if row.clip.size is None or any(type(value) is not int for value in values) or values[2:] == row.clip.size:
        return None
    top, left, height, width = values
    inside = top >= 0 and left >= 0 and height > 0 and width > 0
    return values if inside and top + height <= row.clip.size[0] and left + width <= row.clip.size[1] else None


def _write(part: Path, row: Row, options: ClipOptions) -> None:
    clip, source = row.clip, paths.local_copy(row.clip.path, error=VideoError)
    if clip.end is None or clip.size is None:
        raise VideoError(f"{clip.path}: the clip was not measured: run the stages before")
    rate = clip.measures.get("fps")
    rate = float(rate) if isinstance(rate, int | float) and rate > 0 else probe(source).fps or 25.0
    rate = min(rate, options.fps or rate)
    box = _box(row) if options.crop_bars else None
    size, window = _sizes(clip.size, box, options.short_side)
    frames = iter_frames(source, fps=rate, start=float(clip.start), duration=float(clip.end - clip.start), size=size,
                         fit="stretch")  # fmt: skip
    write_video(part, _cropped(frames, window), rate, repeatable=True)


def _sizes(size: tuple[int, int], box: tuple[int, ...] | None, short_side: int | None) -> tuple[
        tuple[int, int], tuple[int, int, int, int]]:
    """The size (h, w) that whole pictures are reduced to, and the window (top, left, height, width) that is kept.

    The window lies inside the box, and has even sides, as every player's H.264 needs.
    """
    top, left, height, width = box or (0, 0, *size)
    scale = 1.0 if short_side is None else min(1.0, short_side / min(height, width))
    whole = max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
    first = tuple(-(-place * side // old) for place, side, old in zip((top, left), whole, size))
    last = tuple(place * side // old for place, side, old in zip((top + height, left + width), whole, size))
    kept = tuple(max(2, (end - start) // 2 * 2) for start, end in zip(first, last))
    return whole, (*first, *kept)


def _cropped(frames: Iterator[tuple[float, np.ndarray]], window: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
    top, left, height, width = window
    for _, frame in frames:
        yield frame[top : top + height, left : left + width]


def write_shard(clips: Sequence[Encoded], folder: str | Path, number: int) -> dict[str, Any]:
    """Writes clips to a shard of the folder, unless it is there.

    Args:
        clips: of one shard, in any order.
        folder: the curated folder, local or in a bucket.
        number: of the shard.

    Returns:
        What the index says of it: file, records, bytes, sha256 (of its records), seconds, captioned, uncaptioned (the
        places of records that have no caption), sources (the name of each file of footage, and how many records in a
        row are of it).
    """
    clips = sorted(clips, key=lambda made: (made.row.clip.path, made.row.clip.start))
    metas = [_meta(made) for made in clips]
    digest = hashlib.sha256(json.dumps(metas, sort_keys=True).encode()).hexdigest()
    file = paths.path(folder) / f"clips-{number:05d}-{digest[:8]}.arrayrecord"
    note_file = paths.path(folder) / "work" / "shards" / f"{number:05d}-{digest[:16]}.json"
    if paths.is_file(note_file) and paths.is_file(file):
        with contextlib.suppress(DataError, KeyError, TypeError):
            note = paths.read_json(note_file, limit=64 * paths.MIB, error=DataError)
            if paths.file_size(file) == note["bytes"] and note["digest"] == digest and "sources" in note:
                return note
    size = _write_records(file, metas, clips)
    bare = [place for place, meta in enumerate(metas) if not any(meta["captions"])]
    note = {"file": file.name, "records": len(clips), "bytes": size, "sha256": digest, "digest": digest,
            "number": number, "seconds": sum(meta["seconds"] for meta in metas), "captioned": len(clips) - len(bare),
            "uncaptioned": bare,
            "sources": [[name, len(list(run))] for name, run in itertools.groupby(meta["source"] for meta in metas)]}
    paths.write_atomic(note_file, json.dumps(note))
    return note


def write_file(made: Encoded, folder: str | Path) -> dict[str, Any]:
    """Writes a clip to videos/ of the folder; its line of captions.jsonl."""
    file = paths.path(folder) / "videos" / f"{made.row.clip.id}-{made.meta['sha256'][:8]}.mp4"
    if not (paths.is_file(file) and paths.file_size(file) == made.meta["bytes"]):
        paths.copy_file(made.file, file)
    return {"file": f"videos/{file.name}", "captions": list(made.row.captions)}


def _meta(made: Encoded) -> dict[str, Any]:
    """A record's metadata. Its id changes with the video and the captions, so that nothing stale is taken for it."""
    row, clip = made.row, made.row.clip
    said = json.dumps([made.meta["sha256"], list(row.captions)])
    return {"id": f"{clip.id}-{hashlib.sha256(said.encode()).hexdigest()[:8]}", "captions": list(row.captions),
            "label": 0, "source": row.name, "start": str(clip.start), "end": str(clip.end),
            "measures": clip.measures} | made.meta  # fmt: skip


def _write_records(file: paths.AnyPath, metas: Sequence[dict[str, Any]], clips: Sequence[Encoded]) -> int:
    """Writes the records; the file appears when all are there. Its size in bytes."""
    folder = file.parent if isinstance(file, Path) else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{file.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
        for meta, made in zip(metas, clips):
            data = paths.read_bytes(made.file, limit=4 * paths.GIB, error=DataError)
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise DataError(f"{made.file}: is not what was written: remove it, and run the same command again")
            writer.write(make_record(meta, data))
        writer.close()
        size = part.stat().st_size
        if isinstance(file, Path):
            os.replace(part, file)
        else:
            paths.copy_file(part, file)
        return size
    except (OSError, RuntimeError) as error:
        raise DataError(f"{file}: cannot be written: {reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)
