"""Measures a model of experiments/worlds_demo.py on every canvas, against the exact truth of scenes it never saw.

`joins` measures any run on the world "moving", vdit quickstart's too. Each function takes a generator and a number of
scenes, and gives a Measure: a table, and videos to look at. Videos have the experiment's `sample.frames`: what is given
and what is made add up to them. Errors of position are distances of the object's centre from the truth, in shares of
the frame's short side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

import vdit
from vdit.eval.detectors import Detection, count_objects, detect, is_permanent, position_error, track
from vdit.eval.metrics import psnr, seam
from vdit.generate.evaluation import held_out_scenes
from vdit.generate.generator import Generator
from vdit.sampling.config import replaces_known
from vdit.worlds import COLOURS, WorldSample

SEED = 7  # of the masks
SHARE = ", share"
COLOUR = "model, joins=colour"
LINEAR, LAST, TRUTH = "linear blend", "last frame", "truth through the VAE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One task's figures. rows: a dict of the same keys for the model and for each baseline.

    cards: (video, caption) to show, in rows of `columns`.
    """

    name: str
    what: str
    rows: list[dict[str, float | str]]
    cards: list[tuple[np.ndarray, str]]
    columns: int = 3

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows for print: figures between 0 and 1 that are shares as percentages."""
        headers = list(dict.fromkeys(key for row in self.rows for key in row))
        return headers, [[_cell(key, row.get(key)) for key in headers] for row in self.rows]


def scenes(generator: Generator, world: str, count: int) -> list[WorldSample]:
    """Scenes of one of the worlds that the model was trained on, under its options, from a seed of its own."""
    return held_out_scenes(generator, world, count, frames=generator.experiment.sample.frames)


@dataclasses.dataclass(frozen=True)
class Parts:
    """How many frames of a video are `given` and `made`; between two ends, how many are `head` and `tail`."""

    given: int
    made: int
    head: int
    tail: int

    @classmethod
    def of(cls, generator: Generator) -> Parts:
        """Nearly half is made: whole steps of four frames."""
        frames = generator.experiment.sample.frames
        made = (frames - 1) // 8 * 4
        given = frames - made
        return cls(given, made, given // 2 + 1, given - given // 2 - 1)


def animate(generator: Generator, count: int) -> Measure:
    """1. The first frame is kept; the right object and motion come after it."""
    found: dict[str, list[dict]] = {"model": [], LAST: [], TRUTH: []}
    cards = []
    for i, scene in enumerate(scenes(generator, "moving", count)):
        first = scene.video[0]
        frames = len(scene.video)
        video = vdit.animate(generator, scene.caption, first, frames=frames, seed=i)[0]
        plain = np.asarray(generator(scene.caption, image=first, frames=1, size=first.shape[:2]))[0]
        made = {"model": video, LAST: np.repeat(first[None], frames, axis=0), TRUTH: through(generator, scene.video)}
        for name, clip in made.items():
            found[name].append(_as_wanted(detect(clip), scene) | {"first frame kept": bool(
                (as_bytes(clip)[0] == first).all())})  # fmt: skip
        found["model"][-1]["first frame decoded, dB"] = psnr(as_bytes(plain)[0], first)
        cards += [(first[None], "given"), (video, scene.caption), (scene.video, "truth")]
    what = "A frame and a prompt; all frames but the first are made."
    return Measure(name="animate", what=what, rows=_means(found), cards=cards)


def extend(generator: Generator, count: int) -> Measure:
    """2. How far the object is from where it must be, over time, forward and backward."""
    parts = Parts.of(generator)
    given, made = parts.given, parts.made
    rows, cards = [], []
    for way in ("forward", "backward"):
        errors: dict[str, list[np.ndarray]] = {"model": [], LAST: []}
        joins = []
        for i, scene in enumerate(scenes(generator, "moving", count)):
            truth = _centres(scene)
            if way == "forward":
                video = vdit.extend(generator, scene.caption, scene.video[:given], after=made, seed=i)[0]
                copied, new = np.repeat(scene.video[given - 1 : given], made, axis=0), slice(given, None)
            else:
                video = vdit.extend(generator, scene.caption, scene.video[made:], before=made, seed=i)[0]
                copied, new = np.repeat(scene.video[made : made + 1], made, axis=0), slice(0, made)
            order = slice(None) if way == "forward" else slice(None, None, -1)
            for name, clip in (("model", video[new]), (LAST, copied)):
                errors[name].append(_errors(clip, truth[new])[order])
            joins.append(_joins(as_bytes(video), (given - 1 if way == "forward" else made - 1,)))
            if i < 4:
                cards += [(video, f"{way}: {scene.caption}"), (scene.video, "truth")]
        for name, curves in errors.items():
            mean = np.nanmean(curves, axis=0)
            row = {"way": way, "by": name} | {f"error after {n} frames": mean[n - 1] for n in range(4, made + 1, 4)}
            rows.append(row | {"in sight" + SHARE: float(np.isfinite(curves).mean())})
        rows[-2]["step at the join / median"] = float(np.median(joins))
    what = f"{given} of {given + made} frames are given."
    return Measure(name="extend", what=what, rows=rows, cards=cards, columns=4)


def loop(generator: Generator, count: int) -> Measure:
    """3. The step from the last frame to the first is no larger than those inside."""
    rows: dict[str, list[dict]] = {"model": [], COLOUR: [], "cut (no passage)": [], LINEAR: []}
    cards, parts = [], Parts.of(generator)
    for i, scene in enumerate(scenes(generator, "bounce", count)):
        given, passage = scene.video[: parts.given], parts.made
        video = vdit.loop(generator, scene.caption, given, passage=passage, seed=i)[0]
        blend = np.concatenate([given, _blend(given[-1], given[0], passage)])
        plain = vdit.loop(generator, scene.caption, given, passage=passage, seed=i, joins="colour")[0]
        made = {"model": as_bytes(video), COLOUR: as_bytes(plain), "cut (no passage)": given, LINEAR: blend}
        for name, clip in made.items():
            found = seam(clip)
            rows[name].append({
                "seam / median step, pixels": found.pixels / found.inside_pixels,
                "seam / median step, flow": found.flow / max(found.inside_flow, 1e-6),
                "no larger, pixels": found.pixels <= found.inside_pixels,
                "no larger, flow": found.flow <= found.inside_flow,
                "largest of both joins / median, pixels": _joins(clip, (parts.given - 1, -1)),
            })  # fmt: skip
        cards += [(np.tile(video, (2, 1, 1, 1)), f"twice: {scene.caption}"), (np.tile(given, (3, 1, 1, 1)), "cut")]
    what = f"{parts.given} frames and a passage of {parts.made} back to the first. {_blending(generator)}"
    return Measure(name="loop", what=what, rows=_means(rows, np.median), cards=cards[:16], columns=4)


def connect(generator: Generator, count: int) -> Measure:
    """4. Both ends are kept; the object is where it must be in the middle; nothing jumps."""
    rows: dict[str, list[dict]] = {"model": [], LINEAR: [], LAST: []}
    cards, parts = [], Parts.of(generator)
    between = slice(parts.head, parts.head + parts.made)
    middle = slice(parts.head + parts.made // 2 - 1, parts.head + parts.made // 2 + 1)
    for i, scene in enumerate(scenes(generator, "moving", count)):
        head, tail, truth = scene.video[: between.start], scene.video[between.stop :], _centres(scene)
        video = as_bytes(vdit.connect(generator, scene.caption, head, tail, frames=parts.made, seed=i)[0])
        made = {
            "model": video,
            LINEAR: np.concatenate([head, _blend(head[-1], tail[0], parts.made), tail]),
            LAST: np.concatenate([head, np.repeat(head[-1:], parts.made, axis=0), tail]),
        }
        for name, clip in made.items():
            rows[name].append({
                "ends kept": bool(
                    (clip[: between.start] == head).all() and (clip[between.stop :] == tail).all()
                ),
                "error in the middle": float(_errors(clip[middle], truth[middle]).mean()),
                "mean error": float(np.nanmean(_errors(clip[between], truth[between]))),
                "frames with one object" + SHARE: float(
                    np.mean([count_objects(frame) == 1 for frame in clip[between]])
                ),
                "PSNR, dB": psnr(clip[between], scene.video[between]),
                "step at the joins / median": _joins(clip, (between.start - 1, between.stop - 1)),
            })  # fmt: skip
        cards += [(video, scene.caption), (made[LINEAR], LINEAR), (scene.video, "truth")]
    what = f"{parts.head} and {parts.tail} frames are given, {parts.made} between them made."
    return Measure(name="connect", what=what, rows=_means(rows), cards=cards[:18], columns=3)


def edit(generator: Generator, count: int) -> Measure:
    """5. The prompt's colour changes; place and motion stay."""
    ways: dict[str, dict] = {
        "SDEdit, 0.6": {"strength": 0.6},
        "SDEdit, 0.8": {"strength": 0.8},
        "inversion, 0.6": {"strength": 0.6, "invert": True},
        "inversion, 1": {"strength": 1.0, "invert": True},
    }
    rows: dict[str, list[dict]] = {name: [] for name in (*ways, "source", "sampled again")}
    cards = []
    for i, scene in enumerate(scenes(generator, "moving", count)):
        colour, shape, direction = scene.meta["combo"]
        new = list(COLOURS)[(list(COLOURS).index(colour) + 3) % len(COLOURS)]
        article = {True: "an", False: "a"}
        old_name = f"{article[colour[0] in 'aeiou']} {colour}"
        prompt = scene.caption.replace(old_name, f"{article[new[0] in 'aeiou']} {new}")
        made = {}
        for name, options in ways.items():
            source = scene.caption if options.get("invert") else None
            made[name] = vdit.edit(generator, prompt, scene.video, source=source, seed=i, **options)[0]
        again = generator(prompt, frames=len(scene.video), seed=i)
        made |= {"source": scene.video, "sampled again": np.asarray(again)[0]}
        for name, clip in made.items():
            seen = detect(clip)
            rows[name].append({
                "colour as asked": seen.colour == new,
                "shape kept": seen.shape == shape,
                "direction kept": seen.direction == direction,
                "position error": float(np.nanmean(_errors(clip, _centres(scene)))),
                "found": seen.found,
            })  # fmt: skip
        cards += [(scene.video, scene.caption), *((made[name], f"{name}: {new}") for name in ways)]
    return Measure(name="edit", what="Another colour is asked for.", rows=_means(rows), cards=cards[:25], columns=5)


