"""How fast footage is curated: against a plain loop, by stage, with 1 and 2 workers, and on paper for 100,000 hours.

    python tools/bench/curate.py FOLDER [--rounds 3] [--workers] [--writing]

FOLDER holds videos. The plain loop decodes each with PyAV, reduces every frame with OpenCV to the analysed size,
and computes with OpenCV what the scan does: steps between frames, brightness, contrast, colourfulness and edges of
every frame, flow 8 times a second, and bars, blur and edges at full size twice a second. It keeps nothing, so it is a
lower bound of such work. Both run in turns in one process and on one core; figures are CPU seconds, so that other work
on the machine counts little. With --workers the whole command runs with one and with two workers (wall-clock).
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_pipelines.clips import ClipOptions, encode_clip  # noqa: E402
from data_pipelines.footage import find_footage  # noqa: E402
from data_pipelines.records import ClipRecord  # noqa: E402
from data_pipelines.scan import ScanOptions, scan_file  # noqa: E402
from data_pipelines.select import Row  # noqa: E402
from vdit.errors import VideoError  # noqa: E402
from vdit.video.read import iter_frames, probe, read_video  # noqa: E402
from vdit.video.write import write_video  # noqa: E402

SIDE = 160
HOURS = 100_000


def plain_loop(path: str) -> int:
    """Frames of a file, decoded and measured without anything around it."""
    before = anchor = None
    count, last = 0, -1.0
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            time_s = float(frame.time or 0.0)
            scale = SIDE / max(frame.width, frame.height)
            image = cv2.resize(frame.to_ndarray(format="rgb24"), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            cv2.meanStdDev(gray)
            channels = image.astype(np.float32)
            (channels[..., 0] - channels[..., 1]).std()
            (0.5 * (channels[..., 0] + channels[..., 1]) - channels[..., 2]).std()
            cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)).std()
            if before is not None:
                cv2.absdiff(gray, before).mean()
            if anchor is None or int(time_s * 8) != int(last * 8):
                if anchor is not None:
                    flow.calc(anchor, gray, None)
                anchor = gray
            if int(time_s * 2) != int(last * 2):
                luma = frame.to_ndarray(format="gray")
                cv2.Laplacian(luma, cv2.CV_32F).var()
                cv2.Sobel(luma, cv2.CV_32F, 1, 0).std()
                luma.max(1), luma.max(0)
            before, last, count = gray, time_s, count + 1
    return count


def cpu(function, *arguments) -> tuple[float, object]:
    """(CPU seconds, what the function gave)."""
    begun = time.process_time()
    value = function(*arguments)
    return time.process_time() - begun, value


def by_stage(paths: list[str], rounds: int) -> None:
    cv2.setNumThreads(1)
    loop, scan, encode, seconds = [], [], [], 0.0
    for number in range(rounds):
        spent = [0.0, 0.0, 0.0]
        for path in paths:
            try:
                took, _ = cpu(plain_loop, path)
            except (av.FFmpegError, OSError, ValueError) as error:
                print(f"left out: {path}: {error}")
                continue
            spent[0] += took
            took, clips = cpu(scan_file, ClipRecord(path=path), ScanOptions())
            spent[1] += took
            if number == 0:
                seconds += sum(clip.duration for clip in clips)
            with tempfile.TemporaryDirectory() as place:
                for clip in clips:
                    spent[2] += cpu(encode_clip, Row(clip=clip, name=path), ClipOptions(), place)[0]
        for times, one in zip((loop, scan, encode), spent):
            times.append(one)
        print(f"round {number + 1}: plain loop {spent[0]:.1f} s, scan {spent[1]:.1f} s (loop / scan "
              f"{spent[0] / spent[1]:.2f}), encode {spent[2]:.1f} s", flush=True)  # fmt: skip
    scans, encodes = float(np.median(scan)), float(np.median(encode))
    print(f"{seconds:.0f} s of footage. Hours of footage a core-hour: scan {seconds / scans:.1f}, encode "
          f"{seconds / encodes:.1f}, both {seconds / (scans + encodes):.1f}, "
          f"plain loop {seconds / np.median(loop):.1f}")
    print(f"loop / scan, median: {np.median(np.divide(loop, scan)):.2f}")
    on_paper(seconds / scans, seconds / encodes)


def writing(paths: list[str]) -> None:
    """Clips as the pipeline writes them beside write_video's usual way: CPU seconds, size, PSNR of each 6th frame."""
    print("| file | way | CPU s | kB | PSNR, dB |\n| --- | --- | --- | --- | --- |")
    for path in paths:
        try:
            info = probe(path)
            scale = min(1.0, 480 / min(info.height, info.width))
            size = round(info.height * scale) // 2 * 2, round(info.width * scale) // 2 * 2
            frames = [frame for _, frame in iter_frames(path, duration=5.0, size=size, fit="stretch")]
        except VideoError as error:
            print(f"left out: {error}")
            continue
        for repeatable in (False, True):
            with tempfile.TemporaryDirectory() as place:
                file = Path(place) / "clip.mp4"
                took, _ = cpu(functools.partial(write_video, file, frames, info.fps or 25.0, repeatable=repeatable))
                errors = [np.square(a.astype(np.float32) - b).mean()
                          for a, b in zip(frames[::6], read_video(file).frames[::6])]  # fmt: skip
                psnr = 10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-9))
                print(f"| {Path(path).name} | {'as clips' if repeatable else 'usual'} | {took:.2f} | "
                      f"{file.stat().st_size // 1000} | {psnr:.2f} |", flush=True)  # fmt: skip


def on_paper(scan: float, encode: float) -> None:
    """100,000 hours on a cluster, at the rates measured here, and with a third of the footage kept."""
    core_hours = HOURS / scan + HOURS / 3 / encode
    read, written = HOURS * 3600 * 5 / 8 / 1e6, HOURS / 3 * 3600 * 1.5 / 8 / 1e6
    print(f"\n{HOURS:,} hours at these rates, a third kept: {core_hours:,.0f} core-hours; on 1,000 cores "
          f"{core_hours / 1000:,.1f} hours.")  # fmt: skip
    print(f"Read: {read:,.0f} TB of footage at 5 Mbit/s, the kept third twice. Written: {written:,.0f} TB of clips "
          "at 1.5 Mbit/s, twice: work folder and shards.")  # fmt: skip
    print("The price: core-hours x your price of a vCPU hour, and bytes x your price of storage.")


def workers(folder: Path) -> None:
    """The whole command with one and with two workers."""
    times = {}
    with tempfile.TemporaryDirectory() as place:
        for count in (1, 2):
            begun = time.monotonic()
            subprocess.run([sys.executable, "-m", "vdit.cli.main", "curate", folder, f"{place}/{count}", "--workers",
                            str(count)], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)  # fmt: skip
            times[count] = time.monotonic() - begun
            print(f"{count} workers: {times[count]:.0f} s", flush=True)
    print(f"efficiency from 1 to 2 workers: {times[1] / times[2] / 2:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="videos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", action="store_true", help="also the whole command, with one and two workers")
    parser.add_argument("--writing", action="store_true", help="only how clips are written: time, size, quality")
    args = parser.parse_args()
    if args.writing:
        writing([file.path for file in find_footage(args.folder)])
        return
    by_stage([file.path for file in find_footage(args.folder)], args.rounds)
    if args.workers:
        workers(args.folder)


if __name__ == "__main__":
    main()
