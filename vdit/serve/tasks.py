"""The work of a job: the same functions of vdit.generate as the commands call (`vdit extend`, ...), so that the same
seed gives the same video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.generate import editing, sliding
from vdit.generate.blend import Blend, keep_reference
from vdit.generate.generator import Generator, frames_of, grouping_of
from vdit.generate.images import Fit, as_bytes, read_image
from vdit.generate.inputs import VideoInput, open_input
from vdit.generate.known import Frame, edge_levels, grown, nearest_shown
from vdit.generate.known import inpaint as inpaint_reference
from vdit.generate.masks import BLACK, mask_frames
from vdit.sampling.sliding import PromptSchedule
from vdit.serve.planning import STRENGTH, Given, Plan, corner, files_in_order
from vdit.serve.schema import VideoRequest
from vdit.video.read import iter_frames

BLEND = 0.8  # strength of a connection that blends


def pieces(
    plan: Plan, request: VideoRequest, generator: Generator, given: Mapping[str, Given], *, seed: int, prompt: str
) -> Iterator[np.ndarray]:
    """The work of a job: float32 [1 t h w 3] in [-1, 1], some frames at a time.

    Args:
        plan: of the request.
        request: as it came.
        generator: watched, so that the job can be stopped.
        given: the files that the request names, by id.
        seed: of this video.
        prompt: expanded, if that was asked for.
    """
    run = sliding.Run.of(generator, prompt, window=plan.window, seed=seed, **plan.sampling)
    files = [given[id] for id in files_in_order(request)]
    fitted = plan.size if plan.inner is None else plan.inner
    videos = [] if plan.task in ("animate", "canvas") else [_opened(file, fitted, plan) for file in files]
    match plan.task:
        case "text":
            method = {name: value for name, value in plan.sampling.items()}
            made = generator([prompt], frames=plan.frames, size=plan.size, seed=seed, **method)
            return iter([np.asarray(made)])
        case "animate":
            images = [_picture(file) for file in files]
            return sliding.animate(run, images, times=plan.times, frames=plan.frames, size=plan.size)
        case "extend":
            sides = {"backward": ("before",), "forward": ("after",), "both": ("before", "after")}[request.direction]
            return sliding.extend(run, videos[0], **dict.fromkeys(sides, plan.amount))
        case "loop":
            passage = plan.amount if videos else run.passage_frames("passage", None)
            first = videos[0] if videos else sliding.sample(run, frames=plan.amount, size=plan.size)
            return sliding.loop(run, first, passage=passage)
        case "connect":
            strength = (BLEND if request.strength is None else request.strength) if request.blend else None
            return sliding.connect(run, *videos, frames=plan.amount, blend=strength)
        case "edit":
            part = None if request.mask is None else _part(given[request.mask], videos[0])
            level = STRENGTH if request.strength is None else request.strength
            return editing.edit(run, videos[0], editing.Edit(levels=(level,), part=part))
        case "inpaint":
            part = _part(given[request.mask], videos[0], edge=editing.EDGE)
            return editing.edit(run, videos[0], editing.Edit(part=part))
        case "outpaint":
            stride = generator.experiment.vae.spatial_stride
            placed = Frame.around(videos[0].size, plan.size, corner(request), stride)
            framed = editing.PlacedFrames(video=videos[0], frame=placed)
            return editing.edit(run, framed, editing.Edit(part=framed.part(edge=editing.EDGE)))
        case "rollout":
            script = [(0.0, prompt), *sorted((change.seconds, change.prompt) for change in request.prompts)]
            asked = sliding.Rollout(
                prompts=PromptSchedule.of(script), frames=plan.frames, fps=plan.fps, size=None if videos else plan.size
            )
            return sliding.rollout(run, asked, videos[0] if videos else None)
        case "canvas":
            return iter([_filled(run, plan, request, given)])
    raise ConfigError(f"task={plan.task!r} is unknown")


def _opened(file: Given, size: tuple[int, int], plan: Plan) -> VideoInput:
    most = {"max_frames": plan.amount} if plan.task in ("edit", "inpaint") else {}
    return open_input(file.path, size=size, fps=plan.fps, **most)


def _picture(file: Given) -> np.ndarray:
    """uint8 [h w 3], the image, or the first frame of a video."""
    if file.kind == "image":
        return read_image(file.path)
    return as_bytes(next(iter(open_input(file.path, size=file.size)))[0, 0])[0]


def _part(mask: Given, video: VideoInput, **more) -> editing.Part:
    masks = mask_frames(mask.path, video)
    return editing.Part(masks=masks.begin(), whole=masks.whole, **more)


def _filled(run: sliding.Run, plan: Plan, request: VideoRequest, given: Mapping[str, Given]) -> np.ndarray:
    """A timeline canvas, float32 [1 t h w 3]: what was placed stays bit for bit, the rest is made.

    An image is one frame. For the model it stands still for as many frames as are made at once, as in an animation.
    """
    video, known, told = compose(plan, request, given, run.grouping.index(plan.frames))
    mask = ~told
    if not mask.any():
        raise ShapeError("canvas: everything is known, nothing is to be made: leave something open")
    if mask.all():
        raise ShapeError("canvas: nothing of what is placed lies in the frame: move it into the frame")
    if plan.frames > run.window or (known == told).all():  # what `vdit inpaint` does with files_of_canvas
        asked = editing.Edit(part=editing.Part.of_array(~known, edge=editing.EDGE))
        return sliding.joined(*editing.edit(run, sliding.ArrayFrames(video), asked))
    near, vae = nearest_shown(mask), run.generator.experiment.vae
    level = edge_levels(
        grown(mask, 0), edge=editing.EDGE, stride=vae.temporal_stride, side=vae.spatial_stride
    )
    reference = inpaint_reference(video[:, near], mask[near], level)
    made = run.generator(
        run.prompts, given=reference, frames=plan.frames, seed=run.next_seed(), **run.sampling
    )
    return keep_reference(np.asarray(made)[0], video[0], known, Blend(joins=run.joins))[None]


def _painted(mask: Given) -> np.ndarray:
    """bool [1 h w] of an image, [t h w] of a video: where something is made although a file lies there."""
    if mask.kind == "image":
        frames = read_image(mask.path, background=BLACK)[None]
    else:
        frames = np.stack([frame for _, frame in iter_frames(mask.path, background=BLACK)])
    return frames.mean(-1) >= 127.5


def files_of_canvas(
    plan: Plan, request: VideoRequest, generator: Generator, given: Mapping[str, Given]
) -> tuple[np.ndarray, np.ndarray]:
    """What `vdit inpaint` takes in the place of a timeline canvas.

    Returns:
        uint8 [t h w 3], what is known, black elsewhere; and the mask uint8 [t h w 3], white where something is made.
    """
    video, known, _ = compose(plan, request, given, grouping_of(generator).index(plan.frames))
    shown = np.where(known[..., None], as_bytes(video[0]), np.uint8(0))
    return shown, np.repeat(np.where(known, np.uint8(0), np.uint8(255))[..., None], 3, axis=-1)


def compose(
    plan: Plan, request: VideoRequest, given: Mapping[str, Given], group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of a timeline canvas.

    Args:
        plan: its size, frames and rate.
        request: its canvas says what lies where, later ones cover earlier ones; its mask, what of that is made again.
        given: the files.
        group: int [t], which frames are made at once.

    Returns:
        The video float32 [1 t h w 3], where it is known bool [t h w], and where the model is told so bool [t h w].
    """
    height, width = plan.size
    video = np.zeros((1, plan.frames, height, width, 3), np.float32)
    known, told = (np.zeros((plan.frames, height, width), bool) for _ in range(2))
    for one in request.canvas:
        file = given[one.file]
        box = (one.height or height, one.width or width)
        top, left = max(0, one.y), max(0, one.x)
        bottom, right = min(height, one.y + box[0]), min(width, one.x + box[1])
        if top >= bottom or left >= right:
            continue
        inside = (slice(top, bottom), slice(left, right))
        of_box = (slice(top - one.y, bottom - one.y), slice(left - one.x, right - one.x))
        if file.kind == "image":
            image = read_image(file.path)
            frame = frames_of(Fit(own=image.shape[:2], size=box).image(image)[None])[0, 0]
            for k in np.flatnonzero(group == group[one.at_frame]):
                if k == one.at_frame or not known[(k, *inside)].any():
                    video[(0, k, *inside)], told[(k, *inside)] = frame[of_box], True
            known[(one.at_frame, *inside)] = True
            continue
        at = one.at_frame
        for piece in open_input(file.path, size=box, fps=plan.fps):
            count = min(piece.shape[1], plan.frames - at)
            if count <= 0:
                break
            where = (slice(at, at + count), *inside)
            video[(0, *where)] = piece[(0, slice(0, count), *of_box)]
            known[where] = told[where] = True
            at += count
    if request.mask is not None:
        painted = _painted(given[request.mask])
        known, told = known & ~painted, told & ~painted
    return video, known, told
