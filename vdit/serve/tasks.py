"""What a request comes to: its lengths and sizes, checked against model and limits, and the canvases that make it.

`plan` looks at numbers only and is quick: whatever is wrong with a request is said when it comes. `pieces` is the work:
the same functions of vdit.generate as the commands call (`vdit extend`, ...), so the same seed gives the same video.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdit.data.patches import token_grid
from vdit.errors import ConfigError, ShapeError, VditError
from vdit.generate import editing, sliding
from vdit.generate.blend import Blend, keep_reference
from vdit.generate.generator import Generator, frames_of, grouping_of, usual_passage, window_of
from vdit.generate.images import Fit, as_bytes, choose_size, read_image
from vdit.generate.inputs import VideoInput, open_input
from vdit.generate.known import Frame, edge_levels, grown, nearest_shown, size_of_aspect
from vdit.generate.known import inpaint as inpaint_reference
from vdit.generate.masks import BLACK, mask_frames
from vdit.sampling.config import SamplingConfig
from vdit.sampling.packed import RowSize, packs
from vdit.sampling.sliding import PromptSchedule
from vdit.serve.schema import ApiError, Limits, Placed, VideoRequest
from vdit.video.read import iter_frames

FILES = {  # how many files a task takes
    "text": (0, 0), "animate": (1, 64), "extend": (1, 1), "loop": (0, 1), "connect": (2, 2), "edit": (1, 1),
    "inpaint": (1, 1), "outpaint": (1, 1), "rollout": (0, 1), "canvas": (0, 64),
}  # fmt: skip
STRENGTH = 0.6  # of an edit, as the command's
BLEND = 0.8
# Their numbers do not depend on what else is in the batch: they draw no noise on the way.
_ALONE = ("ddpm", "resample", "consistency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
    """An upload, or a result, that a job reads.

    Attributes:
        id: of it. path: a file of vdit's own making. kind: "image" or "video". size: (height, width).
        frames: of a video, at `fps`.
    """

    id: str
    path: Path
    kind: str
    size: tuple[int, int]
    frames: int = 1
    fps: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request comes to.

    Attributes:
        task: what is done. frames: of the result. made: of them, those that the model makes.
        size: (height, width) of the result. inner: of the inputs, where it is another. fps: of the result.
        amount: frames that were asked for, in the task's own sense: of the whole, of the new part, or of a passage.
        times: of the images of an animation. sampling: options of the sampler.
        window: frames of the longest canvas. note: what was rounded.
    """

    task: str
    frames: int
    made: int
    size: tuple[int, int]
    fps: float
    amount: int
    inner: tuple[int, int] | None = None
    times: tuple[int, ...] = ()
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    window: int | None = None
    note: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """Of what `dataclasses.asdict` made, through JSON."""
        pairs = {name: tuple(values[name]) for name in ("size", "times")}
        inner = None if values["inner"] is None else tuple(values["inner"])
        return cls(**{**values, **pairs, "inner": inner})


def plan(request: VideoRequest, generator: Generator, limits: Limits, given: Mapping[str, Given]) -> Plan:
    """What a request comes to, with the model's defaults for what it leaves open.

    Args:
        request: as it came.
        generator: the model; its weights need not be there.
        limits: what is too much.
        given: the uploads that the request names, by id.

    Raises:
        ApiError: 400 for what the model cannot make, 413 for what is above a limit.
    """
    try:
        return _checked(_Planner(request, generator, limits, given).plan(), request, generator, limits)
    except ApiError:
        raise
    except VditError as error:
        raise ApiError(str(error), param=_param(error), code="invalid_value") from None


def given_ids(request: VideoRequest) -> list[str]:
    """The uploads and results that a request names, each once."""
    ids = [request.input_reference, *request.files, *(placed.file for placed in request.canvas), request.mask]
    return list(dict.fromkeys(id for id in ids if id is not None))


def files_in_order(request: VideoRequest) -> list[str]:
    """The files that a task works on: the reference first."""
    return [*([] if request.input_reference is None else [request.input_reference]), *request.files]


