"""What `vdit eval` measures: the videos of a folder, of a run, and what those of a run should be.

    real = folder_videos("clips", Reading(frames=49))
    made = folder_videos("samples", Reading(frames=49), truth=real)       # paired by names
    tasks = held_out_tasks(vdit.load("runs/quickstart"), 32)
    mine = sampled_videos("quickstart", generator, tasks)
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from vdit.data.captions import read_captions
from vdit.data.clips import resize_video
from vdit.data.data_source import WorldsSource
from vdit.errors import ConfigError, DataError, ShapeError
from vdit.eval.evaluate import Case, VideoSet
from vdit.eval.physics_iq import SECONDS, Scene, read_benchmark
from vdit.eval.vbench import video_name
from vdit.generate import verbs
from vdit.generate.generator import Generator, Sampling, noise_of
from vdit.paths import MIB, read_bytes
from vdit.pixels import Clip
from vdit.reprs import short_repr
from vdit.video.read import probe, read_video
from vdit.worlds import World, WorldSample, make
from vdit.worlds.base import fields_of

SHORT_SIDE = 256  # pixels that frames of folders are scaled down to, where nobody says a size
SUITE_SEED = 7  # of held-out scenes
_NUMBERED = re.compile(r"(.+)-(?:seed)?(\d+)")  # "dog-0", "dog-seed3", and VBench's "a dog runs-4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderReading:
    """How the videos of a folder are read.

    frames: at most so many, from the start. size: (height, width) of frames, scaled to cover and cropped; None keeps
    the file's own up to SHORT_SIDE pixels of the short side. fps: resampled to; None is the file's own. videos: the
    first so many; None for all.
    """

    frames: int = 49
    size: tuple[int, int] | None = None
    fps: float | None = None
    videos: int | None = None

    def read(self, path: Path) -> Clip:
        """One file; VideoError where it cannot be read."""
        size = self.size
        if size is None:
            info = probe(path)
            short = min(info.height, info.width)
            size = SHORT_SIDE if short > SHORT_SIDE else None
        return read_video(path, fps=self.fps, max_frames=self.frames, size=size)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One video that a model is asked for.

    Attributes:
        name: of the task.
        caption: the prompt.
        truth: uint8 [t h w 3], a real video of it; whether the model's must equal it depends on what is given.
        fps: of the truth.
        scene: meta of the rendered world, or None.
    """

    name: str
    caption: str
    truth: np.ndarray
    fps: float
    scene: Mapping[str, Any] | None = None


def folder_videos(
    folder: str | Path,
    reading: FolderReading | None = None,
    *,
    name: str | None = None,
    truth: VideoSet | None = None,
) -> VideoSet:
    """The videos of a folder.

    Args:
        folder: of video files, with or without a captions file. Files that end in -0, -1, ... are of one group.
        reading: how they are read.
        name: of the set; None is the folder's.
        truth: the true videos, made by `folder_videos`. A video whose name, or whose name without its number, is one of
            theirs is compared with it frame by frame, as far as both last. Names have no endings (.mp4), but where two
            files differ in nothing else.

    Raises:
        DataError: the folder is not there, or holds no videos.
    """
    reading = reading or FolderReading()
    listing = read_captions(folder)
    entries, names = listing.entries[: reading.videos], _names([entry.file for entry in listing.entries])
    known = {} if truth is None else _known(truth)
    groups = [found[1] if (found := _NUMBERED.fullmatch(_stem(entry.file))) else None for entry in entries]

    def case(file: str, caption: str, name: str, group: str | None) -> Case:
        clip = reading.read(Path(folder) / file)
        other = _true(known, file)
        video, true = clip.frames, None
        if other is not None:
            true = other().video
            count = min(len(video), len(true))
            video, true = video[:count], resize_video(true[:count], video.shape[1:3])
        return Case(name=name, video=video, fps=clip.fps, caption=caption or None, truth=true, group=group)

    cases = [
        _Bound(case, {"file": entry.file, "caption": entry.captions[0], "name": name,
                      "group": group if group is not None and groups.count(group) > 1 else None})
        for entry, name, group in zip(entries, names, groups)
    ]  # fmt: skip
    if not cases:
        raise DataError(f"{folder}: holds no videos")
    return VideoSet(name=name or Path(folder).name, cases=cases)


