"""The quickstart's page: what was made, how good it is, how it was made, how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from vdit.eval.page import Page
from vdit.experiment.experiment import Experiment
from vdit.quickstart.score import PARTS, Measured, Samples
from vdit.train.logging import read_json_lines
from vdit.train.progress import clock_face
from vdit.train.workspace import Workspace

HERO = 12  # samples shown large at the top: the first ones, not the best ones


def write_report(
    path: Path, measured: Measured, samples: Samples, *, space: Workspace, experiment: Experiment,
    figures: Mapping[str, float], seconds: Mapping[str, float], made: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes the page to `path`.

    Args:
        made: how the run was made, name -> text: the command, the date, versions, hardware.
    """
    fps = experiment.sample.fps
    count, shown = len(samples.wanted), min(HERO, len(samples.wanted))
    total = clock_face(sum(seconds.values()))
    page = Page("vdit quickstart", f"A text-to-video model trained from scratch in {total} minutes.")
    page.figures({f"right {part}": f"{measured.shares[part]:.0%}" for part in PARTS}
                 | {"all three right": f"{measured.shares['all']:.0%}", "VAE": f"{measured.psnr:.1f} dB",
                    "sharpness of edges": f"{measured.sharpness:.0%}"})
    page.commands(_commands(space, samples, experiment), title="Next steps")
    page.text(
        "# Samples of prompts it never saw\n\n"
        f"The first {shown} of {count} prompts, not the best: left the sample, right a real video of the same prompt. "
        "No video of these combinations of colour, shape and direction was ever shown in training. **ok** means that "
        "a detector finds all three in the sample."
    )
    page.compare(_pairs(samples, range(shown)), fps, columns=4)
    page.table(("videos", *PARTS, "all"), _share_rows(measured), title="Share of videos with the right")
    page.text(
        "The real videos went through the VAE and back: that is the most that the diffusion transformer can reach. "
        "Against shuffled prompts the same samples must fall to chance, or the measure would be worth nothing."
    )
    page.table(("what", "value"), made.items(), title="How it was made")
    page.table(("step", "min:s"), [*((name, clock_face(spent)) for name, spent in seconds.items()), ("in all", total)])
    page.table(("figure", "value"), figures.items(), title="Sizes and speeds")
    _curves(page, space)
    page.compare(_reconstructions(samples), fps, title="The VAE: a real video and its reconstruction", columns=4)
    if count > shown:
        page.compare(_pairs(samples, range(shown, count)), fps, title=f"The other {count - shown} prompts", columns=4)
    page.save(path)


def _pairs(samples: Samples, indices: range) -> list[tuple]:
    return [
        ({"sample": samples.videos[i], "real": samples.rendered[i]}, _caption(samples, i), _badge(samples, i))
        for i in indices
    ]


def _caption(samples: Samples, i: int) -> str:
    wrong = [part for part, right in zip(PARTS, samples.right[i]) if not right]
    return samples.wanted[i].prompt + (f" (wrong: {', '.join(wrong)})" if wrong else "")


def _reconstructions(samples: Samples, count: int = 4) -> list[tuple]:
    pairs = zip(samples.rendered[:count], samples.reconstructed[:count], samples.wanted)
    return [({"real": real, "reconstruction": again}, wanted.prompt) for real, again, wanted in pairs]


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
    root, prompt, sample = shlex.quote(str(space.root)), samples.wanted[0].prompt, experiment.sample
    few_words = " ".join(samples.wanted[0][:3])
    animated = f"vdit animate {root} FIRST.png \"{prompt}\"\nvdit extend {root} sample.mp4 \"{prompt}\" --after 8"
    return [
        f'vdit sample {root} "{prompt}" --out sample.mp4',
        f'vdit sample {root} "{few_words}" --expand --out expanded.mp4',
        *([animated] if experiment.canvases.gives else []),
        "vdit train --data FOLDER_OF_VIDEOS --workdir runs/mine",
        "vdit train clips --workdir runs/clips",
        f'''import vdit
generator = vdit.load({str(space.root)!r})
videos = generator(["{prompt}"], frames={sample.frames}, size={tuple(sample.size)}, seed=1)
vdit.write_video("sample.mp4", videos[0], fps={sample.fps:g})
latents = generator.vae.encode(videos)
again = generator.vae.decode(latents)''',
    ]
