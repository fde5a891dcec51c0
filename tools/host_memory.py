"""How much of the host's memory the commands on video take, by the length of the video: the highest resident memory.

    python -m tools.host_memory --seconds 10 1800

Each row is a process of its own that runs one command, as a user types it, on a generated video of 360x640 (height x
width) at 8 frames a second with sound. The model is tiny.generator of the tests: a real VAE and a real transformer of
random weights, one sampling step. `extend` works at the video's own size, in short windows; `edit` and `inpaint`, which
make every frame again, at --small, so that half an hour of video takes minutes. Imports and compiled programs are in
the figures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from unittest import mock

import av
import numpy as np

SIZE, FPS, RATE = (360, 640), 8, 16000
MIB = 1 << 20


def video(path: Path, seconds: int) -> None:
    """A gradient that moves, and a tone."""
    ramp = np.arange(SIZE[1], dtype=np.uint8)[None, :, None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "30"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        sound = out.add_stream("aac", rate=RATE, layout="mono")
        wave = np.float32(0.2 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE))[None]
        for second in range(seconds):
            for k in range(FPS):
                pixels = np.broadcast_to(ramp + np.uint8((8 * second + k) % 256), (*SIZE, 3))
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts = second * FPS + k
                out.mux(stream.encode(frame))
            heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            heard.sample_rate, heard.pts = RATE, second * RATE
            out.mux(sound.encode(heard))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))


def words(name: str, path: Path, out: Path, small: str) -> list[str]:
    """The command's words."""
    options = {
        "extend": ["--after", "2s", "--size", "{}x{}".format(*SIZE), "--window", "5"],
        "edit": ["--size", small, "--strength", "0.5"],
        "inpaint": ["--size", small, "--box", "10%,10%,30%,30%"],
        "loop": ["--passage", "8"],
        "rollout": [],
    }[name]
    if name == "rollout":
        options = ["--frames", str(video_frames(path) + 16)]
    return [name, "RUN", str(path), "a", *options, "--steps", "1", "--out", str(out)]


def video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


def measure(command: list[str]) -> tuple[int, float]:
    """(the highest resident bytes, seconds) of this process, which runs one command."""
    from tests import tiny
    from vdit.cli.main import main

    generator, began = tiny.generator(window=17), time.monotonic()
    with mock.patch("vdit.generate.open_generator", return_value=generator):
        code = main(command)
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=("extend", "edit"), help="commands; default: extend edit")
    parser.add_argument("--seconds", type=int, nargs="+", default=(10, 1800), help="lengths; default: 10 1800")
    parser.add_argument("--small", default="48x80", metavar="HxW", help="of edit and inpaint; default: %(default)s")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    context = multiprocessing.get_context("spawn")
    print(f"{'command':8}  {'seconds':>7}  {'frames MiB':>10}  {'peak MiB':>8}  {'took s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            path = Path(folder) / f"{seconds}.mp4"
            video(path, seconds)
            for name in options.names:
                with context.Pool(1) as pool:
                    peak, took = pool.apply(measure, (words(name, path, Path(folder) / f"{name}.mp4", options.small),))
                length = seconds * FPS * SIZE[0] * SIZE[1] * 3 / MIB
                print(f"{name:8}  {seconds:7}  {length:10.0f}  {peak / MIB:8.0f}  {took:6.0f}", flush=True)


if __name__ == "__main__":
    main()
