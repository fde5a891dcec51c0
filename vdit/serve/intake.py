"""Uploads are opened here, in a process of its own that may use so much time, memory and disk and no more.

    python -m vdit.serve.intake JOB          # one JSON object on stdin's place: see `read`

The child reads the file of a stranger by vdit's own readers and writes it again as a file of ours: a lossless video at
the model's rate, or a PNG. The server itself opens only those. What the child says is one line of JSON: what it found,
or why it did not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vdit.serve.schema import ApiError, Limits

MOST_ANSWER = 64 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intake:
    """What the child is told.

    Attributes:
        source: the file that came. target: path without an ending, of what is written.
        fps: of the video that is written. frames, pixels: at most; larger pictures are scaled down.
        seconds, memory, disk: of the processor, bytes, bytes.
    """

    source: str
    target: str
    fps: float
    frames: int
    pixels: int
    seconds: int
    memory: int
    disk: int

    @classmethod
    def of(cls, source: Path, target: Path, *, fps: float, limits: Limits) -> Intake:
        """The limits of a server."""
        return cls(
            source=str(source), target=str(target), fps=fps, frames=limits.upload_frames, pixels=limits.upload_pixels,
            seconds=limits.read_seconds, memory=limits.read_bytes, disk=4 * limits.upload_bytes,
        )  # fmt: skip


def read_upload(intake: Intake) -> dict[str, Any]:
    """Runs the child and gives what it found: kind, width, height, frames, fps, note.

    Raises:
        ApiError: 400 where the file cannot be read, 413 where it is more than a limit allows.
    """
    command = [sys.executable, "-m", "vdit.serve.intake"]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        start_new_session=True, cwd=Path(intake.target).parent,
    )  # fmt: skip
    try:
        said, _ = child.communicate(json.dumps(dataclasses.asdict(intake)).encode(), timeout=3 * intake.seconds)
    except subprocess.TimeoutExpired:
        said = b""
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    answer = _answer(said[:MOST_ANSWER])
    if answer is None:
        took = f"{intake.seconds} s of the processor or {intake.memory >> 20} MiB of memory"
        raise ApiError(
            f"the file cannot be read within {took}: give a shorter or smaller one", status=413, param="file",
            code="file_limit",
        )  # fmt: skip
    if "error" in answer:
        raise ApiError(answer["error"], status=answer["status"], param="file", code=answer["code"])
    return answer


_ROOT = Path(__file__).resolve().parents[2]


def _answer(said: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(said)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def main() -> None:
    """The child: limits first, then the imports that take time, then the file."""
    intake = Intake(**json.loads(sys.stdin.read()))
    for kind, most in (
        (resource.RLIMIT_CPU, intake.seconds), (resource.RLIMIT_AS, intake.memory), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, intake.disk), (resource.RLIMIT_NOFILE, 64),
    ):  # fmt: skip
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is then an error
    from vdit.errors import VditError

    try:
        answer = _read(intake)
    except ApiError as error:
        answer = {"error": str(error), "status": error.status, "code": error.code}
    except VditError as error:
        said = str(error).replace(intake.source, "the file").replace(Path(intake.source).name, "the file")
        answer = {"error": said, "status": 400, "code": "unreadable_file"}
    except (OSError, MemoryError, RecursionError):
        answer = {"error": "the file needs more memory or disk than a file may: give a shorter or smaller one",
                  "status": 413, "code": "file_limit"}  # fmt: skip
    except Exception as error:  # of a library, by what a stranger wrote
        said = f"the file cannot be read ({type(error).__name__})"
        answer = {"error": said, "status": 400, "code": "unreadable_file"}
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # no library's own ending


def _read(intake: Intake) -> dict[str, Any]:
    from vdit.generate.images import is_image, read_image
    from vdit.video.write import write_image

    source = Path(intake.source)
    if not is_image(source):
        return _read_video(intake, source)
    image = read_image(source)
    size = _fitting(image.shape[:2], intake.pixels)
    note = None
    if size != image.shape[:2]:
        from PIL import Image

        image = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
        note = f"scaled from {_shown(source_size(source))} to {_shown(size)}"
    import numpy as np

    write_image(f"{intake.target}.png", np.asarray(image))
    return {"kind": "image", "width": size[1], "height": size[0], "frames": 1, "fps": None, "note": note}


def source_size(source: Path) -> tuple[int, int]:
    """(height, width) of an image."""
    from vdit.generate.images import read_image

    return read_image(source).shape[:2]


def _read_video(intake: Intake, source: Path) -> dict[str, Any]:
    from vdit.generate.inputs import same_rate
    from vdit.video.read import iter_frames, probe
    from vdit.video.write import write_video

    info = probe(source)
    own, size = (info.height, info.width), _fitting((info.height, info.width), intake.pixels)
    same = info.fps is not None and same_rate(info.fps, intake.fps)
    rate = info.fps if same else intake.fps
    options: dict[str, Any] = {"threads": 1, "max_frames": intake.frames + 1}
    if not same:
        options["fps"] = intake.fps
    if size != own:
        options["size"] = size
    count = 0

    def frames() -> Iterator[Any]:
        nonlocal count
        for _, frame in iter_frames(source, **options):
            count += 1
            if count > intake.frames:
                raise ApiError(
                    f"the video has more than {intake.frames} frames at {intake.fps:g} a second: give a shorter one",
                    status=413, code="upload_frames_limit",
                )  # fmt: skip
            yield frame

    write_video(f"{intake.target}.mkv", frames(), fps=rate)
    notes = [f"scaled from {_shown(own)} to {_shown(size)}"] if size != own else []
    if not same:
        was = "an unknown rate" if info.fps is None else f"{info.fps:.4g}"
        notes.append(f"taken at {intake.fps:g} frames a second, of {was}")
    if info.sound:
        notes.append("its sound is left out")
    _play(intake, size, rate)
    return {
        "kind": "video", "width": size[1], "height": size[0], "frames": count, "fps": rate,
        "note": "; ".join(notes) or None,
    }  # fmt: skip


def _play(intake: Intake, size: tuple[int, int], rate: float) -> None:
    """What a browser shows of it."""
    from vdit.video.read import iter_frames
    from vdit.video.write import write_video

    small = _fitting(size, 640 * 640)
    even = tuple(max(2, side // 2 * 2) for side in small)
    frames = (frame for _, frame in iter_frames(f"{intake.target}.mkv", size=even, threads=1))
    write_video(f"{intake.target}.mp4", frames, fps=rate)


def _fitting(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """(height, width) of the same shape, with at most so many pixels."""
    height, width = size
    if height * width <= pixels:
        return height, width
    share = math.sqrt(pixels / (height * width))
    return max(1, int(height * share)), max(1, int(width * share))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


if __name__ == "__main__":
    main()