def inpaint(generator: Generator, count: int) -> Measure:
    """6. The known region is untouched; the filled one is near the truth."""
    rows: dict[str, list[dict]] = {"model": [], "nearest known pixels": [], LAST: []}
    cards = []
    random = np.random.default_rng(SEED)
    for i, scene in enumerate(scenes(generator, "moving", count)):
        mask = _moving_box(random, scene.video.shape[:3])
        video = as_bytes(vdit.inpaint(generator, scene.caption, scene.video, mask, seed=i)[0])
        holed = np.where(mask[..., None], np.uint8(255), scene.video)
        made = {
            "model": video,
            "nearest known pixels": _nearest(scene.video, mask),
            LAST: _last_known(scene.video, mask),
        }
        for name, clip in made.items():
            rows[name].append({
                "known pixels kept": bool((clip == scene.video)[~mask].all()),
                "PSNR inside, dB": _psnr_of(clip, scene.video, mask),
                "position error": float(np.nanmean(_errors(clip, _centres(scene)))),
            })  # fmt: skip
        cards += [(holed, "given"), (video, scene.caption), (scene.video, "truth")]
    return Measure(name="inpaint", what="A box that moves is to be filled.", rows=_means(rows), cards=cards[:18])


def permanence(generator: Generator, count: int) -> Measure:
    """9. Behind the wall and out again: the right colour at the right place."""
    rows: dict[str, list[dict]] = {"model": [], LAST: [], TRUTH: []}
    cards = []
    for i, scene in enumerate(scenes(generator, "occluder", count)):
        hidden = scene.meta["hidden"][0] * scene.fps  # in frames: wholly behind the wall from here on
        given = 1 + int(hidden) // 4 * 4
        head, after = scene.video[:given], len(scene.video) - given
        video = vdit.extend(generator, scene.caption, head, after=after, seed=i)[0]
        made = {"model": as_bytes(video), LAST: np.concatenate([head, np.repeat(head[-1:], after, axis=0)]),
                TRUTH: through(generator, scene.video)}  # fmt: skip
        for name, clip in made.items():
            seen = track(clip[-4:])
            right = [colour == scene.meta["combo"][0] for colour in seen.colour]
            error = _errors(clip[-4:], _centres(scene)[-4:])
            near = np.nan_to_num(error, nan=np.inf) < 0.1
            rows[name].append({
                "out again": bool(np.isfinite(error).mean() > 0.5),
                "right colour": bool(np.mean(right) > 0.5),
                "right place": bool(near.mean() > 0.5),
                "both": bool(np.mean(right) > 0.5 and near.mean() > 0.5),
                "hidden, then out again": _is_permanent(clip, scene),
                "position error": float(np.nanmean(error)) if np.isfinite(error).any() else np.nan,
            })  # fmt: skip
        cards += [(video, scene.caption), (scene.video, "truth")]
    what = "What is given ends when the shape is hidden; judged by the last four frames (place: within 10%)."
    return Measure(name="permanence", what=what, rows=_means(rows), cards=cards[:16], columns=4)


