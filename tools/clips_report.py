"""How well a run on a folder of clips reconstructs and samples, on seen and held-out clips: one page, one JSON file.

    python tools/clips_report.py runs/clips [--data FOLDER] [--out runs/clips/report.html]

For every clip: PSNR and SSIM of the VAE's reconstruction at the clip's own aspect ratio, by the rule that
training sizes clips by, beside a linear code of as many channels, which a VAE should beat, and PSNR of what the VAE
decodes from latents with noise of a fifth of each channel's standard deviation: a transformer's samples are not quite
latents, either. Then the share of useful tokens in the rows of the run's mix, training curves, and videos sampled for
the captions of clips beside the clips themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vdit
from vdit.data import FolderSource
from vdit.data.clips import ClipSpec, apply_cut, cover, fit_size
from vdit.data.datasets import FileHandle, FolderDataset
from vdit.data.latents import LatentStore
from vdit.data.pipeline import TokenSpec, row_iterator, row_use
from vdit.errors import ConfigError, VditError
from vdit.eval.metrics import psnr, ssim
from vdit.eval.page import Page
from vdit.experiment.experiment import Experiment
from vdit.generate.generator import Generator
from vdit.models.vae.blocks import fold
from vdit.models.vae.config import VAEConfig
from vdit.train.workspace import Workspace

NOISE = 0.2  # standard deviations of a channel
CURVES = {"vae": ("reconstruction", "psnr", "kl", "discriminator"), "dit": ("loss", "grad_norm")}


def shown(footage: FileHandle, experiment: Experiment, frames: int, area: int) -> tuple[np.ndarray, float]:
    """(uint8 [t h w 3], fps): a clip from its start, fitted to `area` pixels as in training."""
    data = experiment.data
    rates = [rate for rate in data.fps if rate <= footage.fps * 1.01] or [min(data.fps)]
    span = max(0.0, footage.seconds - 1 / footage.fps) + 1e-3
    # The lowest rate shows most of the clip; one too short for it is shown at a higher one.
    fps = next((rate for rate in sorted(rates) if (frames - 1) / rate <= span), max(rates))
    fits = 1 + int(span * fps) // data.frame_multiple * data.frame_multiple
    size = fit_size(footage.height, footage.width, min(area, footage.height * footage.width), data.size_multiple)
    resize = cover(footage.height, footage.width, size)
    offset = tuple((r - s) // 2 for r, s in zip(resize, size))
    cut = ClipSpec(start=0.0, fps=fps, frames=min(frames, fits), resize=resize, offset=offset, size=size)
    return apply_cut(footage, cut).video, fps


def to_bytes(video: Any) -> np.ndarray:
    """float [-1, 1] -> uint8."""
    return np.round((np.clip(np.asarray(video), -1, 1) + 1) * 127.5).astype(np.uint8)


def reconstruction(
    generator: Generator, clips: dict[str, tuple[np.ndarray, float]], holdout: Sequence[str], std: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row for each clip, and the reconstructions, by name; `std` [c] is that of each channel of the latents."""
    rows, again, random = [], {}, np.random.default_rng(0)
    for name, (video, fps) in clips.items():
        latents = np.asarray(generator.vae.encode(video[None]))
        noise = NOISE * std * random.standard_normal(latents.shape, np.float32)
        decoded, noisy = (to_bytes(generator.vae.decode(one)[0]) for one in (latents, latents + noise))
        again[name] = decoded
        t, h, w, _ = video.shape
        rows.append(
            {"clip": name, "seen": name not in holdout, "size": f"{w}x{h}", "frames": t, "fps": fps,
             "psnr": psnr(video, decoded), "ssim": ssim(video, decoded), "noisy latents, psnr": psnr(video, noisy)}
        )  # fmt: skip
    return rows, again


