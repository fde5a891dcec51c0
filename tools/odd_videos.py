"""Reads every file that a folder's expected.jsonl (or captions.jsonl) lists and compares.

    python tools/odd_videos.py FOLDER

Prints one row a file: expected | got | verdict. A file agrees when it reads by default as expected,
or when it fails with one VideoError where damage is expected and `on_error="keep"` gives the expected
number of frames. A default read that fails where no error is expected must be a file without any
video, or one whose container counts more frames ("ends early, at 90 of 150"). Exits with 1 if any
file disagrees.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

from vdit.errors import VideoError
from vdit.video.read import iter_frames, probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading a file gave: kept frames, displayed (h, w), rotation, the error of a default read."""

    frames: int
    size: tuple[int, int] | None
    rotation: int | None
    error: str | None


def read(path: Path) -> Reading:
    """Reads a file by default and with keep; other exceptions than VideoError pass through."""
    error = None
    count, size = 0, None
    try:
        for _, frame in iter_frames(path):
            count, size = count + 1, frame.shape[:2]
    except VideoError as caught:
        error, count = str(caught), 0
        try:
            for _, frame in iter_frames(path, on_error="keep"):
                count, size = count + 1, frame.shape[:2]
        except VideoError:
            return Reading(frames=0, size=None, rotation=None, error=error)
    return Reading(frames=count, size=size, rotation=probe(path).rotation, error=error)


def verdict(row: dict, got: Reading) -> str:
    """ "ok", or what disagrees with a row of expected.jsonl."""
    wanted = row["frames"] or 0
    if got.frames != wanted:
        return f"frames {got.frames}, expected {wanted}"
    if row["error"] and not got.error:
        return f"no error, expected {row['error']}"
    if got.error and not row["error"] and wanted and not re.search(r"ends early, at \d+ of \d+", got.error):
        return "an error where none is expected"
    if not wanted:
        return "ok" if got.error else "no frames and no error"
    turned = row["rot"] % 180 == 90
    size = (row["w"], row["h"]) if turned else (row["h"], row["w"])
    if got.size != size:
        return f"size {got.size}, expected {size}"
    if (got.rotation - row["rot"]) % 360:
        return f"rotation {got.rotation}, expected {row['rot']}"
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds the files and expected.jsonl or captions.jsonl")
    folder = parser.parse_args().folder
    lists = [folder / name for name in ("expected.jsonl", "captions.jsonl")]
    listed = next((p for p in lists if p.exists()), None)
    if listed is None:
        parser.error(f"{folder} has neither expected.jsonl nor captions.jsonl")
    rows = [json.loads(line) for line in listed.read_text().splitlines() if line.strip()]
    bad = 0
    for row in rows:
        got = read(folder / row["file"])
        says = verdict(row, got)
        bad += says != "ok"
        expected = f"{row['frames'] or 0} {row['w']}x{row['h']} rot {row['rot']} {row['error'] or ''}"
        size = f"{got.size[1]}x{got.size[0]} shown" if got.size else "-"
        error = (got.error or "").removeprefix(f"{folder / row['file']}: ")
        print(f"{row['file']:46} | {expected:44} | {got.frames} {size} rot {got.rotation} {error} | {says}")
    print(f"{len(rows) - bad} of {len(rows)} agree")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