def _is_permanent(clip: np.ndarray, scene: WorldSample) -> bool:
    """Over the whole clip: out of sight behind the wall, then in sight as it was, to 10% of the short side."""
    thing = scene.meta["objects"][0]
    places = np.asarray(thing["position"]) * scene.meta["scale"]
    near = 0.1 * min(clip.shape[1:3])
    return is_permanent(track(clip), places, thing["visibility"], thing["colour"], within=near)


def joins(generator: Generator, count: int) -> Measure:
    """10. How far the picture jumps where given and made frames meet, and how near what is made is to the truth.

    A model that was not trained on canvases is sampled with steps repeated; beside it stands replacement alone, by the
    experiment's own sampler. A loop has no truth: the shape of this world never turns around.
    """
    sample, parts = generator.experiment.sample, Parts.of(generator)
    frames, part, known, sides = sample.frames, parts.made, parts.given, (parts.head, parts.tail)
    ways: dict[str, dict] = {"model": {}, COLOUR: {"joins": "colour"}}
    if replaces_known(generator.experiment):
        ways["replacement alone"] = {"sampler": sample.sampler}
    rows: dict[str, list[dict]] = {name: [] for name in (*ways, TRUTH)}
    cards = []
    for i, scene in enumerate(scenes(generator, "moving", count)):
        video, text = scene.video, scene.caption
        ends = video[: sides[0]], video[frames - sides[1] :]
        for name, options in ways.items():
            more = {"seed": i} | options
            made = {
                "animate": vdit.animate(generator, text, video[0], frames=frames, **more)[0],
                "extend": vdit.extend(generator, text, video[:known], after=part, **more)[0],
                "connect": vdit.connect(generator, text, *ends, frames=part, **more)[0],
                "loop": vdit.loop(generator, text, video[:known], passage=part, **more)[0],
            }
            rows[name].append({
                "animate: join": _joins(made["animate"], (0,)),
                "extend: join": _joins(made["extend"], (known - 1,)),
                "extend: PSNR, dB": psnr(as_bytes(made["extend"])[known:], video[known:]),
                "connect: joins": _joins(made["connect"], (sides[0] - 1, sides[0] + part - 1)),
                "connect: PSNR, dB": psnr(as_bytes(made["connect"])[sides[0] :][:part], video[sides[0] :][:part]),
                "loop: join": _joins(made["loop"], (known - 1,)),
                "loop: seam": _joins(made["loop"], (-1,)),
            })  # fmt: skip
            cards += [(clip, f"{task}, {name}: {text}") for task, clip in made.items()]
        mixed = np.concatenate([video[:known], through(generator, video)[known:]])
        rows[TRUTH].append({"extend: join": _joins(mixed, (known - 1,)),
                            "extend: PSNR, dB": psnr(mixed[known:], video[known:])})  # fmt: skip
    what = (
        f"{part} of {frames} frames are made (animate: all but one). Steps at joins, over the median step; medians. "
        f"{_blending(generator)}"
    )
    return Measure(name="joins", what=what, rows=_means(rows, np.median), cards=cards[:32], columns=4)


