"""Where the figures and sample videos of a run go, and what a run tells its user.

Writers: JSON lines, TensorBoard, Weights & Biases. Their failures end no run (ResilientWriter).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from vdit.data.data_source import DataSummary, Source, open_source
from vdit.data.latents import LatentStore
from vdit.dist.multihost import is_primary_host
from vdit.errors import ConfigError, DataError, ShapeError, install_command, one_line, reason
from vdit.experiment.experiment import Experiment
from vdit.models.text import Tokenizer
from vdit.reprs import short_repr
from vdit.train.monitor import RunMonitor
from vdit.train.workspace import Workspace


class Writer(Protocol):
    """Takes the figures and samples of a run. A method that cannot write raises OSError."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` steps."""

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        """Samples [b t h w 3] after `step` steps, uint8 or float in [-1, 1]."""

    def flush(self) -> None:
        """Returns when what was given so far would survive a kill of the process."""

    def close(self) -> None:
        """Ends the run's record."""


class JsonLines:
    """One JSON object a line: {"step": ..., "loss": ..., ...}.

    path: the file, continued if it exists. resume_step: lines after this step are dropped, so a run
    that was killed and resumed leaves the lines of one that was not.
    """

    def __init__(self, path: str | Path, *, resume_step: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_json_lines(self.path) if line["step"] <= resume_step]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)
        self._file = self.path.open("a", buffering=1)  # a line at a time, to be watched

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        del step, name, videos, fps  # figures only

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file in order, up to the first that is damaged.

    A killed run leaves an incomplete last line, a full disk or a crash of the machine leaves zeros or bytes of other
    files. What follows such a line cannot be trusted to belong to the same run, and is left out.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text) if text.strip() else None
        except ValueError:  # no JSON, or no UTF-8
            break
        if line is None:
            continue
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


