"""Near-duplicates: recall by kind of copy, and false pairs, on real clips.

    python -m tools.bench.duplicates --clips ../shared/data/clips --out build/duplicates

Each single-shot clip gives moments of 2.5 s. The first is copied in eight ways. The other moments of the same video,
and other videos, are no copies. Prints recall by kind (keys alone, and keys with the comparison), and false pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from data_pipelines.duplicates import DuplicateOptions, compare, keys
from data_pipelines.measures import measure
from data_pipelines.records import ClipRecord
from tools.bench.scene_cuts import SHOTS
from vdit.errors import VideoError
from vdit.video.read import read_video, write_video

KINDS = ("re-encoded", "rescaled", "cropped", "trimmed", "bordered", "brightened", "mirrored", "sped up")
FPS, SIZE, SECONDS = 24, (180, 320), 2.5


def encode(path: Path, frames: np.ndarray, fps: float, *, poor: bool = False) -> None:
    """Writes a file: H.264 of good quality, or MPEG-4 of poor."""
    if not poor:
        write_video(path, frames, fps=fps)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 250_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
                     for image in frames])  # fmt: skip


def copy(frames: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """(frames of the copy, its frames a second)."""
    h, w = frames.shape[1:3]
    if kind == "rescaled":
        return resized(frames, (h // 2, w // 2)), FPS
    if kind == "cropped":
        return resized(frames[:, round(h * 0.05) : , : w - round(w * 0.05)], (h, w)), FPS
    if kind == "trimmed":
        return frames[FPS:], FPS
    if kind == "bordered":
        return np.pad(frames, ((0, 0), (h // 8, h // 8), (0, 0), (0, 0))), FPS
    if kind == "brightened":
        return np.clip(frames * 1.2 + 10, 0, 255).astype(np.uint8), FPS
    if kind == "mirrored":
        return np.ascontiguousarray(frames[:, :, ::-1]), FPS
    return frames, FPS * 1.05 if kind == "sped up" else FPS


def material(clips: Path, out: Path) -> dict[str, list[ClipRecord]]:
    """"video" -> records: moments 0, 1, ..., then the copies of moment 0. Made once, then read."""
    saved = out / "records.json"
    if not saved.exists():
        found = {}
        for name in SHOTS:
            records = []
            for moment in range(4):
                try:
                    frames = read_video(clips / name, fps=FPS, size=SIZE, start=moment * SECONDS,
                                        max_frames=round(FPS * SECONDS)).frames  # fmt: skip
                except VideoError:
                    break
                if len(frames) < 1.5 * FPS:
                    break
                for kind in ("moment", *(KINDS if moment == 0 else ())):
                    path = out / f"{name}-{moment}-{kind.replace(' ', '-')}.mp4"
                    made, fps = copy(frames, kind)
                    encode(path, made, fps, poor=kind == "re-encoded")
                    records.append(measure(ClipRecord(path=str(path), size=made.shape[1:3])))
            found[name] = [record.to_json() for record in records]
            print(name, len(records), flush=True)
        saved.write_text(json.dumps(found))
    return {name: [ClipRecord.from_json(r) for r in records] for name, records in
            json.loads(saved.read_text()).items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/duplicates"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    videos = material(args.clips, args.out)
    options = DuplicateOptions(mirror=True)
    table = {record.id: set(keys(record, options)) for records in videos.values() for record in records}
    shares = lambda a, b: bool(table[a.id] & table[b.id])  # noqa: E731
    print("| copy | share a key | found |\n| --- | --- | --- |")
    for number, kind in enumerate(KINDS):
        pairs = [(records[0], records[number + 1]) for records in videos.values() if len(records) > number + 1]
        candidates = [pair for pair in pairs if shares(*pair)]
        found = [pair for pair in candidates if compare(*pair, options)]
        print(f"| {kind} | {len(candidates)}/{len(pairs)} | {len(found)}/{len(pairs)} |")
        missed = [Path(pair[0].path).name for pair in pairs if pair not in found]
        if missed:
            print(f"missed {kind}: {missed}")
    moments = {name: [r for r in records if "-moment" in r.path] for name, records in videos.items()}
    same = [pair for records in moments.values() for pair in itertools.combinations(records, 2)]
    other = [(a, b) for x, y in itertools.combinations(moments.values(), 2) for a in x for b in y]
    for what, pairs in (("other moments of the same video", same), ("other videos", other)):
        candidates = [pair for pair in pairs if shares(*pair)]
        false = [pair for pair in candidates if compare(*pair, options)]
        print(f"{what}: {len(pairs)} pairs, {len(candidates)} share a key, {len(false)} are taken for copies: "
              f"{[f'{Path(a.path).name} {Path(b.path).name}' for a, b in false]}")  # fmt: skip


if __name__ == "__main__":
    main()