def batch_key(plan: Plan, generator: Generator) -> tuple | None:
    """Jobs with equal keys are made by one call; None for a job that is made alone.

    Of one frames and size; or of any, where they go side by side into rows of tokens (vdit.sampling.packed).
    """
    if plan.task != "text" or generator.experiment.network.reference_channels:
        return None
    method = text_method(plan, generator)
    if type(method.sampler).__name__.lower() in _ALONE:
        return None
    if packs(generator.experiment.network, method, generator.mesh):
        size = row_size(generator)
        if size.rows([grid_of(plan, generator)]) is not None:
            return "packed", method
    return plan.frames, plan.size, method


def row_size(generator: Generator) -> RowSize:
    """Rows as the model was trained on: what its attention is quick at."""
    data = generator.experiment.data
    clips = min(data.max_clips_per_row, max(1, data.row_tokens // 32), 8)
    frames = min(data.max_frames_per_row, data.row_tokens)
    return RowSize(tokens=data.row_tokens, frames=frames, clips=clips, text=generator.experiment.text.max_length)


def grid_of(plan: Plan, generator: Generator) -> tuple[int, int, int]:
    """Tokens of a text-to-video job along t, h, w."""
    task = generator.task(text_method(plan, generator), plan.frames, plan.size)
    return token_grid((1, *task.latent_shape), generator.experiment.backbone.patch)


def text_method(plan: Plan, generator: Generator) -> SamplingConfig:
    """How a text-to-video job is sampled."""
    return generator.method(**{name: value for name, value in plan.sampling.items() if name != "negative"})


def _param(error: VditError) -> str | None:
    """The field that a message of the model's is about."""
    text = str(error)
    fields = (
        ("frames=", "num_frames"), ("height=", "size"), ("width=", "size"), ("size", "size"), ("sampler", "sampler"),
        ("steps", "num_inference_steps"), ("window", "window"), ("times", "canvas"), ("mask", "mask"),
        ("strength", "strength"), ("prompts", "prompts"),
    )  # fmt: skip
    return next((field for start, field in fields if text.startswith(start)), None)


class _Planner:
    def __init__(
        self, request: VideoRequest, generator: Generator, limits: Limits, given: Mapping[str, Given]
    ):
        self.request, self.generator, self.limits = request, generator, limits
        self.experiment, self.grouping = generator.experiment, grouping_of(generator)
        self.files = [given[id] for id in files_in_order(request)]
        self.placed = [given[placed.file] for placed in request.canvas]
        self.mask = None if request.mask is None else given[request.mask]
        self.fps = self.experiment.sample.fps if request.fps is None else float(request.fps)
        self.notes: list[str] = []

    def plan(self) -> Plan:
        task = self._task()
        least, most = FILES[task]
        if not least <= len(self.files) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise ApiError(f"task {task} takes {wanted} files, {len(self.files)} are given", param="files")
        for name, kind, tasks in (
            ("canvas", self.request.canvas, ("canvas", "animate", "outpaint")),
            ("mask", self.mask, ("edit", "inpaint", "canvas")), ("prompts", self.request.prompts, ("rollout",)),
            ("strength", self.request.strength, ("edit", "connect")), ("blend", self.request.blend, ("connect",)),
        ):  # fmt: skip
            if kind and task not in tasks:
                raise ApiError(f"{name} has no effect on task {task}: leave it out", param=name)
        if task in ("extend", "connect", "edit", "inpaint", "outpaint") and any(f.kind != "video" for f in self.files):
            raise ApiError(f"task {task} takes videos, and an image is given", param="files")
        made = getattr(self, f"_{task}")()
        window = None if self.request.window is None else window_of(self.generator, self.request.window)
        note = "; ".join(self.notes) or None
        return dataclasses.replace(made, sampling=self._sampling(), note=note, window=window)

    def _task(self) -> str:
        request = self.request
        if request.task is not None:
            return request.task
        if request.canvas:
            return "canvas"
        if not self.files:
            return "text"
        return "animate" if self.files[0].kind == "image" else "extend"

    def _sampling(self) -> dict[str, Any]:
        request = self.request
        asked = {
            "steps": request.num_inference_steps, "guidance": request.guidance_scale,
            "negative": request.negative_prompt or None, "sampler": request.sampler,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value is not None}

    def _amount(self, usual: int) -> int:
        """Frames that are asked for: num_frames, or seconds, or the usual."""
        request = self.request
        if request.num_frames is not None and request.seconds is not None:
            raise ApiError("num_frames and seconds: give one of them, the length", param="seconds")
        if request.num_frames is not None:
            return request.num_frames
        return usual if request.seconds is None else max(1, round(request.seconds * self.fps))

    def _size(self) -> tuple[int, int] | None:
        """(height, width) that is asked for, or None."""
        request = self.request
        if request.size is not None:
            found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", request.size, re.ASCII)
            if found is None:
                raise ApiError(f"size {request.size!r}: write WIDTHxHEIGHT, as in 96x64", param="size")
            if request.width is not None or request.height is not None:
                raise ApiError("size, and width and height: give one of them", param="size")
            size = int(found[2]), int(found[1])
        elif (request.width is None) != (request.height is None):
            raise ApiError("width and height belong together: give both", param="width")
        elif request.width is None:
            return None
        else:
            size = request.height, request.width
        multiple = self.experiment.size_multiple
        if any(side % multiple or side < multiple for side in size):
            near = [max(1, round(side / multiple)) * multiple for side in size]
            raise ApiError(
                f"size {size[1]}x{size[0]} (width x height): both must be multiples of {multiple}: "
                f"use {near[1]}x{near[0]}",
                param="size", code="size_multiple",
            )  # fmt: skip
        return size

    def _fitted(self) -> tuple[int, int]:
        """(height, width) of the inputs: as asked, or what suits the first of them."""
        asked = self._size()
        if asked is not None:
            return asked
        area, multiple = largest_area(self.experiment), self.experiment.size_multiple
        return choose_size(*self.files[0].size, multiple=multiple, area=area)

    def _count(self, file: Given) -> int:
        """Frames of an input at the rate of the result."""
        if file.kind == "image" or file.fps is None:
            return 1
        return max(1, math.ceil(file.frames / file.fps * self.fps - 1e-6))

    def _whole(self, least: int, size: tuple[int, int] | None, **more) -> Plan:
        """A video that is made whole, of the model's own sizes."""
        size = tuple(self.experiment.sample.size) if size is None else size
        return Plan(task=self._task(), frames=least, made=least, size=size, fps=self.fps, amount=least, **more)

    def _text(self) -> Plan:
        request, grouping = self.request, self.grouping
        frames = self._amount(self.experiment.sample.frames)
        if request.seconds is not None:
            near = grouping.first + max(0, round((frames - grouping.first) / grouping.step)) * grouping.step
            if near != frames:
                rule = f"the model makes {grouping.first} + a multiple of {grouping.step} frames"
                said = f"{request.seconds:g} s at {self.fps:g} fps is {frames} frames"
                self.notes.append(f"{said}, {near} are made: {rule}")
            frames = near
        size = self._size()
        made = self._whole(frames, size)
        # Raises where the model cannot make it.
        self.generator.task(self.generator.method(), made.frames, made.size)
        return made

    def _animate(self) -> Plan:
        frames = self._amount(self.experiment.sample.frames)
        if self.request.canvas:
            order = {placed.file: placed.at_frame for placed in self.request.canvas}
            if set(order) != {file.id for file in self.files}:
                raise ApiError("canvas of an animation gives at_frame of each of its files", param="canvas")
            times = tuple(order[file.id] for file in self.files)
        elif len(self.files) == 1:
            times = (0,)
        else:  # the last one is where the video ends
            times = tuple(round(k * (frames - 1) / (len(self.files) - 1)) for k in range(len(self.files)))
        return self._whole(frames, self._fitted(), times=times)

    def _extend(self) -> Plan:
        new, has = self._amount(self.grouping.step * 2), self._count(self.files[0])
        made = new * (2 if self.request.direction == "both" else 1)
        return Plan(task="extend", frames=has + made, made=made, size=self._fitted(), fps=self.fps, amount=new)

    def _loop(self) -> Plan:
        usual = usual_passage(self.generator, self.request.window)
        if not self.files:
            frames = self._amount(self.experiment.sample.frames)
            size = self._size() or tuple(self.experiment.sample.size)
            made = frames + usual
            return Plan(task="loop", frames=made, made=made, size=size, fps=self.fps, amount=frames)
        passage = self._passage(usual)
        frames = self._count(self.files[0]) + passage
        return Plan(task="loop", frames=frames, made=passage, size=self._fitted(), fps=self.fps, amount=passage)

    def _passage(self, usual: int) -> int:
        frames = self._amount(usual)
        if self.request.seconds is not None:
            step = self.grouping.step
            near = max(step, round(frames / step) * step)
            if near != frames:
                self.notes.append(f"the passage is {near} frames: a multiple of {step}, made at once")
            frames = near
        self.grouping.check_passage("num_frames", frames)
        return frames

    def _connect(self) -> Plan:
        passage = self._passage(usual_passage(self.generator, self.request.window))
        counts = sum(map(self._count, self.files))
        frames = counts - passage if self.request.blend else counts + passage
        if frames < 1:
            raise ApiError(f"num_frames={passage}: both videos have {counts} frames", param="num_frames")
        return Plan(task="connect", frames=frames, made=passage, size=self._fitted(), fps=self.fps, amount=passage)

    def _edit(self) -> Plan:
        frames = self._count(self.files[0])
        if self.request.num_frames is not None or self.request.seconds is not None:
            frames = min(frames, self._amount(frames))  # only the start of the video
        return Plan(
            task=self._task(), frames=frames, made=frames, size=self._fitted(), fps=self.fps, amount=frames
        )

    def _inpaint(self) -> Plan:
        if self.mask is None:
            raise ApiError("task inpaint needs a mask: an upload that is white where something is made", param="mask")
        return self._edit()

    def _outpaint(self) -> Plan:
        multiple, area = self.experiment.size_multiple, largest_area(self.experiment)
        outer, inner, own = self._size(), None, self.files[0].size
        if outer is None:  # a wide frame around a video, as large as the model's
            aspect = 16 / 9 if own[1] <= own[0] else 9 / 16
            ratio = aspect * own[0] / own[1]
            inner = choose_size(*own, multiple=multiple, area=max(multiple**2, int(area * min(ratio, 1 / ratio))))
            outer = size_of_aspect(inner, aspect, multiple)
        elif self.request.canvas:
            placed = self.request.canvas[0]
            if placed.width is not None and placed.height is not None:
                inner = placed.height, placed.width
        if inner is None:
            share = min(outer[0] / own[0], outer[1] / own[1], 1.0) ** 2
            inner = choose_size(*own, multiple=multiple, area=max(multiple**2, int(own[0] * own[1] * share)))
        if any(side % multiple for side in inner):
            raise ApiError(f"canvas: width and height of the video must be multiples of {multiple}", param="canvas")
        made = dataclasses.replace(self._edit_of(outer), task="outpaint", inner=inner)
        self._frame(made)
        return made

    def _edit_of(self, size: tuple[int, int]) -> Plan:
        frames = self._count(self.files[0])
        return Plan(task="edit", frames=frames, made=frames, size=size, fps=self.fps, amount=frames)

    def _frame(self, made: Plan) -> None:
        Frame.around(made.inner, made.size, corner(self.request), self.experiment.vae.spatial_stride)

    def _rollout(self) -> Plan:
        has = self._count(self.files[0]) if self.files else 0
        frames = self._amount(2 * window_of(self.generator, self.request.window))
        if frames <= has:
            raise ApiError(f"a rollout of {frames} frames: {has} are given, ask for more", param="num_frames")
        size = self._fitted() if self.files else self._size() or tuple(self.experiment.sample.size)
        PromptSchedule.of([(0.0, ""), *((change.seconds, change.prompt) for change in self.request.prompts)])
        return Plan(task="rollout", frames=frames, made=frames - has, size=size, fps=self.fps, amount=frames)

    def _canvas(self) -> Plan:
        if not self.request.canvas:
            raise ApiError("task canvas needs what is known: give canvas, a list of files and where they go",
                           param="canvas")
        frames = self.grouping.canvas(self._amount(self.experiment.sample.frames))
        size = self._size() or tuple(self.experiment.sample.size)
        for placed in self.request.canvas:
            if placed.at_frame >= frames:
                raise ApiError(f"at_frame={placed.at_frame}: the canvas has {frames} frames", param="canvas")
        if (mask := self.mask) is not None and (mask.size != size or mask.frames not in (1, frames)):
            shown = f"{mask.size[1]}x{mask.size[0]} with {mask.frames} frames"
            rule = f"an image or {frames} frames, of {size[1]}x{size[0]} (width x height)"
            raise ApiError(f"mask: is {shown}; of this canvas it must be {rule}", param="mask")
        return Plan(task="canvas", frames=frames, made=frames, size=size, fps=self.fps, amount=frames)


def _checked(made: Plan, request: VideoRequest, generator: Generator, limits: Limits) -> Plan:
    """The plan, within the limits; 413 names the one that is passed."""
    height, width = made.size
    for name, value, most, field in (
        ("frames", made.frames, limits.frames, "num_frames"), ("pixels", height * width, limits.pixels, "size"),
        ("steps", request.num_inference_steps or 1, limits.steps, "num_inference_steps"),
        ("videos", request.n, limits.videos, "n"),
    ):  # fmt: skip
        if value > most:
            raise ApiError(
                f"{value} {name}: this server makes at most {most}", status=413, param=field, code=f"{name}_limit"
            )
    if request.seed is not None and request.seed + request.n - 1 > 2**64 - 1:
        raise ApiError("seed: with n, the last seed is above 2**64 - 1", param="seed")
    generator.method(**{name: value for name, value in made.sampling.items() if name != "negative"})
    return made


def largest_area(experiment) -> int:
    """Pixels of the largest frames that the model was trained on or is sampled at."""
    height, width = experiment.sample.size
    return max(*experiment.data.pixel_budgets, height * width)


def corner(request: VideoRequest) -> tuple[int, int] | str:
    """Where the video of an outpainting goes: (y, x), or "centre"."""
    return (request.canvas[0].y, request.canvas[0].x) if request.canvas else "centre"


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
    video, known, told = compose(plan, request.canvas, given, run.grouping.index(plan.frames))
    if request.mask is not None:
        painted = _painted(given[request.mask])
        known, told = known & ~painted, told & ~painted
    mask = ~told
    if not mask.any():
        raise ShapeError("canvas: everything is known, nothing is to be made: leave something open")
    if mask.all():
        raise ShapeError("canvas: nothing of what is placed lies in the frame: move it into the frame")
    if plan.frames > run.window:
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


def compose(
    plan: Plan, placed: Sequence[Placed], given: Mapping[str, Given], group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is known of a timeline canvas.

    Args:
        plan: its size, frames and rate.
        placed: what lies where; later ones cover earlier ones.
        given: the files.
        group: int [t], which frames are made at once.

    Returns:
        The video float32 [1 t h w 3], where it is known bool [t h w], and where the model is told so bool [t h w].
    """
    height, width = plan.size
    video = np.zeros((1, plan.frames, height, width, 3), np.float32)
    known, told = (np.zeros((plan.frames, height, width), bool) for _ in range(2))
    for one in placed:
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
    return video, known, told
