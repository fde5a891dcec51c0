"""Fill in a canvas: the one sampler behind every task."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vdit.data.patches import patchify, unpatchify
from vdit.diffusion import Guidance, add_noise, guide
from vdit.dist.rules import constrain
from vdit.models.cache import BlockCall, Residuals
from vdit.models.network import HIGH, LOW, Network
from vdit.reprs import short_repr
from vdit.samplers.base import Denoise, Segment, StatefulDenoiser
from vdit.samplers.grid import resolve
from vdit.samplers.invert import invert
from vdit.sampling.canvas import Canvas, CanvasTokens, Prompts, canvas_tokens
from vdit.sampling.config import SamplingConfig, remembering
from vdit.sampling.guidance import RUNNING, GuidanceBatch, choose, guidance_batch, pad, split_guidance, stack_guidance
from vdit.types import Array, PyTree, Row


def denoise(
    network: Network,
    params: PyTree,
    canvas: Canvas,
    prompts: Prompts,
    negative: Prompts,
    key: Array,
    method: SamplingConfig,
    *,
    noise: Array | None = None,
) -> Array:
    """Latents of the canvas, with what was not known drawn from the model: float32 [b t h w c].

    prompts and negative have the same shapes; negative is used only if there is guidance. noise: what to
    start from, float32 [b t h w c]; drawn from `key` if None. Traceable.
    """
    filling = begin_filling(network, params, canvas, prompts, negative, key, method, noise=noise)
    held, denoiser = _posed(network, params, filling, method)
    return held.latents(_sampled(denoiser, held, filling, method))


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """A canvas that is about to be filled.

    canvas: what is known. noise: tokens float32 [b n p] to start from. batch: what the network is told, its text
    encoded. key: of the sampler.
    """

    canvas: Canvas
    noise: Array
    batch: GuidanceBatch
    key: Array


def begin_filling(
    network: Network, params: PyTree, canvas: Canvas, prompts: Prompts, negative: Prompts, key: Array,
    method: SamplingConfig, *, noise: Array | None = None,
) -> Filling:  # fmt: skip
    """All that comes before the steps of `denoise`, whose arguments these are. Traceable."""
    noise_key, sampler_key = jax.random.split(key)
    tokens = canvas_tokens(canvas, network.backbone.patch)
    if noise is None:
        noise = jax.random.normal(noise_key, tokens.values.shape, jnp.float32)
    else:
        noise = patchify(noise.astype(jnp.float32), network.backbone.patch)
    batch = guidance_batch(network, params, canvas, tokens, prompts, negative, noise, method)
    return Filling(canvas=canvas, noise=noise, batch=batch, key=sampler_key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledStep:
    """Where sampling stands after some calls of the network.

    state: the sampler's, for the next call. calls: of the network, to the end. latents, estimate: float32
    [b t h w c], as they are and as the network expects them; estimate is None before the first call.
    """

    state: PyTree
    calls: int
    latents: Array
    estimate: Array | None


def step_filling(
    network: Network, params: PyTree, filling: Filling, method: SamplingConfig, *, state: PyTree = None,
    start: Array | int = 0, count: int = 1,
) -> FilledStep:  # fmt: skip
    """Some calls of the network, of those that `denoise` makes. Traceable.

    Args:
        network, params, method: as of `denoise`.
        filling: of `begin_filling`.
        state: of the step before; None at the beginning.
        start: int32 [], how many calls there were before.
        count: how many calls are made; 0 gives the state before the first.
    """
    held, denoiser = _posed(network, params, filling, method)
    segment = Segment(denoiser=denoiser, state=state, start=start, count=count)
    x = _sampled(segment, held, filling, method)
    estimate = None if segment.estimate is None else held.latents(segment.estimate)
    return FilledStep(state=segment.state, calls=segment.calls, latents=held.latents(x), estimate=estimate)


def _posed(
    network: Network, params: PyTree, filling: Filling, method: SamplingConfig
) -> tuple[_Known, Denoise | StatefulDenoiser]:
    """(what is known, the denoiser) of a canvas."""
    tokens = canvas_tokens(filling.canvas, network.backbone.patch)
    levels = _latent_levels(filling.canvas, tokens, network.backbone.patch)
    held = _Known(tokens=tokens, levels=levels, noise=filling.noise, method=method, patch=network.backbone.patch)
    return held, make_denoiser(network, params, filling.batch, method)


def _sampled(
    denoiser: Denoise | StatefulDenoiser | Segment, held: _Known, filling: Filling, method: SamplingConfig
) -> Array:
    """Tokens after the sampler's calls."""
    return method.sampler.sample(
        denoiser,
        constrain(held.start(), Row.AXES["values"]),
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        key=filling.key,
        project=held,
    )