MEASURES: dict[str, Callable[[Generator, int], Measure]] = {
    "animate": animate, "extend": extend, "loop": loop, "connect": connect, "edit": edit, "inpaint": inpaint,
    "permanence": permanence, "joins": joins,
}  # fmt: skip


def _blending(generator: Generator) -> str:
    """How the figures of "model" and of COLOUR were made."""
    usual = generator.experiment.sample.joins
    return (
        f'Row "model": joins="{usual}" (motion: frames beside a join are mixed with the given frame, moved along). '
        f'Row "{COLOUR}": without that, the same samples.'
    )


def through(generator: Generator, video: np.ndarray) -> np.ndarray:
    """A video uint8 [t h w 3] through the VAE and back."""
    return as_bytes(np.asarray(generator.vae.decode(generator.vae.encode(video[None])))[0])


def as_bytes(video: np.ndarray) -> np.ndarray:
    """float in [-1, 1] -> uint8; uint8 as it is."""
    video = np.asarray(video)
    return video if video.dtype == np.uint8 else np.round((video + 1) * 127.5).astype(np.uint8)


def _as_wanted(seen: Detection, scene: WorldSample) -> dict[str, bool]:
    colour, shape, direction = scene.meta["combo"]
    right = {"colour": seen.colour == colour, "shape": seen.shape == shape, "direction": seen.direction == direction}
    return right | {"all three": all(right.values())}


