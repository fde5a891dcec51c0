"""What a request comes to: its lengths and sizes, checked against the model and the limits.

`plan` looks at numbers only and is quick: whatever is wrong with a request is said when it comes.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdit.data.clips import fit_size
from vdit.data.patches import token_grid
from vdit.errors import VditError, VditWarning
from vdit.generate import editing, known, sliding
from vdit.generate.generator import Generator, grouping_of, usual_passage, window_of
from vdit.generate.images import choose_size
from vdit.generate.simulator import world_keys
from vdit.language.expansion import Expander
from vdit.sampling.canvas import Grouping
from vdit.sampling.config import SamplingConfig
from vdit.sampling.packed import RowSize, packs
from vdit.sampling.sliding import PromptSchedule
from vdit.serve.schema import ApiError, Limits, VideoRequest
from vdit.serve.world import can_render

FILES = {  # how many files a task takes
    "text": (0, 0), "animate": (1, 64), "extend": (1, 1), "loop": (0, 1), "connect": (2, 2), "edit": (1, 1),
    "inpaint": (1, 1), "outpaint": (1, 1), "rollout": (0, 1), "canvas": (0, 64),
}  # fmt: skip
STRENGTH = 0.6  # of an edit, as the command's
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VditWarning)  # the job itself tells of them
            planner = _Planner(request, generator, limits, given)
            made = planner.plan()
            _check_limits(made, request, limits)
            generator.method(**{name: value for name, value in made.sampling.items() if name != "negative"})
            _check_windows(made, request, generator, planner.counts())
        return made
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


def batch_key(plan: Plan, generator: Generator, *, pack: bool) -> tuple | None:
    """Jobs with equal keys are made by one call; None for a job that is made alone.

    Of one frames and size; with `pack` of any, where they go side by side into rows of tokens (vdit.sampling.packed).
    """
    if plan.task != "text" or generator.experiment.network.reference_channels:
        return None
    method = text_method(plan, generator)
    if type(method.sampler).__name__.lower() in _ALONE:
        return None
    if pack and packs(generator.experiment.network, method, generator.mesh):
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


def nearest_frames(grouping: Grouping, frames: int) -> int:
    """The number of frames that a model makes at once that is nearest to `frames`."""
    return grouping.first + max(0, round((frames - grouping.first) / grouping.step)) * grouping.step


def text_method(plan: Plan, generator: Generator) -> SamplingConfig:
    """How a text-to-video job is sampled."""
    return generator.method(**{name: value for name, value in plan.sampling.items() if name != "negative"})


def _param(error: VditError) -> str | None:
    """The field that a message of the model's is about."""
    text = str(error)
    fields = (
        ("frames=", "num_frames"), ("height=", "size"), ("width=", "size"), ("size", "size"), ("sampler", "sampler"),
        ("steps", "num_inference_steps"), ("window", "window"), ("times", "canvas"), ("mask", "mask"),
        ("strength", "strength"), ("prompts", "prompts"), ("a video of", "files"), ("time ", "canvas"),
    )  # fmt: skip
    return next((field for start, field in fields if text.startswith(start)), "window" if "window" in text else None)


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
            ("window", self.request.window, tuple(name for name in FILES if name != "text")),
        ):  # fmt: skip
            if kind and task not in tasks:
                raise ApiError(f"{name} has no effect on task {task}: leave it out", param=name)
        if task in ("extend", "connect", "edit") and any(f.kind != "video" for f in self.files):
            raise ApiError(f"task {task} takes videos, and an image is given", param="files")
        made = getattr(self, f"_{task}")()
        window = None if self.request.window is None else window_of(self.generator, self.request.window)
        note = "; ".join(self.notes) or None
        return dataclasses.replace(made, sampling=self._sampling(), note=note, window=window)

    def counts(self) -> list[int]:
        """Frames of the files, at the rate of the result."""
        return [self._count(file) for file in self.files]

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
            near = nearest_frames(grouping, frames)
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
            outer = known.size_of_aspect(inner, aspect, multiple)
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
        known.Frame.around(made.inner, made.size, corner(self.request), self.experiment.vae.spatial_stride)

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
        self._check_open(frames, size)
        return Plan(task="canvas", frames=frames, made=frames, size=size, fps=self.fps, amount=frames)

    def _check_open(self, frames: int, size: tuple[int, int]) -> None:
        """ApiError where nothing of a canvas is known, or all of it, as far as that is seen without its mask."""
        height, width = size
        boxes = []  # (first frame, last + 1, top, bottom, left, right), in the frame
        for placed, file in zip(self.request.canvas, self.placed):
            tall, wide = placed.height or height, placed.width or width
            until = placed.at_frame + (1 if file.kind == "image" else self._count(file))
            edges = np.clip([placed.y, placed.y + tall], 0, height), np.clip([placed.x, placed.x + wide], 0, width)
            boxes.append((placed.at_frame, min(frames, until), *map(int, edges[0]), *map(int, edges[1])))
        cuts = [np.unique([0, most, *(box[k] for box in boxes), *(box[k + 1] for box in boxes)])
                for k, most in ((0, frames), (2, height), (4, width))]  # fmt: skip
        known = np.zeros([len(cut) - 1 for cut in cuts], bool)  # the parts into which the boxes cut the canvas
        for box in boxes:
            known[tuple(slice(*np.searchsorted(cut, box[2 * k : 2 * k + 2])) for k, cut in enumerate(cuts))] = True
        if not known.any():
            raise ApiError("canvas: nothing of what is placed lies in the frame: move it there", param="canvas")
        if known.all() and self.request.mask is None:
            raise ApiError("canvas: all is known, nothing is to be made: leave something open, or paint a mask",
                           param="canvas")  # fmt: skip