def _latent_levels(canvas: Canvas, tokens: CanvasTokens, patch: tuple[int, int, int]) -> Array:
    """The level of each value of a token, which is that of its latent: float32 [b n p], or [b n 1] where all agree."""
    if canvas.level.shape[2:] == (1, 1) and patch[0] == 1:
        return tokens.level[..., None]
    return patchify(jnp.broadcast_to(canvas.level[..., None], canvas.latents.shape).astype(jnp.float32), patch)


def inverted_noise(
    network: Network, params: PyTree, canvas: Canvas, prompts: Prompts, key: Array, method: SamplingConfig
) -> Array:
    """The noise from which the model, told what the canvas shows, would make it: float32 [b t h w c].

    prompts: what it shows. With this as the noise of `denoise`, sampling begins at the first level where the inverted
    latents lie, so with these prompts, Euler's method and no guidance it comes back to the canvas. Where that is known,
    beside the noise of which models are told, the noise is drawn from `key`. Traceable.
    """
    method = dataclasses.replace(
        method, guidance=Guidance(), low_guidance=None, context_guidance=1.0, known_level=0.0, structure=None,
        reuse=None,
    )
    tokens = canvas_tokens(canvas, network.backbone.patch)
    batch = guidance_batch(network, params, canvas, tokens, prompts, prompts, tokens.values, method)
    known = (tokens.level == 0)[..., None] if method.conditioning == "clean" else jnp.zeros((), bool)
    x = invert(
        make_denoiser(network, params, batch, method),
        constrain(tokens.values, Row.AXES["values"]),
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        project=lambda x, t: jnp.where(known, tokens.values, x),
    )
    start = resolve(method.grid, method.schedule)[0]
    noise = (x - float(method.schedule.alpha(start)) * tokens.values) / float(method.schedule.sigma(start))
    drawn = jax.random.normal(key, noise.shape, jnp.float32)
    return unpatchify(jnp.where(known, drawn, noise), tokens.grid, network.backbone.patch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """What is not free: latents at or above their own level follow the canvas. A sampler's `project`.

    A token that is known in part is told the running level like those that are not, and its known latents follow to
    the end. levels: as _latent_levels has it.
    """

    tokens: CanvasTokens
    levels: Array
    noise: Array
    method: SamplingConfig
    patch: tuple[int, int, int]

    def __call__(self, x: Array, t: Array | float) -> Array:
        level, schedule, given = self.tokens.level[..., None], self.method.schedule, self.tokens.values
        noised = add_noise(schedule, given, self.noise, jnp.float32(t))
        # The margins are for levels that float32 rounds to either side of a grid's.
        if self.method.structure is not None:
            # What is known may lie in x without noise: it has no part in the difference.
            more = self._low(jnp.where(level == 0, 0.0, noised - x))
            x = jnp.where(t > self.method.structure.until - 1e-6, x + more, x)
        follows = (self.levels < 1.0) & (t > self.levels - 1e-6)
        x = jnp.where(follows, noised, x)
        if self.method.conditioning == "replacement":
            return x
        lightly = given
        if self.method.known_level:
            lightly = add_noise(schedule, given, self.noise, jnp.float32(self.method.known_level))
        return jnp.where(level == 0, lightly, x)

    def _low(self, x: Array) -> Array:
        """Low frequencies of tokens [b n p]."""
        latents = unpatchify(x, self.tokens.grid, self.patch)
        return patchify(self.method.structure.low(latents), self.patch)

    def latents(self, x: Array) -> Array:
        """Latents [b t h w c] of tokens, with what is known put back."""
        return unpatchify(jnp.where(self.levels == 0, self.tokens.values, x), self.tokens.grid, self.patch)

    def start(self) -> Array:
        """The noisiest level of a schedule may hold a little data; from noise alone is where sampling starts."""
        return self(self.noise, float(resolve(self.method.grid, self.method.schedule)[0]))


def make_denoiser(
    network: Network, params: PyTree, batch: GuidanceBatch, method: SamplingConfig
) -> Denoise | StatefulDenoiser:
    """denoise(x [b n p], t []): guided, by the transformer that is responsible for the level."""
    if method.reuse is not None:
        return _remembering(network, params, batch, method)
    high = _guided(network, params, batch, method, HIGH, method.guidance)
    if network.boundary is None:
        return high
    low = _guided(network, params, batch, method, LOW, method.low_guidance or method.guidance)

    def denoise(x: Array, t: Array) -> Array:
        return jax.lax.cond(method.schedule.time(t) >= network.boundary, high, low, x, t)

    return denoise


def _guided(
    network: Network, params: PyTree, batch: GuidanceBatch, method: SamplingConfig, expert: str, guidance: Guidance
) -> Denoise:
    ask = _Predictor(network=network, params=params, batch=batch, method=method, expert=expert)
    single = lambda x, t: ask.predictions(x, t, 1)[0]  # noqa: E731
    return guide(functools.partial(ask.predictions, count=2), guidance, single=single) if guidance.needed else single


def _remembering(network: Network, params: PyTree, batch: GuidanceBatch, method: SamplingConfig) -> StatefulDenoiser:
    """The same with all rows asked at every level, so that what is kept of them is of one size."""
    row = batch.row

    def ask_of(expert: str, guidance: Guidance):
        predictor = _Predictor(network=network, params=params, batch=batch, method=method, expert=expert)

        def ask(x: Array, t: Array, call: BlockCall) -> tuple[Array, Residuals]:
            predictions, kept = predictor.with_residuals(x, t, call)
            return (guide(lambda x, t: predictions, guidance)(x, t) if guidance.needed else predictions[0]), kept

        return ask

    high = low = ask_of(HIGH, method.guidance)
    if network.boundary is not None:
        low = ask_of(LOW, method.low_guidance or method.guidance)
    is_high = lambda t: method.schedule.time(t) >= (network.boundary or 0.0)  # noqa: E731
    # What is known hardly changes: only tokens at the running level count.
    moves = jnp.take_along_axis(batch.timesteps == RUNNING, row.frame_index, axis=1) & (row.segment_ids > 0)
    blank = network.backbone.empty_residuals(*row.segment_ids.shape)
    return remembering(method.reuse, high, low, is_high, kept=blank, weight=moves.astype(jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Predictor:
    """What one transformer predicts of the rows of each video; with context_guidance, each is moved away from the row
    that knows nothing of the context.

    Args:
        network, params: of the model.
        batch: every row of each video.
        method: how many rows a video has, and the strength of context_guidance.
        expert: which transformer (vdit.models.network).
    """

    network: Network
    params: PyTree
    batch: GuidanceBatch
    method: SamplingConfig
    expert: str

    @property
    def contextless(self) -> bool:
        return self.method.context_guidance != 1.0

    def predictions(self, x: Array, t: Array, count: int) -> tuple[Array, ...]:
        """The first `count` rows' predictions at the level t []: [b n p] -> [b n p] each."""
        output = self.network.apply(*self._inputs(x, t, count), expert=self.expert)
        return self._split(output.prediction[:, : x.shape[1]], count)

    def with_residuals(self, x: Array, t: Array, call: BlockCall) -> tuple[tuple[Array, ...], Residuals]:
        """The predictions of all rows, and what is kept of this call for the next one."""
        count = self.method.rows - self.contextless
        output = self.network.apply(*self._inputs(x, t, count), expert=self.expert, block_cache=call)
        return self._split(output.prediction[:, : x.shape[1]], count), output.residuals

    def _inputs(self, x: Array, t: Array, count: int) -> tuple[PyTree, Row, Array, Array | None]:
        """Arguments of Network.apply: parameters, row, time and encoded text."""
        method = self.method
        rows = (*range(count), *[method.rows - 1] * self.contextless)
        asked, inputs = choose(self.batch, method.rows, rows), stack_guidance(*[x] * len(rows))
        if self.contextless:
            inputs = jnp.where(asked.hidden, asked.noise, inputs)
        level = jnp.where(asked.timesteps == RUNNING, jnp.asarray(t, jnp.float32), asked.timesteps)
        values = constrain(pad(inputs, asked.row.segment_ids.shape[1] - x.shape[1]), Row.AXES["values"])
        return self.params, dataclasses.replace(asked.row, values=values), method.schedule.time(level), asked.text

    def _split(self, output: Array, count: int) -> tuple[Array, ...]:
        predictions = split_guidance(output, count + self.contextless)
        if self.contextless:
            first, *others, without = predictions
            strength = (self.method.context_guidance - 1.0) * (first - without)
            predictions = [prediction + strength for prediction in (first, *others)]
        return tuple(predictions)
