"""`vdit reconstruct`: ordinary video files through a run's VAE and back, measured."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from vdit import paths
from vdit.cli.parser import RATE, Command, Duration, UsageError, at_least, length
from vdit.errors import EX_USAGE, VditError
from vdit.outputs import check_output, numbered, write_whole

CHUNK = 4  # latent frames at a time


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="the folder that vdit train filled")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file, or a folder of them")
    parser.add_argument("--out", default="reconstructions", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--area", type=at_least(64), metavar="PIXELS", help="height x width at most; default: the run's largest"
    )
    parser.add_argument("--fps", type=RATE, help="resample to this rate; default: the file's own")
    parser.add_argument("--frames", type=length, metavar="TIME", help="only the first N, or 2s; default: all")


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    del overrides
    files = [file for name in options.videos for file in _files(paths.path(name))]
    out = paths.path(options.out)
    targets = _targets(files, out)
    for target in targets:
        check_output(target, given=[*files, *options.videos, options.run_folder], name=f"--out {out}: {target}")

    from vdit.cli.process import keep_compiled
    from vdit.cli.status import Status
    from vdit.dist.mesh import available_devices
    from vdit.generate import load_vae
    from vdit.train.workspace import Workspace

    keep_compiled()
    available_devices()  # refused here, before any work
    area = options.area or max(Workspace(options.run_folder).experiment().data.pixel_budgets)
    pairs = [(file, target) for file, target in zip(files, targets) if _is_video(file)]
    if not pairs:
        return EX_USAGE
    with Status("reconstruct") as status:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        status.tell("model", f"the VAE of {options.run_folder}")
        status.tell("makes", f"{len(pairs)} of {len(files)} files again, of at most {area} pixels a frame -> {out}")
        with status.loading("the VAE"):
            vae = load_vae(options.run_folder)
        rows = []
        with status.progress("files", len(pairs)) as display:
            for number, (file, target) in enumerate(pairs, start=1):
                try:
                    row = _reconstruct(vae, file, target, area=area, fps=options.fps, frames=options.frames)
                except VditError as error:
                    print(f"vdit: {error}", file=sys.stderr, flush=True)
                else:
                    rows.append(row)
                    status.wrote(out / row["video"])
                    print(f"{_line(row['file'], row)}  -> {out / row['video']}", flush=True)
                display.update(number, {})
        if rows:
            mean = {name: _mean([row[name] for row in rows]) for name in ("psnr", "ssim")}
            print(_line(f"mean of {len(rows)}", mean))
            text = json.dumps({"mean": mean, "files": rows}, indent=1) + "\n"
            write_whole(out / "reconstruct.json", lambda part: part.write_text(text), replace=False)
        status.next = f'vdit sample {shlex.quote(options.run_folder)} "a prompt" --out sample.mp4'
    return EX_USAGE if len(rows) < len(files) else 0


def _is_video(file: Path) -> bool:
    """Whether a file's header can be read as a video; says so where not."""
    from vdit.video.read import probe

    try:
        probe(file)
    except VditError as error:
        print(f"vdit: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _files(path: paths.AnyPath) -> list[paths.AnyPath]:
    if not paths.is_dir(path):
        return [path]
    from vdit.data.captions import SUFFIXES, video_files

    files = video_files(path)
    if not files:
        raise UsageError(f"{path}: is a folder without video files ({', '.join(SUFFIXES)})")
    return files


def _targets(files: list[Path], out: Path) -> list[Path]:
    """OUT/NAME.mp4, numbered where two files have the same name; a file that is there gets another number."""
    targets: list[Path] = []
    for file in files:
        targets.append(next(path for path in numbered(out / f"{file.stem}.mp4") if path not in targets))
    return targets


def _reconstruct(vae, file: Path, target: Path, *, area: int, fps: float | None, frames: Duration | None) -> dict:
    """Reads, encodes, decodes and writes some frames at a time; what was measured."""
    import numpy as np

    from vdit.data.clips import fit_size
    from vdit.eval.metrics import WINDOW, frame_psnr, frame_ssim
    from vdit.generate.host_memory import check_memory
    from vdit.generate.inputs import open_input
    from vdit.video.read import probe, write_video
    from vdit.video.sound import SoundPart

    info = probe(file)
    stride, step = vae.config.spatial_stride, vae.config.temporal_stride
    size = fit_size(info.height, info.width, max(min(area, info.height * info.width), stride**2), stride)
    most = None if frames is None else max(1, frames.frames(fps or info.fps or 25.0))
    check_memory(CHUNK * step, size)
    given = open_input(file, fps=fps, max_frames=most, size=size)
    measured, left, seen = ([], []), 0, 0

    def both() -> Iterator[np.ndarray]:
        """The original beside the reconstruction, uint8 [t h 2w 3]."""
        nonlocal left, seen
        caches, waiting, first = (None, None), [], 1
        for piece in itertools.chain(given, [None]):
            waiting += [] if piece is None else [piece]
            count = sum(part.shape[1] for part in waiting)
            asked = (CHUNK - first) * step + first
            while count >= asked or (piece is None and count >= (first or step)):
                video = np.concatenate(waiting, axis=1)
                taken = min(asked, (count - first) // step * step + first)
                video, waiting = video[:, :taken], [video[:, taken:]]
                latents, encoder = vae.encode_chunk(video, caches[0])
                again, decoder = vae.decode_chunk(latents, caches[1])
                caches, first, count = (encoder, decoder), 0, count - taken
                seen, asked = seen + taken, CHUNK * step
                video, again = (np.round((np.asarray(x)[0] + 1) * 127.5).astype(np.uint8) for x in (video, again))
                measured[0].extend(frame_psnr(video, again))
                if min(size) >= WINDOW:
                    measured[1].extend(frame_ssim(video, again))
                yield np.concatenate([video, again], axis=2)
        left = count

    def sound() -> list[SoundPart]:
        return [SoundPart(path=file, seconds=seen / given.fps)]

    path = write_whole(target, lambda part: write_video(part, both(), fps=given.fps, sound=sound), replace=False)
    return {
        "file": str(file),
        "height": size[0],
        "width": size[1],
        "frames": seen,
        "frames_left_out": left,
        "fps": given.fps,
        "psnr": float(np.mean(measured[0])),
        "ssim": float(np.mean(measured[1])) if measured[1] else None,
        "video": path.name,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(name: str, row: dict) -> str:
    ssim = "too small for SSIM" if row["ssim"] is None else f"SSIM {row['ssim']:.4f}"
    what = f"  {row['width']}x{row['height']}, {row['frames']} frames" if "frames" in row else ""
    if row.get("frames_left_out"):
        what += f" (the last {row['frames_left_out']} left out: less than the VAE's stride in time)"
    return f"{name}  PSNR {row['psnr']:.2f} dB  {ssim}{what}"


RECONSTRUCT = Command(
    summary="pass video files through a run's VAE and back, and measure what is lost",
    description="""\
Encodes and decodes each file with the VAE of a run (the transformer need not be trained yet), prints PSNR and
SSIM, and writes OUT/NAME.mp4 with the original on the left and the reconstruction on the right, and
OUT/reconstruct.json; names that are taken get a number. A file keeps its aspect ratio: it is scaled to cover the
height and width, multiples of the VAE's stride, that fit its shape best within --area pixels (never above its own),
and the rest, less than one stride, is cropped evenly. It keeps its frame rate unless --fps is given: the VAE has no
rate. Frames after the last whole group of the VAE's stride in time are dropped, and counted.""",
    epilog="""\
examples:
  vdit reconstruct runs/mine holiday.mp4 --out check
  vdit reconstruct runs/mine clips/*.mp4 --out check --area 16384 --fps 12 --frames 65

A file that cannot be read is named, the others are still done, and the exit code is 2.""",
    add_arguments=_add_arguments,
    run=_run,
)
