"""Text to video for clips of several sizes at once: side by side in rows of tokens, as in training.

One compiled step serves every mix of sizes and lengths that fits into the rows. Each clip comes out as it does alone,
up to rounding: attention never crosses clips.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.data.patches import grid_position, patchify, token_grid, unpatchify
from vdit.models.network import Network
from vdit.reprs import short_repr
from vdit.samplers.base import Segment
from vdit.sampling.canvas import Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import make_denoiser
from vdit.sampling.guidance import RUNNING, GuidanceBatch, stack_guidance
from vdit.sampling.programs import Parameters, TextToVideo, compiled
from vdit.sampling.stepwise import SampledStep, Stepwise, Watch
from vdit.types import Array, PyTree, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSize:
    """What one packed row has room for.

    Attributes:
        tokens: of all clips. frames: of tokens, of all clips. clips: at most. text: tokens of one caption.
    """

    tokens: int
    frames: int
    clips: int
    text: int

    def rows(self, grids: Sequence[tuple[int, int, int]]) -> list[list[int]] | None:
        """Which clips go into which row, the largest first; None where one is too large for any.

        grids: tokens of each clip along t, h, w.
        """
        rows: list[list[int]] = []
        for clip in sorted(range(len(grids)), key=lambda i: -math.prod(grids[i])):
            if math.prod(grids[clip]) > self.tokens or grids[clip][0] > self.frames:
                return None
            for row in rows:
                tokens, frames = (sum(f(grids[i]) for i in (*row, clip)) for f in (math.prod, lambda g: g[0]))
                if len(row) < self.clips and tokens <= self.tokens and frames <= self.frames:
                    row.append(clip)
                    break
            else:
                rows.append([clip])
        return rows


def packs(network: Network, method: SamplingConfig, mesh: Mesh) -> bool:
    """Whether clips of this model may go side by side: it is told of text alone, and one device has the rows."""
    return (
        network.uses_text and not network.spec.conditions and network.vision is None and method.reuse is None
        and method.context_guidance == 1.0 and mesh.size == 1
    )  # fmt: skip


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSteps:
    """The programs: what is compiled, once for each number of rows of one size."""

    network: Network
    method: SamplingConfig

    def begin(self, params: PyTree, rows: tuple[Row, ...], noise: Array) -> tuple[GuidanceBatch, PyTree, Array]:
        """(What the network is told, the sampler's first state, calls []). rows: positive, and negative if guided."""
        row = jax.tree.map(stack_guidance, *rows) if len(rows) > 1 else rows[0]
        timesteps = jnp.full(row.frame_segment_ids.shape, RUNNING, jnp.float32)
        batch = GuidanceBatch(row=row, timesteps=timesteps, text=self.network.encode_text(params, row))
        segment = self._run(params, batch, noise, Segment(denoiser=None, count=0))[0]
        return batch, segment.state, jnp.int32(segment.calls)

    def advance(
        self, params: PyTree, batch: GuidanceBatch, noise: Array, carry: PyTree, start: Array
    ) -> tuple[PyTree, Array, Array]:
        """Call `start` [] of the network: (the state after it, tokens as they are, tokens as expected)."""
        segment, x = self._run(params, batch, noise, Segment(denoiser=None, state=carry, start=start))
        return segment.state, x, segment.estimate

    def _run(self, params: PyTree, batch: GuidanceBatch, noise: Array, segment: Segment) -> tuple[Segment, Array]:
        method = self.method
        segment.denoiser = make_denoiser(self.network, params, batch, method)
        x = method.sampler.sample(
            segment, noise, schedule=method.schedule, prediction=method.prediction, grid=method.grid, key=None
        )
        return segment, x


def sample_packed(
    tasks: Sequence[TextToVideo],
    mesh: Mesh,
    parameters: Parameters,
    prompts: tuple[Prompts, Prompts],
    noise: Sequence[Array],
    *,
    size: RowSize,
    watch: Watch,
) -> list[np.ndarray]:
    """Videos of one method and of any sizes.

    Args:
        tasks: of each video; all have one network and one method.
        mesh: of one device.
        parameters: of the model.
        prompts: (positive, negative), one for each video.
        noise: float32 [t' h' w' c] of each: the latents to start from.
        size: of a row.
        watch: called after each call of the network, with an estimate that is indexed by video: [t' h' w' c].

    Returns:
        float32 [t h w 3] of each.
    """
    network, method = tasks[0].network, tasks[0].method
    patch = network.backbone.patch
    grids = [token_grid((1, *task.latent_shape), patch) for task in tasks]
    places = size.rows(grids)
    values = [np.asarray(patchify(jnp.asarray(one)[None], patch))[0] for one in noise]
    kinds = prompts if method.rows > 1 else prompts[:1]
    rows = tuple(_rows(places, grids, values, of, size) for of in kinds)
    start = jnp.asarray(rows[0].values)
    rows = jax.tree.map(jnp.asarray, rows)
    spans = _spans(places, grids)
    steps = PackedSteps(network=network, method=method)
    with jax.set_mesh(mesh):
        batch, carry, calls = compiled(steps, None, "begin")(parameters.network, rows, start)
    tokens = start
    for call in range(int(calls)):
        with jax.set_mesh(mesh):
            advance = compiled(steps, None, "advance")
            carry, tokens, expected = advance(parameters.network, batch, start, carry, jnp.int32(call))
            jax.block_until_ready(tokens)
        watch(SampledStep(done=call + 1, calls=int(calls), estimate=_Clips(expected, spans, grids, patch)))
    with jax.set_mesh(mesh):
        clips, videos = _Clips(tokens, spans, grids, patch), []
        for number, task in enumerate(tasks):
            finish = compiled(Stepwise(task=task), None, "finish")
            videos.append(np.asarray(finish(parameters.vae, parameters.statistics, clips[number][None]))[0])
    return videos


@dataclasses.dataclass(frozen=True)
class _Clips:
    """Clips of packed tokens [r n p]: indexed by number, latents float32 [t h w c]."""

    tokens: Array
    spans: list[tuple[int, int, int]]
    grids: Sequence[tuple[int, int, int]]
    patch: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: int) -> Array:
        row, start, stop = self.spans[number]
        return unpatchify(self.tokens[row : row + 1, start:stop], self.grids[number], self.patch)[0]


