"""Fill in a canvas: the one sampler behind every task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from vdit.data.patches import patchify, unpatchify
from vdit.diffusion import Guidance, add_noise, guide
from vdit.diffusion.schedules import Schedule
from vdit.dist.rules import constrain, ways
from vdit.dit.reuse import Residuals, Reusing
from vdit.errors import ConfigError
from vdit.samplers.base import Denoise, Remembering, Sampler
from vdit.samplers.grid import Grid, resolve
from vdit.samplers.invert import invert
from vdit.tasks.canvas import Canvas, CanvasTokens, Prompts, canvas_tokens, dense_rows
from vdit.tasks.network import HIGH, LOW, Network
from vdit.tasks.reuse import Reuse, remembering
from vdit.tasks.structure import Structure
from vdit.types import Array, PyTree, Row

RUNNING = -1.0  # stands for the level that sampling is at, where slots may have levels of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a canvas is filled in; all of it static under jit.

    low_guidance: for the second transformer of a network that has two; None is `guidance`.
    known: how the network is told what is known. "clean": at noise level 0, beside the noisy rest, as models are
        trained that draw canvases. "noised": at the running level like the rest, noised to it again at every step
        (replacement; Song et al. 2021), for models that know one level for all.
    known_level: the level that known tokens are told and noised to instead of 0 (clean only). A little noise hides
        the small errors that a long rollout would add up.
    context_guidance: how strongly to follow what is known: 1 as the model says, more moves away from its prediction
        without (that frames are pure noise; history guidance, Song et al. 2025). Costs a further row (clean only).
    structure: low frequencies that are the canvas' while sampling is above a level; then its latents matter at level
        1 too. None: none are.
    reuse: when the network's blocks are passed over, for speed. None: never. Guidance then asks both rows at every
        level, also outside of its interval.
    """

    schedule: Schedule
    prediction: str
    sampler: Sampler
    grid: Grid
    guidance: Guidance
    low_guidance: Guidance | None = None
    known: Literal["clean", "noised"] = "clean"
    known_level: float = 0.0
    context_guidance: float = 1.0
    structure: Structure | None = None
    reuse: Reuse | None = None

    def __post_init__(self) -> None:
        if self.known not in ("clean", "noised"):
            raise ConfigError(f"known={self.known!r}: use 'clean' or 'noised'")
        if not 0.0 <= self.known_level < 1.0:
            raise ConfigError(f"known_level={self.known_level}: a noise level, give 0 or more and below 1")
        if self.known == "noised" and (self.known_level or self.context_guidance != 1.0):
            raise ConfigError(
                "known_level and context_guidance need a model that is told what is known (known='clean'): "
                "leave them at 0 and 1"
            )

    @property
    def rows(self) -> int:
        """Rows that the network is asked about at once, for each video."""
        guided = self.guidance.needed or (self.low_guidance is not None and self.low_guidance.needed)
        return 1 + guided + (self.context_guidance != 1.0)


def fill(
    network: Network,
    params: PyTree,
    canvas: Canvas,
    prompts: Prompts,
    negative: Prompts,
    key: Array,
    method: Method,
    *,
    noise: Array | None = None,
) -> Array:
    """Latents of the canvas, with what was not known drawn from the model: float32 [b t h w c].

    prompts and negative have the same shapes; negative is used only if there is guidance. noise: what to
    start from, float32 [b t h w c]; drawn from `key` if None. Traceable.
    """
    noise_key, sampler_key = jax.random.split(key)
    tokens = canvas_tokens(canvas, network.dit.patch)
    if noise is None:
        noise = jax.random.normal(noise_key, tokens.values.shape, jnp.float32)
    else:
        noise = patchify(noise.astype(jnp.float32), network.dit.patch)
    levels = _latent_levels(canvas, tokens, network.dit.patch)
    held = _Held(tokens=tokens, levels=levels, noise=noise, method=method, patch=network.dit.patch)
    scenes = _scenes(network, canvas, tokens, prompts, negative, noise, method)
    scene = _lay_out(jax.tree.map(_interleave, *scenes) if len(scenes) > 1 else scenes[0])
    scene = dataclasses.replace(scene, text=network.encode_text(params, scene.row))
    x = method.sampler.sample(
        _denoiser(network, params, scene, method),
        constrain(held.start(), Row.AXES["values"]),
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        key=sampler_key,
        project=held,
    )
    x = jnp.where(levels == 0, tokens.values, x)
    return unpatchify(x, tokens.grid, network.dit.patch)


def _latent_levels(canvas: Canvas, tokens: CanvasTokens, patch: tuple[int, int, int]) -> Array:
    """The level of each value of a token, which is that of its latent: float32 [b n p], or [b n 1] where all agree."""
    if canvas.level.shape[2:] == (1, 1) and patch[0] == 1:
        return tokens.level[..., None]
    return patchify(jnp.broadcast_to(canvas.level[..., None], canvas.latents.shape).astype(jnp.float32), patch)