def linear_code(videos: dict[str, np.ndarray], vae: VAEConfig, holdout: Sequence[str]) -> dict[str, float]:
    """PSNR of each video [t h w 3] in dB, as principal components of the pixels that a latent stands for.

    As many as the VAE has channels, of the videos that are not in `holdout`; of all, where all are.
    """
    time, space = vae.temporal_stride, vae.spatial_stride
    blocks = {}
    for name, video in videos.items():
        whole = np.concatenate([np.repeat(video[:1], time - 1, axis=0), video])  # as the VAE sees a first frame
        folded = np.asarray(fold(whole[None].astype(np.float32) / 255, time, space))
        blocks[name] = folded.reshape(-1, folded.shape[-1])
    seen = np.concatenate([some for name, some in blocks.items() if name not in holdout] or [*blocks.values()])
    mean = seen.mean(0)
    components = np.linalg.eigh(np.cov((seen - mean).T))[1][:, ::-1][:, : vae.latent_channels]
    error = {name: np.square((some - mean) - (some - mean) @ components @ components.T).mean()
             for name, some in blocks.items()}  # fmt: skip
    return {name: float(-10 * np.log10(max(one, 1e-10))) for name, one in error.items()}


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean PSNR and SSIM over clips, seen and left out."""
    out = {}
    for part, seen in (("seen", True), ("left out", False)):
        chosen = [row for row in rows if row["seen"] == seen]
        if chosen:
            keys = ("psnr", "ssim", "linear code, psnr", "noisy latents, psnr")
            out |= {f"{key} {part}": float(np.mean([row[key] for row in chosen])) for key in keys}
    return out


def token_use(generator: Generator, workspace: Workspace, rows: int) -> dict[str, float]:
    """Share of each budget of the run's packed rows in use, over at least `rows` rows."""
    experiment, statistics = generator.experiment, workspace.statistics()
    size = experiment.dit_train.batch_size
    iterator = row_iterator(
        experiment.data, LatentStore(workspace.latents), generator.tokenizer,
        TokenSpec(patch=experiment.backbone.patch, mean=statistics["mean"], std=statistics["std"]),
        seed=experiment.seed, batch_rows=size,
    )  # fmt: skip
    use = [row_use(next(iterator)) for _ in range(-(-rows // size))]
    iterator.close()
    return {key: float(np.mean([one[key] for one in use])) for key in use[0]}


def sampled(
    generator: Generator, clips: dict[str, tuple[np.ndarray, float]], captions: dict[str, str], **options: Any
) -> dict[str, np.ndarray]:
    """A video for each clip's caption, of the clip's size and duration; one compilation for each size."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, (video, _) in clips.items():
        groups.setdefault(video.shape[:3], []).append(name)
    out = {}
    for (frames, height, width), names in groups.items():
        for name in names:
            out[name] = to_bytes(generator(captions[name], frames=frames, size=(height, width), **options)[0])
    return out


def logs(workspace: Workspace) -> dict[str, list[dict[str, float]]]:
    """Lines of metrics of each stage that has some."""
    found = {}
    for stage in CURVES:
        path = workspace.logs / f"{stage}.jsonl"
        if path.exists():
            found[stage] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def seconds(lines: list[dict[str, float]]) -> float:
    """What the steps took, from the speeds in the log."""
    steps = np.diff([0, *(line["step"] for line in lines)])
    speeds = [line.get("speed/steps_per_second", np.nan) for line in lines]
    return float(np.nansum(steps / np.asarray(speeds)))


def build_page(result: dict[str, Any], metrics: dict, videos: dict[str, list], run: str) -> Page:
    left_out = ", ".join(result["holdout"]) or "none"
    page = Page("Clips: seen and left out", f"Run {result['name']}. Left out: {left_out}.")
    figures = {key: f"{value:.2f}" if "psnr" in key else f"{value:.3f}" for key, value in result["mean"].items()}
    page.figures(figures | {"useful tokens": f"{result['token_use']['tokens']:.2%}"})
    for title, grid in videos.items():
        page.videos(grid, result["fps"], title=title, columns=2)
    keys = ("clip", "seen", "size", "frames", "fps", "psnr", "linear code, psnr", "noisy latents, psnr", "ssim")
    table = [[("yes" if row[k] else "no") if k == "seen" else row[k] for k in keys] for row in result["clips"]]
    page.table(keys, table, title="Reconstruction, clip by clip")
    for stage, lines in metrics.items():
        for key in CURVES[stage]:
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                page.curves({key: tuple(zip(*points))}, title=f"{stage}: {key}")
    page.table(("what", "value"), [*result["took"].items(), *((f"row budget in use: {k}", v) for k, v in
                                                              result["token_use"].items())], title="Costs")  # fmt: skip
    return page.commands([f"vdit sample {run} PROMPT --out sample.mp4", f"vdit reconstruct {run} VIDEO"], title="Go on")


def report(
    run: str, *, data: str | None = None, out: str | None = None, frames: int = 17, rows: int = 200, samples: int = 6
) -> dict[str, Any]:
    """Writes OUT and OUT with .json; returns what the JSON holds."""
    workspace = Workspace(run)
    generator = vdit.load(run)
    experiment = generator.experiment
    if not isinstance(experiment.data.source, FolderSource):
        raise ConfigError(f"{run} was trained on {experiment.data.source!r}: this report is for folders")
    frames = 1 + (frames - 1) // experiment.data.frame_multiple * experiment.data.frame_multiple
    library = FolderDataset(data or experiment.data.path, experiment.data.source.captions)
    footage = [library.open(i, np.random.default_rng(0)) for i in range(len(library))]
    captions = {one.id: one.captions[0] for one in footage}
    began = time.time()
    area = max(experiment.data.pixel_budgets)
    clips = {one.id: shown(one, experiment, frames, area) for one in footage}
    table, again = reconstruction(generator, clips, experiment.holdout, workspace.statistics()["std"])
    linear = linear_code({name: video for name, (video, _) in clips.items()}, experiment.vae, experiment.holdout)
    for row in table:
        row["linear code, psnr"] = linear[row["clip"]]

    seen = [name for name in clips if name not in experiment.holdout]
    spread = [seen[i] for i in np.linspace(0, len(seen) - 1, min(samples, len(seen))).astype(int)]
    left_out = [name for name in clips if name in experiment.holdout] if samples else []
    chosen = {one.id: shown(one, experiment, experiment.sample.frames, int(np.prod(experiment.sample.size)))
              for one in footage if one.id in (*spread, *left_out)}  # fmt: skip
    made = sampled(generator, chosen, captions)
    metrics = logs(workspace)
    took = {f"{stage} seconds of steps": seconds(lines) for stage, lines in metrics.items()}
    for stage, cost in workspace.costs().items():
        took |= {f"{stage} seconds": cost["seconds"], f"{stage} peak memory, GB": cost["peak_memory"] / 1e9}
    took |= {f"{stage} steps": lines[-1]["step"] for stage, lines in metrics.items() if lines}
    took["report seconds"] = time.time() - began
    result = {
        "name": experiment.name, "holdout": list(experiment.holdout), "fps": experiment.sample.fps,
        "mean": means(table), "token_use": token_use(generator, workspace, rows), "took": took, "clips": table,
        "skipped": library.broken, "devices": jax.device_count(),
    }  # fmt: skip
    videos = {}
    for title, names in (("seen", spread), ("left out", left_out)):
        if names:
            videos[f"Real (left) and sampled from its caption (right): {title}"] = [
                pair for n in names for pair in ((chosen[n][0], f"{n}: {captions[n]}"), (made[n], "sampled"))
            ]
            videos[f"Real (left) and reconstructed (right): {title}"] = [
                pair for n in names for pair in ((clips[n][0], n), (again[n], "reconstructed"))
            ]
    target = Path(out) if out else workspace.root / "report.html"
    build_page(result, metrics, videos, run).save(target)
    target.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder that vdit train filled")
    parser.add_argument("--data", help="folder of clips; default: the run's own")
    parser.add_argument("--out", help="the page; default: RUN/report.html")
    parser.add_argument("--frames", type=int, default=17, help="of each clip to reconstruct")
    parser.add_argument("--rows", type=int, default=200, help="packed rows to measure")
    parser.add_argument(
        "--samples", type=int, default=6, help="seen clips to show; left-out ones are all shown; 0 shows no videos"
    )
    options = vars(parser.parse_args(arguments))
    result = report(options.pop("run"), **options)
    for key, value in (result["mean"] | {"useful tokens": result["token_use"]["tokens"]}).items():
        print(f"{key}: {value:.4g}")


if __name__ == "__main__":
    try:
        main()
    except VditError as error:
        print(f"clips_report: {error}", file=sys.stderr)
        sys.exit(2)
