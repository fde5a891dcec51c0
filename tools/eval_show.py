"""Shows that `vdit eval` sees what it should on real clips, and that its numbers are those of public libraries.

    python -m tools.eval_show clips FOLDER OUT     # halves of one set, low bit rate, shuffled frames, another set
    python -m tools.eval_show agreement            # with cd-fvd, videojedi, scikit-image and scipy, where installed

`clips` cuts windows out of every video of the folder, writes five folders of them, runs `vdit eval` on those and prints
for each metric whether the sets come in the right order.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import resource
import sys
import unittest.mock
from pathlib import Path

import av
import numpy as np
from scipy import linalg

from vdit import worlds
from vdit.cli.main import main as vdit
from vdit.data.captions import video_files
from vdit.errors import VditError
from vdit.eval.metrics import frame_ms_ssim, frame_ssim, psnr
from vdit.eval.statistics import frechet, mmd, precision_recall
from vdit.video.read import probe, read_video, write_video

FRAMES, SIZE = 9, (96, 128)
PARTS = 4  # windows of a clip, two for each half
# Figure -> set -> whether it must be larger (1) or smaller (-1) there than in the other half.
EXPECTED = {
    "frechet": {"low_rate": 1, "shuffled": 1, "another": 1},
    "frechet_infinite": {"low_rate": 1, "shuffled": 1, "another": 1},
    "mmd": {"low_rate": 1, "shuffled": 1, "another": 1},
    "precision": {"another": -1},
    "recall": {"another": -1},
    "sharpness": {"low_rate": -1},
    "flicker": {"shuffled": 1},
    "warp_error": {"shuffled": 1},
    "motion_smoothness": {"shuffled": -1},
}


def low_rate(path: Path, video: np.ndarray, fps: float) -> None:
    """Writes a video as H.264 of very low quality."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=round(fps), options={"crf": "45", "preset": "medium"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def make_folders(clips: Path, out: Path) -> None:
    """Windows of each clip: in turn to "half_a" and "half_b"; the second half also damaged; and another set."""
    for name in ("half_a", "half_b", "low_rate", "shuffled", "another"):
        (out / name).mkdir(parents=True)
    random, count = np.random.default_rng(0), 0
    for file in video_files(clips):
        try:
            info = probe(file)
            starts = [(info.duration or 1.0) * (part + 0.3) / PARTS for part in range(PARTS)]
            windows = [read_video(file, start=start, max_frames=FRAMES, size=SIZE) for start in starts]
        except VditError as error:
            print(f"left out: {error}")
            continue
        for part, clip in enumerate(windows):
            if len(clip.frames) < FRAMES:
                continue
            stem, fps = f"{file.stem}_{part}", clip.fps
            write_video(out / ("half_a", "half_b")[part % 2] / f"{stem}.mkv", clip.frames, fps=fps)
            if part % 2:
                low_rate(out / "low_rate" / f"{stem}.mp4", clip.frames, fps)
                write_video(out / "shuffled" / f"{stem}.mkv", clip.frames[random.permutation(FRAMES)], fps=fps)
                kind = worlds.names()[count % len(worlds.names())]
                other = worlds.make(kind, seed=9, size=SIZE, frames=FRAMES)[count].video
                write_video(out / "another" / f"{stem}.mkv", other, fps=fps)
                count += 1


def show_clips(clips: Path, out: Path, features: str) -> None:
    make_folders(clips, out / "videos")
    place = out / "videos"
    sets = [str(place / name) for name in ("half_b", "low_rate", "shuffled", "another")]
    code = vdit(["eval", *sets, "--real", str(place / "half_a"), "--frames", str(FRAMES), "--out", str(out / "sets"),
                 "--features", features])  # fmt: skip
    code |= vdit(["eval", *sets[1:], "--real", sets[0], "--frames", str(FRAMES), "--out", str(out / "pairs"),
                  "--metrics", "psnr,ssim,physics_iq"])  # fmt: skip
    if code:
        raise SystemExit(code)
    found = {one["name"]: one["figures"] for one in json.loads((out / "sets/evaluation.json").read_text())["sets"]}
    print("\nfigure            set         half_b    there   as expected")
    for figure, expected in EXPECTED.items():
        for name, sign in expected.items():
            here, there = found["half_b"][figure]["value"], found[name][figure]["value"]
            print(f"{figure:17} {name:10} {here:8.4g} {there:8.4g}   {'yes' if sign * (there - here) > 0 else 'NO'}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds, {used.ru_maxrss / 2**20:.1f} GiB of memory at most")


