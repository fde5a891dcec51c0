"""The quickstart's page: what was made, how good it is, how it was made, how to go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vdit.eval.page import Page
from vdit.quickstart.score import PARTS, Measured, Samples
from vdit.train.experiment import Experiment
from vdit.train.metrics import read_json_lines
from vdit.train.progress import clock_face
from vdit.train.workspace import Workspace

HERO = 12  # samples shown large at the top: the first ones, not the best ones


def write_report(
    path: Path, measured: Measured, samples: Samples, *, space: Workspace, experiment: Experiment,
    figures: Mapping[str, float], seconds: Mapping[str, float],
) -> None:  # fmt: skip
    """Writes the page to `path`."""
    fps = experiment.sample.fps
    count = len(samples.wanted)
    total = clock_face(sum(seconds.values()))
    page = Page("vdit quickstart", f"A text-to-video model trained from scratch in {total} minutes.")
    page.figures({f"right {part}": f"{measured.shares[part]:.0%}" for part in PARTS}
                 | {"all three right": f"{measured.shares['all']:.0%}", "VAE": f"{measured.psnr:.1f} dB"})
    page.videos(_samples(samples, range(min(HERO, count))), fps, title="Samples of prompts it never saw", columns=6)
    page.text(
        f"The first {min(HERO, count)} of {count} prompts, not the best. No video of these combinations of colour, "
        "shape and direction was ever shown in training. **ok** means that an exact detector finds all three."
    )
    page.table(("videos", *PARTS, "all"), _share_rows(measured), title="Share of videos with the right")
    page.text(
        "The real videos went through the VAE and back: that is the most that the diffusion transformer can reach. "
        "Against shuffled prompts the same samples must fall to chance, or the measure would be worth nothing."
    )
    _curves(page, space)
    page.table(("figure", "value"), figures.items(), title="Sizes and speeds")
    page.table(("step", "min:s"), [(name, clock_face(spent)) for name, spent in seconds.items()], title="Time")
    page.commands(_commands(space, samples, experiment), title="Go on")
    page.videos(_pairs(samples), fps, title=f"All {count}: the sample, then a real video of the same prompt", columns=4)
    page.videos(_reconstructions(samples), fps, title="The VAE: a real video, then its reconstruction", columns=4)
    page.save(path)


def _samples(samples: Samples, indices: range) -> list[tuple]:
    return [(samples.videos[i], samples.wanted[i].prompt, _badge(samples, i)) for i in indices]


def _pairs(samples: Samples) -> list[tuple]:
    cards = []
    for i, wanted in enumerate(samples.wanted):
        wrong = [part for part, right in zip(PARTS, samples.right[i]) if not right]
        note = f" (wrong: {', '.join(wrong)})" if wrong else ""
        cards += [(samples.videos[i], wanted.prompt + note, _badge(samples, i)), (samples.rendered[i], "real")]
    return cards


def _reconstructions(samples: Samples, count: int = 4) -> list[tuple]:
    pairs = zip(samples.rendered[:count], samples.reconstructed[:count])
    return [card for real, again in pairs for card in ((real, "real"), (again, "reconstruction"))]


def _badge(samples: Samples, i: int) -> str:
    return "ok" if samples.right[i].all() else "wrong"


def _share_rows(measured: Measured) -> list[tuple]:
    rows = {
        "samples": measured.shares,
        "real videos through the VAE": measured.rendered,
        "samples, prompts shuffled": measured.shuffled,
        "chance": measured.chance,
    }
    return [(name, *(f"{shares[part]:.1%}" for part in (*PARTS, "all"))) for name, shares in rows.items()]


def _curves(page: Page, space: Workspace) -> None:
    vae, dit = (read_json_lines(space.logs / f"{stage}.jsonl") for stage in ("vae", "dit"))
    page.curves({"loss": _curve(vae, "loss")}, title="VAE: loss", log_y=True)
    page.curves({"PSNR": _curve(vae, "psnr")}, title="VAE: PSNR of training clips, dB")
    page.curves({"loss": _curve(dit, "loss")}, title="Diffusion transformer: loss")


def _curve(lines: list[dict], key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def _commands(space: Workspace, samples: Samples, experiment: Experiment) -> list[str]:
    root, prompt, sample = space.root, samples.wanted[0].prompt, experiment.sample
    return [
        f'vdit sample {root} "{prompt}" --out sample.mp4',
        "vdit train --data FOLDER_OF_VIDEOS --workdir runs/mine",
        "vdit train experiments/clips.py --workdir runs/clips",
        f'''import vdit
generator = vdit.load("{root}")
videos = generator(["{prompt}"], frames={sample.frames}, size={tuple(sample.size)}, seed=1)
vdit.write_video("sample.mp4", videos[0], fps={sample.fps:g})
latents = generator.vae.encode(videos)
again = generator.vae.decode(latents)''',
    ]