def noise_of(
    network: Network, params: PyTree, canvas: Canvas, prompts: Prompts, key: Array, method: Method
) -> Array:
    """The noise from which the model, told what the canvas shows, would make it: float32 [b t h w c].

    prompts: what it shows. Given to `fill` as its noise, sampling begins at the grid's first level where the inverted
    latents lie, so with these prompts, Euler's method and no guidance it comes back to the canvas. Where that is known,
    beside the noise of which models are told, the noise is drawn from `key`. Traceable.
    """
    method = dataclasses.replace(
        method, guidance=Guidance(), low_guidance=None, context_guidance=1.0, known_level=0.0, structure=None,
        reuse=None,
    )
    tokens = canvas_tokens(canvas, network.dit.patch)
    (scene,) = _scenes(network, canvas, tokens, prompts, prompts, tokens.values, method)
    scene = _lay_out(scene)
    scene = dataclasses.replace(scene, text=network.encode_text(params, scene.row))
    known = (tokens.level == 0)[..., None] if method.known == "clean" else jnp.zeros((), bool)
    x = invert(
        _denoiser(network, params, scene, method),
        constrain(tokens.values, Row.AXES["values"]),
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        project=lambda x, t: jnp.where(known, tokens.values, x),
    )
    start = resolve(method.grid, method.schedule)[0]
    noise = (x - float(method.schedule.alpha(start)) * tokens.values) / float(method.schedule.sigma(start))
    drawn = jax.random.normal(key, noise.shape, jnp.float32)
    return unpatchify(jnp.where(known, drawn, noise), tokens.grid, network.dit.patch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Held:
    """What is not free: latents at or above their own level follow the canvas. A sampler's `project`.

    A token that is known in part is told the running level like those that are not, and its known latents follow to
    the end. levels: as _latent_levels has it.
    """

    tokens: CanvasTokens
    levels: Array
    noise: Array
    method: Method
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
        if self.method.known == "noised":
            return x
        lightly = given
        if self.method.known_level:
            lightly = add_noise(schedule, given, self.noise, jnp.float32(self.method.known_level))
        return jnp.where(level == 0, lightly, x)

    def _low(self, x: Array) -> Array:
        """Low frequencies of tokens [b n p]."""
        latents = unpatchify(x, self.tokens.grid, self.patch)
        return patchify(self.method.structure.low(latents), self.patch)

    def start(self) -> Array:
        """The noisiest level of a schedule may hold a little data; from noise alone is where sampling starts."""
        return self(self.noise, float(resolve(self.method.grid, self.method.schedule)[0]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
    """What the network is told beside x and the level; a video's rows lie side by side: wanted, negative, contextless.

    told: float32 [b k], the level of each slot, or RUNNING. hidden: bool [b n 1] and noise [b n p], tokens that are
    noise in this row whatever x holds; None where no row hides any.
    """

    row: Row
    told: Array
    condition: Array | None
    image: Array | None
    hidden: Array | None = None
    noise: Array | None = None
    text: Array | None = None


def _scenes(
    network: Network, canvas: Canvas, tokens: CanvasTokens, prompts: Prompts, negative: Prompts, noise: Array,
    method: Method,
) -> list[_Scene]:  # fmt: skip
    """The rows of each video, as scenes of the same shapes."""
    known = tokens.known if method.known == "clean" else jnp.zeros_like(tokens.known)
    contextless = method.context_guidance != 1.0
    hidden = (tokens.level == 0)[..., None] if contextless else None
    wanted = _Scene(
        row=_rows(network, canvas, tokens, prompts),
        told=jnp.where(known, jnp.float32(method.known_level), RUNNING),
        condition=None if canvas.condition is None else patchify(canvas.condition, network.dit.patch),
        image=canvas.image,
        hidden=None if hidden is None else jnp.zeros_like(hidden),
        noise=noise if contextless else None,
    )
    scenes = [wanted]
    if method.rows > 1 + contextless:
        scenes.append(dataclasses.replace(wanted, row=_rows(network, canvas, tokens, negative)))
    if contextless:
        scenes.append(dataclasses.replace(wanted, told=jnp.where(known, 1.0, RUNNING), hidden=hidden))
    return scenes


def _rows(network: Network, canvas: Canvas, tokens: CanvasTokens, prompts: Prompts) -> Row:
    """A model without text is told a class: the one token of its prompts (vdit.text.labels)."""
    label = None if network.uses_text else prompts.ids[:, :1]
    return dense_rows(tokens, prompts, label, first=canvas.first)


def _interleave(*parts: Array) -> Array:
    """[b ...], [b ...], ... -> [rb ...]: a video's rows lie side by side, so on the same devices of a mesh."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def _apart(x: Array, rows: int) -> list[Array]:
    """The inverse of `_interleave`."""
    parts = x.reshape(-1, rows, *x.shape[1:])
    return [parts[:, i] for i in range(rows)]


def _choose(scene: _Scene, rows: int, wanted: Sequence[int]) -> _Scene:
    """Some of each video's rows."""
    if len(wanted) == rows:
        return scene
    return jax.tree.map(lambda leaf: _interleave(*(_apart(leaf, rows)[i] for i in wanted)), scene)


def _lay_out(scene: _Scene) -> _Scene:
    """The scene where the mesh in context wants it, with padding up to tokens that it divides.

    A video's own number of tokens seldom does, and tokens that do not divide are shared out by no device.
    """
    row, axes = scene.row, Row.AXES
    extra = -row.values.shape[1] % ways("tokens")

    def laid(x: Array | None, names: tuple[str | None, ...]) -> Array | None:
        if x is None:
            return None
        return constrain(_pad(x, extra) if "tokens" in names else x, names)

    return dataclasses.replace(
        scene,
        row=Row(**{name: laid(getattr(row, name), axes[name]) for name in axes}),
        condition=laid(scene.condition, axes["values"]),
    )


def _pad(x: Array, extra: int) -> Array:
    """[b n ...] -> [b n+extra ...], with zeros."""
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2))) if extra else x