class _Bound:
    """A function with its arguments, which `folder_videos` looks at to find pairs."""

    def __init__(self, function: Callable[..., Case], keywords: dict[str, Any]):
        self.function, self.keywords = function, keywords

    def __call__(self) -> Case:
        return self.function(**self.keywords)


def _partial(case: Callable[[], Case]) -> _Bound:
    if not isinstance(case, _Bound):
        raise ConfigError("truth= must be a set that folder_videos made: give the folder of the real videos")
    return case


def _stem(file: str) -> str:
    return str(Path(file).with_suffix(""))


def _names(files: Sequence[str]) -> list[str]:
    """What the videos of a folder are called: the files without their endings, whole where two are alike without."""
    count = Counter(map(_stem, files))
    return [_stem(file) if count[_stem(file)] == 1 else file for file in files]


def _known(truth: VideoSet) -> dict[str, _Bound]:
    """The true videos by their files and by their names."""
    cases = [_partial(case) for case in truth.cases]
    return {case.keywords[key]: case for key in ("name", "file") for case in cases}


def _true(known: Mapping[str, _Bound], file: str) -> _Bound | None:
    """The true video of a file: of the same file name, the same name, or the same without its number."""
    numbered = _NUMBERED.fullmatch(_stem(file))
    return known.get(file) or known.get(_stem(file)) or (known.get(numbered[1]) if numbered else None)


def paired(made: VideoSet, truth: VideoSet) -> int:
    """How many videos of a folder have a true one of the same name."""
    known = _known(truth)
    return sum(_true(known, _partial(case).keywords["file"]) is not None for case in made.cases)


def folder_tasks(folder: str | Path, generator: Generator, reading: FolderReading) -> list[Task]:
    """Tasks from real videos with captions: at the model's frame rate, and the size and frames of `reading`.

    Raises:
        DataError: the folder holds none, or videos without captions.
        ShapeError: a video is shorter than what is asked for.
    """
    fps, tasks, entries = generator.experiment.sample.fps, [], read_captions(folder).entries
    names = _names([entry.file for entry in entries])
    for name, entry in list(zip(names, entries))[: reading.videos]:
        if not entry.captioned and generator.network.uses_text:
            raise DataError(f"{folder}: {entry.file} has no caption, and the model needs a prompt: add captions.jsonl")
        clip = dataclasses.replace(reading, fps=fps).read(Path(folder) / entry.file)
        if len(clip.frames) < reading.frames:
            raise ShapeError(f"{entry.file} has {len(clip.frames)} frames at {fps:g} fps, {reading.frames} are asked "
                             "for: give fewer --frames")  # fmt: skip
        tasks.append(Task(name=name, caption=entry.captions[0], truth=clip.frames, fps=fps))
    return tasks


def prompt_tasks(
    file: str | Path, generator: Generator, count: int | None, *, frames: int, size: tuple[int, int]
) -> list[Task]:
    """Tasks from a file of prompts, one a line, as VBench has them; there is no true video, so that of a task is grey.

    Raises:
        DataError: a prompt cannot be the name of a file, or there is none.
    """
    data = read_bytes(file, limit=MIB, error=DataError, fix="give a file of prompts, one a line")
    lines = map(str.strip, data.decode("utf-8", "replace").splitlines())
    prompts = list(dict.fromkeys(filter(None, lines)))[:count]
    if not prompts:
        raise DataError(f"{file}: holds no prompt: write one a line")
    for prompt in prompts:
        video_name(prompt, 0)
    grey = np.full((frames, *size, 3), 128, np.uint8)
    return [Task(name=prompt, caption=prompt, truth=grey, fps=generator.experiment.sample.fps) for prompt in prompts]


