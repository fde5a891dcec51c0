"""Fill in a canvas: the one sampler behind every task."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.data.patches import patchify, unpatchify
from vdit.diffusion import Guidance, guide
from vdit.diffusion.schedules import Schedule
from vdit.dist.rules import constrain, ways
from vdit.samplers.base import Denoise, Sampler
from vdit.samplers.grid import Grid
from vdit.tasks.canvas import Canvas, Prompts, canvas_tokens, dense_rows
from vdit.tasks.network import HIGH, LOW, Network
from vdit.types import Array, PyTree, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a canvas is filled in; all of it static under jit.

    low_guidance: for the second transformer of a network that has two; None is `guidance`.
    """

    schedule: Schedule
    prediction: str
    sampler: Sampler
    grid: Grid
    guidance: Guidance
    low_guidance: Guidance | None = None


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
    given, known, grid = canvas_tokens(canvas, network.dit.patch)
    row = _rows(network, given, grid, prompts)
    keep = known[:, row.slot[0]][..., None]
    if noise is None:
        start = jax.random.normal(noise_key, given.shape, jnp.float32)
    else:
        start = patchify(noise.astype(jnp.float32), network.dit.patch)
    # The noisiest level of a schedule may hold a little data; from noise alone is where sampling starts.
    x = constrain(jnp.where(keep, given, start), Row.AXES["values"])

    scene = _Scene(row=row, known=known, condition=_fold(canvas.condition, network), image=canvas.image, text=None)
    if method.guidance.needed or (method.low_guidance is not None and method.low_guidance.needed):
        other = dataclasses.replace(scene, row=_rows(network, given, grid, negative))
        scene = jax.tree.map(_interleave, scene, other)
    scene = _lay_out(scene)
    scene = dataclasses.replace(scene, text=network.encode_text(params, scene.row))
    x = method.sampler.sample(
        _denoiser(network, params, scene, method),
        x,
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        key=sampler_key,
        project=lambda x, t: jnp.where(keep, given, x),
    )
    return unpatchify(x, grid, network.dit.patch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
    """What the network is told beside x and the level; with guidance, each row is followed by its negative one."""

    row: Row
    known: Array
    condition: Array | None
    image: Array | None
    text: Array | None


def _rows(network: Network, values: Array, grid: tuple[int, int, int], prompts: Prompts) -> Row:
    """A model without text is told a class: the one token of its prompts (vdit.text.labels)."""
    return dense_rows(values, grid, prompts, None if network.uses_text else prompts.ids[:, :1])


def _fold(condition: Array | None, network: Network) -> Array | None:
    return None if condition is None else patchify(condition, network.dit.patch)


def _interleave(a: Array, b: Array) -> Array:
    """[b ...], [b ...] -> [2b ...]: a video's two rows lie side by side, so on the same devices of a mesh."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _halves(x: Array) -> tuple[Array, Array]:
    """The inverse of `_interleave`."""
    pairs = x.reshape(-1, 2, *x.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def _lay_out(scene: _Scene) -> _Scene:
    """The scene where the mesh in context wants it, with padding up to tokens that it divides.

    A video's own number of tokens seldom does, and tokens that do not divide are shared out by no device.
    """
    row, axes = scene.row, Row.AXES
    extra = -row.values.shape[1] % ways("tokens")
    fields = {
        name: constrain(_pad(getattr(row, name), extra) if "tokens" in axes[name] else getattr(row, name), axes[name])
        for name in axes
    }
    condition = scene.condition
    if condition is not None:
        condition = constrain(_pad(condition, extra), axes["values"])
    return dataclasses.replace(scene, row=Row(**fields), condition=condition)


def _pad(x: Array, extra: int) -> Array:
    """[b n ...] -> [b n+extra ...], with zeros."""
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2))) if extra else x


def _denoiser(network: Network, params: PyTree, scene: _Scene, method: Method) -> Denoise:
    """denoise(x [b n p], t []): guided, by the transformer that is responsible for the level."""
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
    def predict(scene: _Scene, x: Array, t: Array) -> Array:
        time = jnp.broadcast_to(jnp.asarray(method.schedule.time(t), jnp.float32), scene.known.shape)
        time = jnp.where(scene.known, jnp.float32(method.schedule.time(0.0)), time)
        values = constrain(_pad(x, scene.row.clip.shape[1] - x.shape[1]), Row.AXES["values"])
        row = dataclasses.replace(scene.row, values=values)
        more = {"condition": scene.condition, "image": scene.image, "expert": expert}
        return network.apply(params, row, time, scene.text, **more)[:, : x.shape[1]]

    def alone(x: Array, t: Array) -> Array:
        first = scene if scene.known.shape[0] == x.shape[0] else jax.tree.map(lambda leaf: _halves(leaf)[0], scene)
        return predict(first, x, t)

    def pair(x: Array, t: Array) -> tuple[Array, Array]:
        return _halves(predict(scene, _interleave(x, x), t))

    if not guidance.needed:
        return alone
    return guide(pair, guidance, single=alone)