class TensorBoard:
    """TensorBoard events; sample videos as one animated GIF, side by side.

    directory: of the event files. resume_step: earlier events after this step are hidden.

    Events are written by the caller's thread: tensorboardX's own SummaryWriter has a thread that a full disk ends,
    and whoever then gives it an event waits forever.
    """

    def __init__(self, directory: str | Path, *, resume_step: int = 0):
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self.path = directory / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        self._records = RecordWriter(str(self.path))
        self._add(file_version="brain.Event:2")
        if resume_step:
            self._add(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._summary(step, [{"tag": name, "simple_value": float(value)} for name, value in values.items()])

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        grid = video_grid(videos)
        _, height, width, channels = grid.shape
        image = {"height": height, "width": width, "colorspace": channels}
        self._summary(step, [{"tag": name, "image": image | {"encoded_image_string": encode_gif(grid, fps)}}])

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._add(step=step, summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


class WandB:
    """Weights & Biases; options go to `wandb.init` (project, name, mode, config, ...)."""

    def __init__(self, **options: Any):
        try:
            import wandb
        except ImportError:
            raise ConfigError(f"Weights & Biases is not installed: {install_command('wandb')}") from None
        self._wandb = wandb
        try:
            self._run = wandb.init(**options)
        except wandb.Error as error:
            raise ConfigError(f"Weights & Biases does not start: {reason(error)}") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._as_os_error():
            self._run.log(dict(values), step=step)

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        gif = io.BytesIO(encode_gif(video_grid(videos), fps))
        with self._as_os_error():
            self._run.log({name: self._wandb.Video(gif, format="gif")}, step=step)

    def flush(self) -> None:
        pass  # W&B's own process holds what was logged

    def close(self) -> None:
        with self._as_os_error():
            self._run.finish()

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """Writers fail by OSErrors: what W&B raises while it logs becomes one."""
        try:
            yield
        except self._wandb.Error as error:
            raise OSError(reason(error)) from error


class ResilientWriter:
    """A writer whose failures do not end a run: one warning says what is lost, and the run goes on.

    name: of the record, for warnings. open: makes the writer that goes on after a step; again after each failure, at
    most every `retry` seconds, so that the record continues once there is room. warn: takes a line.
    """

    def __init__(
        self, name: str, open: Callable[[int], Writer], *, step: int, warn: Callable[[str], None], retry: float = 30.0
    ):
        self._name, self._open, self._warn, self._retry = name, open, warn, retry
        self._writer: Writer | None = None
        self._step = self._flushed = step  # the last one that the writer took, and the last one surely in the record
        self._failed = self._opened = False
        self._next_try = -math.inf
        self._do(lambda writer: None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._do(lambda writer: writer.scalars(step, values)):
            self._step = step

    def videos(self, step: int, name: str, videos: np.ndarray, fps: float) -> None:
        self._do(lambda writer: writer.videos(step, name, videos, fps))

    def flush(self) -> None:
        if not self._do(lambda writer: writer.flush()):
            return
        if self._failed:  # only now: what a writer takes may still be in its memory
            self._failed = False
            self._warn(f"{self._name} is written again; figures after step {self._flushed} may be missing in it")
        self._flushed = self._step

    def close(self) -> None:
        if self._writer is not None:
            self._do(lambda writer: writer.close())
            self._writer = None

    def _do(self, work: Callable[[Writer], None]) -> bool:
        """Whether the work was done."""
        if self._writer is None and time.monotonic() < self._next_try:
            return False
        try:
            if self._writer is None:
                self._writer, self._opened = self._open(self._step), True
            work(self._writer)
        except (OSError, ConfigError) as error:
            if isinstance(error, ConfigError) and not self._opened:  # what the user asked for cannot be done at all
                raise
            self._give_up(error)
            return False
        return True

    def _give_up(self, error: OSError | ConfigError) -> None:
        writer, self._writer = self._writer, None
        self._next_try = time.monotonic() + self._retry
        with contextlib.suppress(OSError, ValueError):  # it holds what it could not write
            if writer is not None:
                writer.close()
        if not self._failed:
            self._failed = True
            self._warn(f"{self._name}: not written after step {self._flushed}: {reason(error)}; training goes on")


def video_grid(videos: np.ndarray, *, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Videos [b t h w 3], uint8 or float in [-1, 1], side by side: uint8 [t rows*h columns*w 3] with gaps."""
    videos = np.asarray(videos)
    if videos.ndim != 5 or videos.shape[-1] != 3:
        raise ShapeError(f"sample videos have shape {videos.shape}: must be [b t h w 3]")
    if videos.dtype != np.uint8:
        videos = np.clip(np.round((videos.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
    count, frames, height, width, _ = videos.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (frames, rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    grid = np.full(shape, 255, np.uint8)
    for index, video in enumerate(videos):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = video
    return grid


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless animated GIF of uint8 frames [t h w 3]."""
    images = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    duration = max(round(1000 / fps), 20)  # browsers slow down anything faster than 20 ms a frame
    images[0].save(out, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return out.getvalue()


class Speed:
    """Steps, tokens and model FLOPs a second between two reports.

    flops_per_step: forward and backward of one batch. peak_flops: of all devices, a second; measured
    with a matrix product when FLOPs are given without it.
    """

    def __init__(self, *, flops_per_step: float | None = None, peak_flops: float | None = None):
        self._flops = flops_per_step
        self._peak = peak_flops
        if flops_per_step is not None and peak_flops is None:
            self._peak = measure_peak_flops()
        self._since, self._steps, self._tokens = time.perf_counter(), 0, 0.0

    def add(self, tokens: float | None) -> None:
        """Counts a finished step."""
        self._steps += 1
        self._tokens += tokens or 0.0

    def restart(self) -> None:
        """Begins a new measurement, leaving out what went before (compilation, a save, a sample)."""
        self._since, self._steps, self._tokens = time.perf_counter(), 0, 0.0

    def report(self) -> dict[str, float]:
        """The rates since the last report, under names that start with `speed/`."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {"speed/steps_per_second": self._steps / seconds}
        if self._tokens:
            values["speed/tokens_per_second"] = self._tokens / seconds
        if self._flops is not None:
            values["speed/mfu"] = self._flops * self._steps / seconds / self._peak
        self.restart()
        return values


def measure_peak_flops(dtype: Any = None) -> float:
    """FLOPs a second that a large matrix product reaches on one device, times the number of devices."""
    on_cpu = jax.default_backend() == "cpu"
    size, dtype = (1024, dtype or jnp.float32) if on_cpu else (8192, dtype or jnp.bfloat16)
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best * jax.device_count()


def write_all(writers: Sequence[Writer], step: int, values: Mapping[str, float]) -> None:
    """The same figures to every writer."""
    for writer in writers:
        writer.scalars(step, values)


CAPTIONS_COUNTED = 10_000  # clips whose captions are looked at for their length


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Where figures go beside the JSON lines.

    tensorboard: write TensorBoard events. wandb: options of wandb.init; None for no W&B.
    console: where progress is shown; None is the terminal.
    monitor: watches this process, entered already; None makes one for each call of `run`.
    """

    tensorboard: bool = True
    wandb: dict | None = None
    console: Console | None = None
    monitor: RunMonitor | None = None

    def say(self, text: str) -> None:
        """A line for the user, from the first host."""
        if is_primary_host():
            (self.console or Console()).print(text, markup=False, soft_wrap=True)


def make_writers(stage: str, workspace: Workspace, logging: Logging, step: int) -> list[Writer]:
    """The first host's, of a stage that goes on from `step`; the others have none. Their failures end no run."""
    if not is_primary_host():
        return []
    lines, events = workspace.logs / f"{stage}.jsonl", workspace.logs / stage
    openers = {str(lines): lambda after: JsonLines(lines, resume_step=after)}
    if logging.tensorboard:
        openers[f"{events} (TensorBoard)"] = lambda after: TensorBoard(events, resume_step=after)
    if logging.wandb is not None:
        options = {"group": workspace.root.name, "job_type": stage, **logging.wandb}
        openers["Weights & Biases"] = lambda after: WandB(**options)
    warn = logging.monitor.warn
    writers: list[Writer] = [ResilientWriter(name, open, step=step, warn=warn) for name, open in openers.items()]
    return [*writers, workspace.remote_logs] if workspace.is_remote else writers


class TrainingVideos:
    """The videos that an experiment trains on, opened once for all stages; what was found in them is said once.

    strict: refuse data of which a video is not used, or has no caption that the model could learn from.
    """

    def __init__(self, experiment: Experiment, logging: Logging, *, strict: bool = False):
        self._experiment, self._logging, self._strict = experiment, logging, strict
        self._source: Source | None = None
        self._reported: set[str] = set()

    def open(self) -> Source:
        """The source, the same at every call; DataError if it cannot be opened, or is not as `strict` asks."""
        if self._source is None:
            experiment = self._experiment
            source = open_source(experiment.data, seed=experiment.seed, exclude=experiment.holdout)
            if source.summary is not None:
                self._report_summary(source.summary)
            self._reported.update(source.report())
            self._source = source
        return self._source

    def report_skipped(self) -> None:
        """Which files could not be read since: the first twenty on the console, all in the log."""
        broken = {} if self._source is None else self._source.report()
        new = {name: reason for name, reason in broken.items() if name not in self._reported}
        self._reported.update(new)
        if new:
            self._logging.say(f"skipped {len(new)} more, others took their place:")
        for number, (name, why) in enumerate(new.items()):
            self._logging.monitor.note(one_line(f"skipped: {name}: {why}"))
            if number < 20:
                self._logging.say(f"  {one_line(f'{name}: {why}')}")

    def _report_summary(self, summary: DataSummary) -> None:
        for line in summary.lines():
            self._logging.say(line)
        for line in summary.lines(most=sys.maxsize)[1:]:
            self._logging.monitor.note(line.strip())
        if self._strict:
            _refuse_unused(summary, self._experiment)


def check_strict(experiment: Experiment, say: Callable[[str], None]) -> None:
    """Opens the data of an experiment, and refuses it if a video is not used or has no caption. Writes nothing.

    Args:
        experiment: names the data.
        say: takes the lines that list what is wrong.

    Raises:
        DataError: the data cannot be opened, or not all of it would be used.
    """
    summary = open_source(experiment.data, seed=experiment.seed, exclude=experiment.holdout).summary
    if summary is not None:
        try:
            _refuse_unused(summary, experiment)
        except DataError:
            for line in summary.lines():
                say(line)
            raise


def _refuse_unused(summary: DataSummary, experiment: Experiment) -> None:
    uncaptioned = summary.uncaptioned if experiment.network.uses_text else ()
    if summary.skipped or uncaptioned:
        first = next(iter(summary.skipped.items()), None)
        example = f"{first[0]}: {first[1]}" if first else f"{uncaptioned[0]} has no caption"
        raise DataError(
            f"--strict: of {summary.found} videos in {summary.place}, {len(summary.skipped)} are not used and "
            f"{len(uncaptioned)} have no caption; for one, {example}"
        )


def report_cut_captions(store: LatentStore, tokenizer: Tokenizer, limit: int, logging: Logging) -> None:
    """How many captions are longer than the model reads, once, before training; of the first CAPTIONS_COUNTED clips."""
    if not is_primary_host():
        return
    clips = min(len(store), CAPTIONS_COUNTED)
    lengths = {text: 0 for i in range(clips) for text in store[i]["captions"]}
    lengths = [tokenizer.length(text) for text in lengths]
    cut = [length for length in lengths if length > limit]
    if cut:
        part = "" if clips == len(store) else f" (of the first {clips} clips)"
        logging.say(
            f"captions: {len(cut)} of {len(lengths)} different ones{part} have more than text.max_length={limit} "
            f"pieces and are cut there; the longest has {max(cut)}"
        )