def _spans(places: list[list[int]], grids: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(row, first token, end) of each clip."""
    spans = [(0, 0, 0)] * len(grids)
    for row, clips in enumerate(places):
        at = 0
        for clip in clips:
            spans[clip] = (row, at, at + math.prod(grids[clip]))
            at = spans[clip][2]
    return spans


def _rows(
    places: list[list[int]], grids: Sequence[tuple[int, int, int]], values: Sequence[np.ndarray], prompts: Prompts,
    size: RowSize,
) -> Row:  # fmt: skip
    """Packed rows [r n ...], a power of two of them so that few programs are compiled."""
    count = 1 << (len(places) - 1).bit_length()
    text = size.clips * size.text
    row = {
        "values": np.zeros((count, size.tokens, values[0].shape[-1]), np.float32),
        "position": np.zeros((count, size.tokens, 3), np.int32),
        "segment_ids": np.zeros((count, size.tokens), np.int32),
        "frame_index": np.zeros((count, size.tokens), np.int32),
        "frame_segment_ids": np.zeros((count, size.frames), np.int32),
        "text": np.zeros((count, text), np.int32),
        "text_segment_ids": np.zeros((count, text), np.int32),
        "text_position": np.zeros((count, text), np.int32),
    }
    for r, clips in enumerate(places):
        at = frame = 0
        for number, clip in enumerate(clips, 1):
            position, length = np.asarray(grid_position(grids[clip])), int(prompts.length[clip])
            here = slice(at, at + len(position))
            row["values"][r, here] = values[clip]
            row["position"][r, here] = position
            row["segment_ids"][r, here] = number
            row["frame_index"][r, here] = position[:, 0] + frame
            row["frame_segment_ids"][r, frame : frame + grids[clip][0]] = number
            words = slice((number - 1) * size.text, (number - 1) * size.text + length)
            row["text"][r, words] = prompts.ids[clip][:length]
            row["text_segment_ids"][r, words] = number
            row["text_position"][r, words] = np.arange(length)
            at, frame = here.stop, frame + grids[clip][0]
    return Row(**row)