def _centres(scene: WorldSample) -> np.ndarray:
    """Where the object is: [t 2] in pixels."""
    return scene.meta["objects"][0]["position"] * scene.meta["scale"]


def _errors(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[t], in shares of the short side; NaN where nothing is in sight."""
    return position_error(track(video).centres, truth) / min(video.shape[1:3])


def _blend(first: np.ndarray, last: np.ndarray, count: int) -> np.ndarray:
    """uint8 [count h w 3] that fade from one frame to the other."""
    share = (np.arange(count) + 1)[:, None, None, None] / (count + 1)
    return as_bytes(((1 - share) * first + share * last) / 127.5 - 1)


def _joins(video: np.ndarray, joins: tuple[int, ...]) -> float:
    """The largest step out of these frames, over the median step of the video (mean absolute difference).

    The last frame steps to the first.
    """
    steps = np.abs(np.diff(as_bytes(video).astype(np.float32), axis=0, append=video[:1])).mean((1, 2, 3))
    return float(max(steps[join] for join in joins) / np.median(steps[:-1]))


def _moving_box(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """bool [t h w]: a box of half the frame's sides, from one place to another."""
    t, h, w = shape
    start, end = random.uniform(0, 0.5, (2, 2))
    at = start + (end - start) * np.linspace(0, 1, t)[:, None]
    y, x = np.arange(h) / h, np.arange(w) / w
    rows = (y >= at[:, :1]) & (y < at[:, :1] + 0.5)
    columns = (x >= at[:, 1:]) & (x < at[:, 1:] + 0.5)
    return rows[:, :, None] & columns[:, None, :]


def _nearest(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes filled with the nearest known pixel of the frame."""
    filled = video.copy()
    for frame, hole in zip(filled, mask):
        y, x = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
        frame[hole] = frame[y[hole], x[hole]]
    return filled


def _last_known(video: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes filled with what was last seen at each pixel; where nothing was yet, with what will be."""
    filled, known = video.copy(), np.logical_not(mask)
    for times in (range(1, len(video)), range(len(video) - 2, -1, -1)):
        for t in times:
            take = ~known[t] & known[t - times.step]
            filled[t][take] = filled[t - times.step][take]
            known[t] |= take
    return filled


def _psnr_of(video: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB over the pixels of the mask."""
    error = np.square(video[mask] / 255.0 - truth[mask] / 255.0).mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def _means(found: dict[str, list[dict]], mean: Callable = np.nanmean) -> list[dict[str, float | str]]:
    """A row for each: the mean of each figure, the share of each truth value (keys that end in SHARE)."""
    rows = []
    for name, each in found.items():
        row: dict[str, float | str] = {"by": name}
        for key in dict.fromkeys(key for one in each for key in one):
            values = [one[key] for one in each if key in one]
            truths = isinstance(values[0], bool | np.bool_)
            row[key + SHARE * truths] = float(np.mean(values)) if truths else float(mean(values))
        rows.append(row)
    return rows


def _cell(key: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.1%}" if key.endswith(SHARE) else f"{value:.3g}"