def _check_limits(made: Plan, request: VideoRequest, limits: Limits) -> None:
    """413 names the limit that is passed."""
    height, width = made.size
    for name, value, most, field in (
        ("window", made.window or 1, limits.frames, "window"),  # as many frames by one call
        ("frames", made.frames, limits.frames, "num_frames"), ("pixels", height * width, limits.pixels, "size"),
        ("steps", request.num_inference_steps or 1, limits.steps, "num_inference_steps"),
        ("videos", request.n, limits.videos, "n"),
    ):  # fmt: skip
        if value > most:
            what = "frames in a window" if name == "window" else name
            raise ApiError(
                f"{value} {what}: this server makes at most {most}", status=413, param=field, code=f"{name}_limit"
            )
    if request.seed is not None and request.seed + request.n - 1 > 2**64 - 1:
        raise ApiError("seed: with n, the last seed is above 2**64 - 1", param="seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unread:
    """In the place of a video of which only the shape matters."""

    size: tuple[int, int]
    count: int

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def _check_windows(made: Plan, request: VideoRequest, generator: Generator, counts: Sequence[int]) -> None:
    """What the functions that make the video would raise once they begin (vdit.serve.tasks).

    counts: frames of the files, at the rate of the result.
    """
    run = sliding.Run.of(generator, request.prompt, window=made.window, **made.sampling)
    more = {"window": run.window, "grouping": run.grouping}
    match made.task:
        case "rollout":
            script = [(0.0, request.prompt), *sorted((change.seconds, change.prompt) for change in request.prompts)]
            video = _Unread(size=made.size, count=counts[0]) if counts else None
            size = made.size if video is None else None
            prompts = PromptSchedule.of(script)
            sliding.rollout(run, sliding.Rollout(prompts=prompts, frames=made.frames, fps=made.fps, size=size), video)
        case "edit" | "inpaint" | "outpaint" | "canvas":
            editing.edit_window(run, made.frames, None)
        case "animate":
            length = min(run.window, run.grouping.canvas(made.frames))
            images = np.zeros((1, len(made.times), 1, 1, 3), np.float32)
            known.animate(images, times=made.times, frames=min(length, made.frames), grouping=run.grouping)
            if made.frames > length:
                known.forward_windows(made.frames - length, has=length, **more)
        case "extend":
            ways = {"forward": [known.forward_windows], "backward": [known.backward_windows]}
            for windows in ways.get(request.direction, [known.forward_windows, known.backward_windows]):
                windows(made.amount, has=counts[0], **more)
        case "connect" if request.blend:
            run.blend_ends(made.amount, has=(counts[0], counts[1]))
        case "loop" | "connect":
            passage = made.amount if counts else usual_passage(generator, run.window)
            first, second = (*counts, *counts)[:2] if counts else (made.amount, made.amount)
            closing = run.closing_frames(passage, has=(first, second))
            if passage > closing:
                known.forward_windows(passage - closing, has=first, **more)


def largest_area(experiment) -> int:
    """Pixels of the largest frames that the model was trained on or is sampled at."""
    height, width = experiment.sample.size
    return max(*experiment.data.pixel_budgets, height * width)


def corner(request: VideoRequest) -> tuple[int, int] | str:
    """Where the video of an outpainting goes: (y, x), or "centre"."""
    return (request.canvas[0].y, request.canvas[0].x) if request.canvas else "centre"


def info(
    generator: Generator, limits: Limits, *, name: str, examples: tuple[str, ...], expander: Expander | None
) -> dict[str, Any]:
    """For /v1/info: what the model makes, what it makes where nothing is said, and what is too much.

    Args:
        generator: the model. limits: of the server. name: of the model, for clients.
        examples: prompts that the page proposes; the model's own where there are none.
        expander: of prompts, or None.
    """
    experiment, grouping = generator.experiment, grouping_of(generator)
    sample = experiment.sample
    return {
        "model": name,
        "tasks": list(_tasks_of(experiment)),
        "sizes": [f"{width}x{height}" for height, width in _sizes(experiment)],
        "size_multiple": experiment.size_multiple,
        "fps": sample.fps,
        "window": window_of(generator),
        "frames": {"first": grouping.first, "step": grouping.step},
        "max_frames": limits.frames,
        "max_size": limits.pixels,
        "defaults": {
            "steps": sample.steps, "guidance": sample.guidance, "seconds": sample.frames / sample.fps,
            "frames": sample.frames, "size": f"{sample.size[1]}x{sample.size[0]}", "seed": None, "strength": STRENGTH,
        },
        "keys": _keys(generator),
        "rendered_world": can_render(generator),
        "expand": expander is not None,
        "limits": limits.public(),
        "examples": list(examples or sample.prompts[:8]),
    }  # fmt: skip


def _keys(generator: Generator) -> dict[str, list[float]] | None:
    """Keys of the world and what each does; None for a model that is not played."""
    experiment = generator.experiment
    if not experiment.network.action_width:
        return None
    world = getattr(experiment.data.source, "world", "")
    keys = world_keys(world, experiment.data.actions, experiment.sample.fps)
    return {key: list(action) for key, action in keys.items()}


def _tasks_of(experiment) -> tuple[str, ...]:
    """The tasks that a model can do."""
    if experiment.network.reference_channels:  # it makes videos of images, with frames given whole
        return "animate", "extend", "loop", "connect"
    return tuple(FILES)


def _sizes(experiment) -> list[tuple[int, int]]:
    """(height, width) that the model was trained on or is sampled at."""
    sizes = [tuple(experiment.sample.size)]
    for area in experiment.data.pixel_budgets:
        for aspect in experiment.data.aspects:
            sizes.append(tuple(fit_size(1.0, float(aspect), area, experiment.size_multiple)))
    return list(dict.fromkeys(sizes))
