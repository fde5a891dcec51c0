"""The engine behind every video that is longer than one canvas: a canvas that slides along time.

    engine = SlidingCanvas(model=model, sampling=sampling, window=window)
    state = engine.init(canvas, seed)
    while not state.done:
        state, frames = engine.step(state, prompt)

The first step samples the first canvas. Each later step makes room for new groups of frames, samples them beside the
newest of what there is, and decodes them. Nothing that was made is encoded again, so there is no seam. Neither the
device nor the host keeps more of the video than one canvas.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.dist.rules import replicated, to_host
from vdit.errors import ConfigError, NumericsError, ShapeError, VditWarning
from vdit.models.network import Network
from vdit.models.vae.video import VideoVAE
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Grouping, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.kv import KVContinuation, KVMemory, canvas_keys
from vdit.sampling.programs import CanvasInput, Reference, SampleCanvas, compiled, latent_level
from vdit.seeds import key_of
from vdit.types import Array, PyTree

Cond = dict[str, Array]


class Model(Protocol):
    """What the engine needs of a model; `vdit.Generator` is one.

    params: those of `network` (vdit.models.network).
    run: what a task makes of (positive, negative) prompts, a key, noise or None, and its input, on the model's mesh
        (vdit.sampling.programs.sample).
    """

    @property
    def network(self) -> Network: ...

    @property
    def params(self) -> PyTree: ...

    @property
    def vae(self) -> VideoVAE: ...

    @property
    def mesh(self) -> Mesh: ...

    def run(
        self, task: SampleCanvas, prompts: tuple[Prompts, Prompts], key: Array, noise: Array | None, given: CanvasInput
    ) -> Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """How a canvas slides. All numbers count groups: the video frames of one frame of tokens (Grouping).

    Args:
        first: groups of the first canvas.
        context: groups that a later canvas knows, the newest that there are. Fewer at a video's beginning.
        new: groups that a later canvas makes.
        start: the position in time of a later canvas' first group: 1, and 0 where all groups are alike, the first one
            of a video too. (The first latent frame of a video stands for one frame, the others for several.)
        anchor: later canvases know the video's first group too, at position 0.
    """

    first: int
    context: int
    new: int
    start: int
    anchor: bool = False

    @classmethod
    def of(
        cls, grouping: Grouping, *, window: int, context: int | None = None, anchor: bool = False
    ) -> Window:
        """A window of video frames.

        A later canvas is one group shorter than the first where the group that a video begins with is of another
        kind: it holds the positions that are left in a video of the window's length, all that a model has seen.

        Args:
            window: frames of the first canvas.
            context: known frames of a later canvas; None is half of it. Rounded down to groups (VditWarning).

        Raises: ShapeError where a later canvas would hold no known or no new frames.
        """
        start = 0 if grouping.first == grouping.step and not anchor else 1
        count = 1 + (window - grouping.first) // grouping.step
        later = count - start
        if not cls.fits(grouping, window, anchor=anchor):
            least = grouping.first + (1 + start) * grouping.step
            raise ShapeError(
                f"window={window}: once it has slid on it holds no known frames beside new ones, give {least} or more"
            )
        most = (later - 1) * grouping.step
        if context is not None and not grouping.step <= context <= most:
            raise ShapeError(
                f"context={context}: frames known from before, in a window of {window} give {grouping.step} to {most}"
            )
        if context is not None and context % grouping.step:
            known = context // grouping.step * grouping.step
            rule = f"{grouping.step} frames are made at once"
            warnings.warn(f"context={context} is rounded down to {known}: {rule}", VditWarning, stacklevel=3)
        context = later // 2 if context is None else context // grouping.step
        return cls(first=count, context=context, new=later - context, start=start, anchor=anchor)

    @staticmethod
    def fits(grouping: Grouping, window: int, *, anchor: bool = False) -> bool:
        """Whether a window of so many frames, once it has slid on, holds a known group and a new one."""
        start = 0 if grouping.first == grouping.step and not anchor else 1
        return 1 + (window - grouping.first) // grouping.step - start >= 2

    def one_by_one(self, context: int | None = None) -> Window:
        """The same with one new group at a time. context: groups; None is as many as fit beside it."""
        most = self.context + self.new - 1
        return dataclasses.replace(self, context=most if context is None else context, new=1)


class Source(Protocol):
    """A video that is made again while the canvas slides along it. Called for frames in their order."""

    def __call__(self, frames: int) -> Reference | None:
        """The next frames, at most so many; fewer at the video's end, None after it. Of b = 1 or of every video."""


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class EditedVideo:
    """A Source, and more that is said of it.

    frames: of the video, to be read piece by piece.
    prompts: what the video shows, one for each that is made: the noise is then that from which the model would make it
        (inversion). None: noise is drawn.
    noise: float32 [b t h w c], noise of all latents of the video; None: drawn.
    """

    frames: Source
    prompts: Prompts | None = None
    noise: Array | None = None


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentMemory:
    """The newest groups, in latents.

    latents: float32 [b k*p h w c], at most one canvas of them. cond: of each of these groups, {name: [b k f]}.
    shown: the latents of the source at the same times; None without inversion. begun: the video's first group.
    forgotten: whether the video has groups that are not in `latents`.
    """

    latents: Array
    cond: Cond
    shown: Array | None
    begun: Array
    forgotten: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingState:
    """What the next step depends on. Never changed in place, so that one can go back to it.

    canvas: what the first step samples; None after it. memory: None before it. made: latent frames that there are.
    index: canvases that are finished. seed: of the whole video. encoder, decoder: caches of the VAE. cell: (h, w, c) of
    a latent frame, once it is known. done: whether the source has ended.
    """

    canvas: Canvas | None
    memory: LatentMemory | KVMemory | None
    encoder: PyTree
    decoder: PyTree
    seed: int = dataclasses.field(metadata={"static": True})
    index: int = dataclasses.field(metadata={"static": True})
    made: int = dataclasses.field(metadata={"static": True})
    cell: tuple[int, int, int] | None = dataclasses.field(default=None, metadata={"static": True})
    done: bool = dataclasses.field(default=False, metadata={"static": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fresh:
    """What a canvas holds beside what is remembered: new groups, as the source has them or of nothing.

    latents: float32 [b k*p h w c]. level: float32 [b k*p h w] or [b k*p 1 1]. frames: how many video frames count; the
    others fill up the last group. shown, noise: as LatentMemory.shown and EditedVideo.noise.
    """

    latents: np.ndarray
    level: np.ndarray
    cond: Cond
    frames: int
    shown: np.ndarray | None = None
    noise: np.ndarray | None = None


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingCanvas:
    """Makes videos of any length, some frames at a time, by one model.

    Args:
        model: the network, the VAE, their parameters, the mesh.
        sampling: how each canvas is sampled.
        window: how far the canvas reaches, and how it slides.
        memory: what is kept of finished frames. "latents": their latents, which each canvas computes again. "kv":
            the keys and values of a causal model, computed once (vdit.sampling.kv); the frames are the same but for
            rounding until the first group is forgotten; of one video at a time.
        source: a video that is made again while the canvas slides along it; None: the canvas knows what was made.

    Raises: ConfigError where this model and sampling cannot keep keys and values.
    """

    model: Model
    sampling: SamplingConfig
    window: Window
    memory: Literal["latents", "kv"] = "latents"
    source: EditedVideo | None = None

    def __post_init__(self) -> None:
        if self.memory not in ("latents", "kv"):
            raise ConfigError(f'memory={self.memory!r}: use "latents" or "kv"')
        if self.memory == "kv" and (self.source is not None or self.window.anchor):
            raise ConfigError('memory="kv" keeps what was computed once: leave out the source and the anchor')

    def init(self, canvas: Canvas | None, seed: int, *, index: int = 0) -> SlidingState:
        """The state before the first step.

        Args:
            canvas: the first canvas, which the first step samples. One of which all is known is taken as it is: then
                the first step slides on at once. None with a source, of which the first canvas is made.
            seed: of the video, from 0 to 2**64 - 1. Its first canvas is sampled by the seed's key, later ones
                by keys folded from it.
            index: the number of the first canvas.
        """
        state = SlidingState(canvas=canvas, memory=None, encoder=None, decoder=None, seed=seed, index=index, made=0)
        if canvas is None or np.asarray(canvas.level).any():
            return state
        _, decoder = self._decode(canvas.latents, None)
        return dataclasses.replace(state, decoder=decoder)

    def step(
        self, state: SlidingState, prompt: tuple[Prompts, Prompts], conditions: Cond | None = None
    ) -> tuple[SlidingState, np.ndarray]:
        """Samples the next frames.

        Args:
            prompt: (positive, negative) prompts, one each for every video; they may change from step to step.
            conditions: of each new group, {name: [b new f]}; None where nothing is done.

        Returns: the next state, and frames float32 [b t h w 3] in [-1, 1]: those of the first canvas, or of the new
            groups. After the end of a source there are none.

        Raises: NumericsError where numbers overflowed.
        """
        if state.memory is None:
            state, canvas, fresh = self._first(state, len(prompt[0].ids))
            if canvas is None:
                return state, self._no_frames(prompt)
            known = not np.asarray(canvas.level).any()
            made = np.asarray(canvas.latents) if known else self._sample(canvas, state, prompt, fresh)
            state = self._remember(state, made, canvas.cond, prompt, fresh)
            if not known or self.source is not None:
                return self._shown(state, made, fresh.frames)
        if self.memory == "kv":
            return self._step_kv(state, prompt, conditions)
        state, fresh = self._fresh(state, len(prompt[0].ids), conditions)
        if fresh is None:
            return dataclasses.replace(state, done=True), self._no_frames(prompt)
        canvas = self.canvas(state.memory, fresh)
        made = np.asarray(canvas.latents)
        if np.asarray(canvas.level).any():
            made = self._sample(canvas, state, prompt, fresh)
        made = made[:, made.shape[1] - fresh.latents.shape[1] :]
        state = self._remember(state, made, fresh.cond, prompt, fresh)
        return self._shown(state, made, fresh.frames)

    def canvas(self, memory: LatentMemory, fresh: _Fresh) -> Canvas:
        """The canvas after what is remembered: known groups, then the fresh ones.

        It has one shape from the first step on: while less has happened than it holds, the rest of it is not valid.
        """
        patch, window, kept = self._patch, self.window, memory.latents.shape[1] // self._patch
        groups = fresh.latents.shape[1] // patch
        most = window.context + window.new - groups if self.source is not None else window.context
        there = min(most, kept)
        missing = 0 if self.source is not None else window.context - there
        start = 0 if there == kept and not memory.forgotten else window.start
        valid = np.arange(missing + there + groups) >= missing
        known = _before(_newest(memory.latents, there * patch), missing * patch)
        latents = np.concatenate([known, fresh.latents], axis=1)
        level = _before(fresh.level, (missing + there) * patch)
        cond = {
            name: np.concatenate([_before(_newest(past, there), missing), fresh.cond[name]], axis=1)
            for name, past in ((name, _past_cond(memory, name, kept, value)) for name, value in fresh.cond.items())
        }
        if window.anchor:
            latents, level = np.concatenate([memory.begun, latents], axis=1), _before(level, patch)
            cond = {name: _before(value, 1) for name, value in cond.items()}
            start, valid = missing, np.concatenate([[True], valid])
        count = len(latents)
        return Canvas(
            latents=latents, level=level, cond=cond,
            valid=None if self.source is not None else np.tile(valid, (count, 1)),
            start_position=np.full(count, start - missing, np.int32),
        )  # fmt: skip

    @property
    def _patch(self) -> int:
        """Latent frames of a group."""
        return self.model.network.backbone.patch[0]

    @property
    def _stride(self) -> int:
        """Video frames of a latent frame, but for the first."""
        return self.model.vae.config.temporal_stride

    def _frames_of(self, latent_frames: int, *, first: bool) -> int:
        return 1 + (latent_frames - 1) * self._stride if first else latent_frames * self._stride

    def _first(self, state: SlidingState, count: int) -> tuple[SlidingState, Canvas | None, _Fresh | None]:
        """The first canvas: the one that was given, or what the source begins with."""
        if state.canvas is not None:
            canvas, length = state.canvas, state.canvas.latents.shape[1]
            frames = self._frames_of(length, first=True)
            return state, canvas, _Fresh(latents=canvas.latents, level=canvas.level, cond=canvas.cond, frames=frames)
        state, fresh = self._read(state, self.window.first, count)
        if fresh is None:
            return dataclasses.replace(state, done=True), None, None
        return state, Canvas(latents=fresh.latents, level=fresh.level, cond=fresh.cond), fresh

    def _fresh(self, state: SlidingState, count: int, cond: Cond | None) -> tuple[SlidingState, _Fresh | None]:
        """What a later canvas holds beside what is remembered."""
        if self.source is not None:
            return self._read(state, self.window.new, count)
        length, cell = self.window.new * self._patch, state.memory.latents.shape[2:]
        cond = {} if cond is None else cond
        latents, level = np.zeros((count, length, *cell), np.float32), np.ones((count, length, 1, 1), np.float32)
        frames = self._frames_of(length, first=False)
        return state, _Fresh(latents=latents, level=level, cond=cond, frames=frames)


    def _read(self, state: SlidingState, groups: int, count: int) -> tuple[SlidingState, _Fresh | None]:
        """The next groups of the source, fewer at its end; None after it."""
        first, patch, stride = state.made == 0, self._patch, self._stride
        asked = self._frames_of(groups * patch, first=first)
        known = self.source.frames(asked)
        if known is None or not known.video.shape[1]:
            return state, None
        frames = known.video.shape[1]
        least = self._frames_of(patch, first=True) if first else 0
        whole = least + -(-max(0, frames - least) // (patch * stride)) * patch * stride
        # Later ones all of one length, so that the encoder is compiled once.
        known = _longer(known, whole if first else asked)
        latents, encoder = self._on_mesh(self.model.vae.encode_chunk, known.video, state.encoder)
        level = np.asarray(known.level)
        if not first:  # a frame of the latent frame before stands in for the one that begins a clip
            level = np.concatenate([level[:, :1], level], axis=1)
        level = np.asarray(latent_level(self.model.vae.config, level))[:, 0 if first else 1 :]
        length = 1 + (whole - 1) // stride if first else whole // stride
        latents, level = (np.broadcast_to(x, (count, *x.shape[1:]))[:, :length] for x in (to_host(latents), level))
        noise = self.source.noise
        if noise is not None:
            noise = np.asarray(noise, np.float32)[:, state.made : state.made + length]
            if noise.shape != latents.shape:
                raise ShapeError(f"noise ends before the video does: it needs {state.made + length} latent frames")
        fresh = _Fresh(
            latents=latents, level=level, cond={}, frames=frames,
            shown=None if self.source.prompts is None else latents, noise=noise,
        )  # fmt: skip
        return dataclasses.replace(state, encoder=encoder), fresh

    def _key(self, state: SlidingState) -> Array:
        key = key_of(state.seed)
        return jax.random.fold_in(key, state.index - 1) if state.index else key

    def _sample(
        self, canvas: Canvas, state: SlidingState, prompt: tuple[Prompts, Prompts], fresh: _Fresh
    ) -> np.ndarray:
        """Latents of a canvas."""
        key, noise = self._key(state), fresh.noise
        if state.memory is not None:
            key, own, others = canvas_keys(key)
            others = np.array(jax.random.normal(others, canvas.latents.shape, jnp.float32))
            own = jax.random.normal(own, fresh.latents.shape, jnp.float32) if noise is None else noise
            others[:, others.shape[1] - own.shape[1] :] = own
            noise = others
        given = CanvasInput(canvas=canvas)
        if self.source is not None and self.source.prompts is not None:
            shown = fresh.shown
            if state.memory is not None:
                head = _newest(state.memory.shown, canvas.latents.shape[1] - shown.shape[1])
                shown = np.concatenate([head, shown], axis=1)
            given = CanvasInput(canvas=canvas, source=self.source.prompts, shown=shown)
        task = SampleCanvas(network=self.model.network, method=self.sampling, output_shape=canvas.latents.shape[1:])
        made = to_host(self.model.run(task, prompt, key, noise, given))
        if not np.isfinite(made).all():
            raise NumericsError(OVERFLOW)
        return made

    def _remember(
        self, state: SlidingState, made: np.ndarray, cond: Cond, prompt: tuple[Prompts, Prompts], fresh: _Fresh
    ) -> SlidingState:
        """With new latents that are finished."""
        index = state.index + 1
        if self.memory == "kv":
            begin, _ = self._kv_programs(made.shape[2:])
            memory = self._on_mesh(begin, self.model.params, *prompt, self._key(state), made, cond.get("action"))
            return dataclasses.replace(state, canvas=None, memory=memory, index=index, cell=made.shape[2:])
        before, most = state.memory, self.window.context + (self.window.new if self.source is not None else 0)
        if before is None:
            before = LatentMemory(
                latents=made[:, :0], cond={},
                shown=None if fresh.shown is None else fresh.shown[:, :0], begun=made[:, : self._patch].copy(),
                forgotten=False,
            )  # fmt: skip
        grown = lambda old, new, count: _newest(np.concatenate([old, new], axis=1), count)  # noqa: E731
        length = most * self._patch
        memory = LatentMemory(
            latents=grown(before.latents, made, length),
            cond={
                name: grown(_past_cond(before, name, before.latents.shape[1] // self._patch, value), value, most)
                for name, value in cond.items()
            },
            shown=None if before.shown is None else grown(before.shown, fresh.shown, length),
            begun=before.begun,
            forgotten=before.forgotten or before.latents.shape[1] + made.shape[1] > length,
        )
        return dataclasses.replace(state, canvas=None, memory=memory, index=index)

    def _step_kv(
        self, state: SlidingState, prompt: tuple[Prompts, Prompts], cond: Cond | None
    ) -> tuple[SlidingState, np.ndarray]:
        """A step beside keys and values: sampled and remembered in one program."""
        cond = {} if cond is None else cond
        _, advance = self._kv_programs(state.cell)
        inputs = *prompt, self._key(state), state.memory, cond.get("action")
        made, memory = self._on_mesh(advance, self.model.params, *inputs)
        made = to_host(made)
        if not np.isfinite(made).all():
            raise NumericsError(OVERFLOW)
        state = dataclasses.replace(state, memory=memory, index=state.index + 1)
        return self._shown(state, made, self._frames_of(made.shape[1], first=False))

    def _kv_programs(self, cell: tuple[int, int, int]):
        continuation = KVContinuation(
            network=self.model.network, method=self.sampling, capacity=self.window.context, new=self.window.new,
            cell=cell,
        )  # fmt: skip
        sharding = replicated(self.model.mesh)
        return compiled(continuation, sharding, "begin"), compiled(continuation, sharding, "advance")

    def _shown(self, state: SlidingState, made: np.ndarray, frames: int) -> tuple[SlidingState, np.ndarray]:
        """New latents as frames."""
        video, decoder = self._decode(made, state.decoder)
        return dataclasses.replace(state, decoder=decoder, made=state.made + made.shape[1]), video[:, :frames]

    def _decode(self, latents: Array, cache: PyTree) -> tuple[np.ndarray, PyTree]:
        video, cache = self._on_mesh(self.model.vae.decode_chunk, latents, cache)
        return to_host(video), cache

    def _on_mesh(self, function: Callable, *inputs):
        with jax.set_mesh(self.model.mesh):
            return function(*inputs)

    def _no_frames(self, prompt: tuple[Prompts, Prompts]) -> np.ndarray:
        return np.zeros((len(prompt[0].ids), 0, 0, 0, 3), np.float32)


OVERFLOW = (
    "what was sampled holds NaN or infinity, though weights and statistics do not: compute in float32 "
    "(--compute float32), or lower the guidance"
)


def _past_cond(memory: LatentMemory, name: str, groups: int, like: Array) -> np.ndarray:
    """A condition of the groups that are remembered; zeros, nothing done, where it was not said."""
    if name in memory.cond:
        return memory.cond[name]
    return np.zeros((len(like), groups, *np.shape(like)[2:]), np.float32)


def _newest(x: Array, count: int) -> Array:
    """The last `count` along the second axis."""
    return x[:, max(0, x.shape[1] - count) :]


def _before(x: Array, count: int) -> np.ndarray:
    """With `count` zeros before it, along the second axis."""
    return np.pad(x, ((0, 0), (count, 0), *[(0, 0)] * (x.ndim - 2)))


def _longer(known: Reference, frames: int) -> Reference:
    """Filled up with its last frame."""
    more = frames - known.video.shape[1]
    last = lambda x: np.concatenate([x, np.repeat(np.asarray(x[:, -1:]), more, axis=1)], axis=1)  # noqa: E731
    return dataclasses.replace(known, video=last(known.video), level=last(known.level)) if more else known


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSchedule:
    """Prompts over time.

    parts: (seconds, prompt), the first from 0 on, each until the next.
    """

    parts: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, prompts: str | Sequence[tuple[float, str]]) -> PromptSchedule:
        """A text, or pairs in the order of their times; ConfigError for anything else."""
        parts = ((0.0, prompts),) if isinstance(prompts, str) else tuple(prompts)
        pairs = [part for part in parts if isinstance(part, Sequence) and len(part) == 2 and isinstance(part[1], str)]
        if not parts or len(pairs) < len(parts) or any(isinstance(part, str) for part in parts):
            raise ConfigError(f"prompts={prompts!r}: give a text, or pairs as in [(0.0, 'a dog'), (10.0, 'a cat')]")
        times = [float(time) for time, _ in pairs]
        if times[0] != 0 or not all(a < b < float("inf") for a, b in itertools.pairwise(times)):
            shown = ", ".join(f"{time:g}" for time in times)
            raise ConfigError(f"prompts at {shown} s: the first must be at 0, and each later than the one before")
        return cls(parts=tuple(zip(times, (text for _, text in pairs))))

    def at(self, time: float) -> str:
        """The prompt at a time in seconds."""
        return [text for start, text in self.parts if start <= time + 1e-6][-1]

    def __iter__(self) -> Iterator[tuple[float, str]]:
        return iter(self.parts)
