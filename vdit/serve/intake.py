"""Uploads are opened here, in a process of its own that may use so much time, memory and disk and no more.

    reader = Reader()
    found = reader.read(Intake.of(file, target, fps=8, limits=limits))

The child reads the file of a stranger by vdit's own readers and writes it again as a file of ours: a lossless video at
the model's rate, or a PNG. The server itself opens only those, and a small JSON file of what was found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

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


class Reader:
    """A process that has imported what reading takes, and starts a child of its own for each upload.

    One upload at a time. The process is started when it is first needed, and again after one that had to be killed.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def read(self, intake: Intake) -> dict[str, Any]:
        """What was found in a file: kind, width, height, frames, fps, note.

        Raises:
            ApiError: 400 where the file cannot be read, 413 where it is more than a limit allows.
        """
        answer = Path(f"{intake.target}.json")
        process = self._started()
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(intake)).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], 3 * intake.seconds)
            if not ready or not process.stdout.readline():
                self.close()
        except OSError:
            self.close()
        found = _answer(answer)
        answer.unlink(missing_ok=True)
        if found is None:
            took = f"{intake.seconds} s of the processor or {intake.memory >> 20} MiB of memory"
            raise ApiError(
                f"the file cannot be read within {took}: give a shorter or smaller one", status=413, param="file",
                code="file_limit",
            )  # fmt: skip
        if "error" in found:
            raise ApiError(found["error"], status=found["status"], param="file", code=found["code"])
        return found

    def close(self) -> None:
        """Ends the process and what it has started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _started(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vdit.serve.intake"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
        return self._process


_ROOT = Path(__file__).resolve().parents[2]


def _answer(file: Path) -> dict[str, Any] | None:
    try:
        with file.open("rb") as data:
            found = json.loads(data.read(MOST_ANSWER))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def main() -> None:
    """The process of a Reader: a line of JSON for each upload, and a line back when its child has ended."""
    import vdit.generate.inputs
    import vdit.video.write  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking: nothing has started a thread here
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                _child(Intake(**json.loads(line)))
            os.waitpid(child, 0)
            print("done", flush=True)


def _child(intake: Intake) -> NoReturn:
    """Reads one upload within its limits, writes what it found to target.json, and ends."""
    try:
        for kind, most in (
            (resource.RLIMIT_CPU, intake.seconds), (resource.RLIMIT_AS, intake.memory), (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, intake.disk), (resource.RLIMIT_NOFILE, 64),
        ):  # fmt: skip
            resource.setrlimit(kind, (most, most))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is then an error
        answer = _outcome(intake)
        Path(f"{intake.target}.json").write_text(json.dumps(answer))
    finally:
        os._exit(0)  # no library's own ending, and never back into the parent's loop


def _outcome(intake: Intake) -> dict[str, Any]:
    from vdit.errors import VditError

    try:
        return _read(intake)
    except ApiError as error:
        return {"error": str(error), "status": error.status, "code": error.code}
    except VditError as error:
        said = str(error).replace(intake.source, "the file").replace(Path(intake.source).name, "the file")
        return {"error": said, "status": 400, "code": "unreadable_file"}
    except (OSError, MemoryError, RecursionError):
        said = "the file needs more memory or disk than a file may: give a shorter or smaller one"
        return {"error": said, "status": 413, "code": "file_limit"}
    except Exception as error:  # of a library, by what a stranger wrote
        said = f"the file cannot be read ({type(error).__name__})"
        return {"error": said, "status": 400, "code": "unreadable_file"}


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