def formula(module: str, name: str):
    """A function of a library's module. What else the module imports and is not installed (nets) is replaced.

    Raises:
        ModuleNotFoundError: the library itself is not installed.
    """
    own = module.split(".")[0]
    importlib.import_module("torch")
    for _ in range(40):
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] == own:
                raise
            sys.modules[error.name] = unittest.mock.MagicMock()
            for loaded in [known for known in sys.modules if known.split(".")[0] == own]:
                del sys.modules[loaded]
    raise ModuleNotFoundError(f"{module} needs too much that is not installed", name=own)


@contextlib.contextmanager
def absent(name: str):
    """Around the comparison with a library: says so where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{name}: not compared ({error})")


def agreement() -> None:
    """The same fixed features and frames through vdit and through public libraries."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(300, 32)) @ random.normal(size=(32, 32)), random.normal(size=(200, 32)) + 0.3
    x = random.integers(0, 256, (200, 190, 3), np.uint8)
    y = np.clip(x + random.normal(0, 20, x.shape), 0, 255).astype(np.uint8)
    rows = []
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    trace = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
    rows.append(("Fréchet", "scipy.linalg.sqrtm", frechet(a, b), np.square(a.mean(0) - b.mean(0)).sum() + trace))
    with absent("cd-fvd"):
        cdfvd, FeatureStats = formula("cdfvd.fvd", "cdfvd"), formula("cdfvd.utils.metric_utils", "FeatureStats")
        stats = [FeatureStats(capture_mean_cov=True) for _ in "ab"]
        for stat, x_ in zip(stats, (a, b)):
            stat.append(x_)
        # cd-fvd divides covariances by n, not n - 1; features scaled about their mean give it the same covariances.
        scaled = [m + (f - m) * np.sqrt(len(f) / (len(f) - 1)) for f, m in ((a, a.mean(0)), (b, b.mean(0)))]
        fixed = [FeatureStats(capture_mean_cov=True) for _ in "ab"]
        for stat, x_ in zip(fixed, scaled):
            stat.append(x_)
        rows.append(("Fréchet", "cd-fvd, covariances / n", frechet(a, b),
                     float(cdfvd.compute_fvd_from_stats(None, *stats))))  # fmt: skip
        rows.append(("Fréchet", "cd-fvd, covariances / (n - 1)", frechet(a, b),
                     float(cdfvd.compute_fvd_from_stats(None, *fixed))))  # fmt: skip
    with absent("videojedi"):
        mmd_poly = formula("videojedi.mmd_polynomial", "mmd_poly")
        rows.append(("MMD (JEDi)", "videojedi", 100 * mmd(a, b), 100 * mmd_poly(a, b, degree=2, coef0=0)))
    with absent("scikit-image"):
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        rows.append(("PSNR", "scikit-image", psnr(x, y), peak_signal_noise_ratio(x, y)))
        # Its own mean also leaves the border out, where the window does not fit.
        theirs = structural_similarity(x, y, channel_axis=-1, gaussian_weights=True, sigma=1.5,
                                       use_sample_covariance=False, data_range=255)  # fmt: skip
        rows.append(("SSIM", "scikit-image", float(frame_ssim(x, y)), theirs))
    print("figure      library                          vdit          library        relative difference")
    for figure, library, ours, theirs in rows:
        print(f"{figure:11} {library:30} {ours:14.8g} {theirs:14.8g}   {abs(ours - theirs) / abs(theirs):.1e}")
    print(f"also: precision, recall {precision_recall(a, b)}, MS-SSIM {float(frame_ms_ssim(x, y)):.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    clips = commands.add_parser("clips", help="five folders out of real clips, measured")
    clips.add_argument("folder", type=Path)
    clips.add_argument("out", type=Path, help="a new folder")
    clips.add_argument("--features", default="worlds", help="see vdit eval; default: %(default)s")
    commands.add_parser("agreement", help="the numbers of public libraries on fixed features and frames")
    options = parser.parse_args()
    if options.command == "clips":
        show_clips(options.folder, options.out, options.features)
    else:
        agreement()


if __name__ == "__main__":
    main()
