"""Fill in a canvas: the one sampler behind every task."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.data.patches import unpatchify
from vdit.diffusion import Guidance, guide
from vdit.diffusion.schedules import Schedule
from vdit.samplers.base import Sampler
from vdit.samplers.grid import Grid
from vdit.tasks.canvas import Canvas, Prompts, canvas_tokens, dense_rows
from vdit.tasks.network import Network
from vdit.types import Array, PyTree, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a canvas is filled in; all of it static under jit."""

    schedule: Schedule
    prediction: str
    sampler: Sampler
    grid: Grid
    guidance: Guidance


def fill(
    network: Network, params: PyTree, canvas: Canvas, prompts: Prompts, negative: Prompts, key: Array, method: Method
) -> Array:
    """Latents of the canvas, with what was not known drawn from the model: float32 [b t h w c].

    prompts and negative have the same shapes; negative is used only if there is guidance. Traceable.
    """
    noise_key, sampler_key = jax.random.split(key)
    given, known, grid = canvas_tokens(canvas, network.dit.patch)
    row = _rows(network, given, grid, prompts)
    keep = known[:, row.slot[0]][..., None]
    noise = jax.random.normal(noise_key, given.shape, jnp.float32)
    # The noisiest level of a schedule may hold a little data; from noise alone is where sampling starts.
    x = jnp.where(keep, given, noise)

    guided = method.guidance.needed
    if guided:
        row = jax.tree.map(lambda *pair: jnp.concatenate(pair), row, _rows(network, given, grid, negative))
        known = jnp.concatenate([known, known])
    text = network.encode_text(params, row)

    def predict(x: Array, t: Array) -> Array:
        return _predict(network, params, row, text, known, x, t, method.schedule)

    if guided:
        denoise = guide(lambda x, t: tuple(jnp.split(predict(jnp.concatenate([x, x]), t), 2)), method.guidance)
    else:
        denoise = predict
    x = method.sampler.sample(
        denoise,
        x,
        schedule=method.schedule,
        prediction=method.prediction,
        grid=method.grid,
        key=sampler_key,
        project=lambda x, t: jnp.where(keep, given, x),
    )
    return unpatchify(x, grid, network.dit.patch)


def _rows(network: Network, values: Array, grid: tuple[int, int, int], prompts: Prompts) -> Row:
    """A model without text is told a class: the one token of its prompts (vdit.text.labels)."""
    return dense_rows(values, grid, prompts, None if network.uses_text else prompts.ids[:, :1])


def _predict(
    network: Network, params: PyTree, row: Row, text: Array | None, known: Array, x: Array, t: Array, schedule: Schedule
) -> Array:
    time = jnp.broadcast_to(jnp.asarray(schedule.time(t), jnp.float32), known.shape)
    time = jnp.where(known, jnp.float32(schedule.time(0.0)), time)
    return network.apply(params, dataclasses.replace(row, values=x), time, text)