def _denoiser(network: Network, params: PyTree, scene: _Scene, method: Method) -> Denoise | Remembering:
    """denoise(x [b n p], t []): guided, by the transformer that is responsible for the level."""
    if method.reuse is not None:
        return _remembering(network, params, scene, method)
    high = _guided(network, params, scene, method, HIGH, method.guidance)
    if network.boundary is None:
        return high
    low = _guided(network, params, scene, method, LOW, method.low_guidance or method.guidance)

    def denoise(x: Array, t: Array) -> Array:
        return jax.lax.cond(method.schedule.time(t) >= network.boundary, high, low, x, t)

    return denoise


def _guided(
    network: Network, params: PyTree, scene: _Scene, method: Method, expert: str, guidance: Guidance
) -> Denoise:
    def single(x: Array, t: Array) -> Array:
        return _predict(network, params, scene, method, expert, x, t, 1)[0][0]

    def pair(x: Array, t: Array) -> tuple[Array, ...]:
        return _predict(network, params, scene, method, expert, x, t, 2)[0]

    return guide(pair, guidance, single=single) if guidance.needed else single


def _remembering(network: Network, params: PyTree, scene: _Scene, method: Method) -> Remembering:
    """The same with all rows asked at every level, so that what is kept of them is of one size."""
    row, count = scene.row, method.rows - (method.context_guidance != 1.0)

    def ask_of(expert: str, guidance: Guidance):
        def ask(x: Array, t: Array, reuse: Reusing) -> tuple[Array, Residuals]:
            told, kept = _predict(network, params, scene, method, expert, x, t, count, reuse)
            return (guide(lambda x, t: told, guidance)(x, t) if guidance.needed else told[0]), kept

        return ask

    high = low = ask_of(HIGH, method.guidance)
    if network.boundary is not None:
        low = ask_of(LOW, method.low_guidance or method.guidance)
    is_high = lambda t: method.schedule.time(t) >= (network.boundary or 0.0)  # noqa: E731
    # What is known hardly changes: only tokens at the running level count.
    moves = jnp.take_along_axis(scene.told == RUNNING, row.slot, axis=1) & (row.clip > 0)
    blank = Residuals.blank(network.dit, *row.clip.shape)
    return remembering(method.reuse, high, low, is_high, kept=blank, weight=moves.astype(jnp.float32))


def _predict(
    network: Network, params: PyTree, scene: _Scene, method: Method, expert: str, x: Array, t: Array, count: int,
    reuse: Reusing | None = None,
) -> tuple[tuple[Array, ...], Residuals | None]:  # fmt: skip
    """The network's word on the first `count` rows of each video, each moved away from the one without what is known.

    x: [b n p] -> [b n p] for each of them, and what is kept for the next call.
    """
    contextless = method.context_guidance != 1.0
    rows = (*range(count), *[method.rows - 1] * contextless)
    asked, inputs = _choose(scene, method.rows, rows), _interleave(*[x] * len(rows))
    if contextless:
        inputs = jnp.where(asked.hidden, asked.noise, inputs)
    level = jnp.where(asked.told == RUNNING, jnp.asarray(t, jnp.float32), asked.told)
    values = constrain(_pad(inputs, asked.row.clip.shape[1] - x.shape[1]), Row.AXES["values"])
    row = dataclasses.replace(asked.row, values=values)
    more = {"condition": asked.condition, "image": asked.image, "expert": expert, "reuse": reuse}
    output = network.apply(params, row, method.schedule.time(level), asked.text, **more)
    output, kept = (output, None) if reuse is None else output
    told = _apart(output[:, : x.shape[1]], len(rows))
    if contextless:
        first, *others, without = told
        strength = (method.context_guidance - 1.0) * (first - without)
        told = [prediction + strength for prediction in (first, *others)]
    return tuple(told), kept