def held_out_tasks(
    generator: Generator, count: int, *, frames: int | None = None, size: tuple[int, int] | None = None
) -> list[Task]:
    """Tasks from what a run's training did not see: other scenes of its worlds, or its held-out videos.

    Args:
        generator: the run.
        count: how many.
        frames: of each; None is the run's own.
        size: (height, width) of each; None is the run's own.

    Raises:
        ConfigError: the run has no held-out videos.
    """
    e, sample = generator.experiment, generator.experiment.sample
    frames, size = frames or sample.frames, size or sample.size
    source = e.data.source
    if isinstance(source, WorldsSource):
        scenes = []
        parts = source.world.split("+")
        for i, name in enumerate(parts):
            each = len(range(i, count, len(parts)))
            scenes.append(held_out_scenes(generator, name, each, frames=frames, size=size))
        turns = [scenes[i % len(parts)][i // len(parts)] for i in range(count)]
        return [
            Task(name=f"{scene.meta['world']}-scene-{i:03}", caption=scene.caption, truth=scene.video, fps=scene.fps,
                 scene=scene.meta)
            for i, scene in enumerate(turns)
        ]  # fmt: skip
    if e.held_out is not None:
        opened = e.held_out.open(e.data, seed=e.seed)
    else:
        opened = source.open_held_out(e.data, seed=e.seed, holdout=e.holdout)
    if opened is None or not hasattr(opened, "crops"):
        raise ConfigError(f"the run {e.name!r} has no held-out videos: give real ones with captions by --real FOLDER")
    crops = opened.crops(size=size, frames=frames)
    found = [crops[i] for i in range(count)]
    return [
        Task(name=f"{i:03}-{Path(clip['id']).stem}", caption=(clip["captions"] or [""])[0], truth=clip["video"],
             fps=clip["fps"])
        for i, clip in enumerate(found)
    ]  # fmt: skip


def held_out_scenes(
    generator: Generator, world: str, count: int, *, frames: int, size: tuple[int, int] | None = None
) -> list[WorldSample]:
    """Scenes of one of the worlds that the model was trained on, under its options, from a seed of its own."""
    e, sample = generator.experiment, generator.experiment.sample
    source = e.data.source
    prefix = "" if source.world == world else world + "."
    known = fields_of(world)
    options = {key.removeprefix(prefix): value for key, value in source.arguments().items()}
    options = {key: value for key, value in options.items() if key in known}
    if options.get("subset") == "train":
        options["subset"] = "held_out"
    made: World = make(
        world, seed=SUITE_SEED, count=max(count, 1), size=size or sample.size, frames=frames,
        fps=sample.fps, **options,
    )  # fmt: skip
    return [made[i] for i in range(count)]


def sampled_videos(
    name: str,
    generator: Generator,
    tasks: Sequence[Task],
    *,
    given: int = 0,
    seeds: Sequence[int] = (0,),
    batch: int = 8,
    numbered: bool = False,
    **sampling: Unpack[Sampling],
) -> VideoSet:
    """Videos that a model makes of tasks, sampled when they are measured.

    Args:
        name: of the set.
        generator: the model.
        tasks: what is asked for. All have the same size and number of frames.
        given: frames at the start of the truth that the model gets; 0: the prompt alone. Only with given frames is the
            truth what the video should be, frame by frame.
        seeds: of each task; several make groups.
        batch: videos of prompts alone that are sampled at once.
        numbered: whether names end in the seed even where each task has one seed only.
        **sampling: options of sampling (steps, guidance, ...).
    """
    if not tasks or not seeds:
        raise ConfigError(f"{name}: {len(tasks)} tasks with {len(seeds)} seeds leave nothing to sample")
    maker = _Maker(generator, [(task, seed) for task in tasks for seed in seeds], given, batch, sampling)

    def case(i: int) -> Case:
        task, seed = maker.wanted[i]
        several = len(seeds) > 1
        return Case(
            name=f"{task.name}-{seed}" if several or numbered else task.name, video=maker.video(i), fps=task.fps,
            caption=task.caption, truth=task.truth if given else None, given=given, scene=task.scene,
            group=task.name if several else None,
        )  # fmt: skip

    return VideoSet(name=name, cases=[_Bound(case, {"i": i}) for i in range(len(maker.wanted))])


def true_videos(tasks: Sequence[Task], name: str = "real", *, given: int = 0) -> VideoSet:
    """The true videos of tasks, as a set. given: frames at their start that are not measured, as of a model's."""

    def case(task: Task) -> Case:
        return Case(name=task.name, video=task.truth, fps=task.fps, caption=task.caption, scene=task.scene, given=given)

    return VideoSet(name=name, cases=[_Bound(case, {"task": task}) for task in tasks])


def physics_iq_videos(
    folder: str | Path, benchmark: str | Path, *, fps: int, short_side: int = SHORT_SIDE, name: str | None = None
) -> VideoSet:
    """Videos of a model on the scenes of Physics-IQ, each with both real takes; the first five seconds.

    Args:
        folder: of the model's videos, called as the benchmark wants them ("0001_perspective-left_trimmed-NAME.mp4").
        benchmark: the benchmark's folder (vdit.eval.physics_iq.read_benchmark).
        fps: of the benchmark's files. The model's are resampled to it.
        short_side: pixels that frames are scaled to; the benchmark compares a quarter of the recorded size.
        name: of the set; None is the folder's.

    Raises:
        DataError: the benchmark is not there, or a video of the model is missing.
    """
    scenes = read_benchmark(benchmark, fps)
    place = Path(folder)
    missing = [scene.generated_name for scene in scenes if not (place / scene.generated_name).is_file()]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(scenes)} videos are missing, the first is {missing[0]}")
    most = round(SECONDS * fps)

    def case(scene: Scene) -> Case:
        read = lambda path, size: read_video(path, fps=fps, max_frames=most, size=size)  # noqa: E731
        truth = read(scene.take_1, short_side).frames
        take, made = (read(file, truth.shape[1:3]).frames for file in (scene.take_2, place / scene.generated_name))
        count = min(len(truth), len(take), len(made))
        video, truth, take = (frames[:count] for frames in (made, truth, take))
        return Case(name=f"{scene.id}-{scene.name}", video=video, truth=truth, take=take, fps=fps)

    return VideoSet(name=name or Path(folder).name, cases=[_Bound(case, {"scene": scene}) for scene in scenes])


class _Maker:
    """Samples videos in their order; the last batch is remembered."""

    def __init__(
        self, generator: Generator, wanted: list[tuple[Task, int]], given: int, batch: int, sampling: Sampling
    ):
        self.generator, self.wanted, self.given, self.sampling = generator, wanted, given, sampling
        self.size = 1 if given else batch
        self._number, self._videos = -1, np.zeros(0)

    def video(self, i: int) -> np.ndarray:
        """uint8 [t h w 3] of the i-th pair of task and seed."""
        if i // self.size != self._number:
            self._number = i // self.size
            self._videos = self._sample(self.wanted[self._number * self.size :][: self.size])
        return self._videos[i % self.size]

    def _sample(self, part: list[tuple[Task, int]]) -> np.ndarray:
        task, seed = part[0]
        frames, size = len(task.truth), task.truth.shape[1:3]
        if self.given:
            more = frames - self.given
            known = task.truth[: self.given]
            return _bytes(verbs.extend(self.generator, task.caption, known, after=more, seed=seed, **self.sampling))
        # Always a whole batch: each batch size would compile again.
        full = part + part[-1:] * (self.size - len(part))
        noise = noise_of(self.generator, [seed for _, seed in full], frames=frames, size=size)
        prompts = [task.caption for task, _ in full]
        made = self.generator(prompts, seed=seed, noise=noise, frames=frames, size=size, **self.sampling)
        return _bytes(np.asarray(made))[: len(part)]


def _bytes(videos: np.ndarray) -> np.ndarray:
    """float [b t h w 3] in [-1, 1] -> uint8."""
    return np.round((np.clip(np.asarray(videos, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)
