"""A task of vdit.sampling.programs taken step by step, so that somebody can watch it, and stop it between two steps.

    def watch(step):
        print(step.done, "of", step.calls)        # raise here to stop
    generator = dataclasses.replace(generator, watch=watch)

Three programs are compiled in the place of one: what comes before the steps, one step, what comes after. The numbers
are those of the whole task, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdit.models.network import Network
from vdit.models.vae import split
from vdit.models.vae.statistics import denormalise
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import Filling, begin_filling, step_filling
from vdit.sampling.programs import CanvasInput, Parameters, SampleCanvas, TextToVideo, compiled, inputs_on
from vdit.types import Array, PyTree


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledStep:
    """What is known after a call of the network.

    Attributes:
        done: calls so far.
        calls: of the whole task.
        estimate: float32 [b t h w c], the normalised latents that the network expects to come out.
    """

    done: int
    calls: int
    estimate: Array


Watch = Callable[[SampledStep], None]


class _Begun(NamedTuple):
    """Before the first step. calls: int32 [], of the network."""

    filling: Filling
    carry: PyTree
    calls: Array


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepwise:
    """The programs of a task; hashable, as the task is."""

    task: TextToVideo | SampleCanvas

    @property
    def network(self) -> Network:
        return self.task.network

    @property
    def method(self) -> SamplingConfig:
        return self.task.method

    def begin(
        self, params: PyTree, vae_params: PyTree, statistics: PyTree, prompts: Prompts, negative: Prompts, key: Array,
        noise: Array | None, given: PyTree,
    ) -> _Begun:  # fmt: skip
        """Arguments as of the task. The canvas, the encoded text, and the sampler's state before its first step."""
        canvas, noise = self._canvas(params, vae_params, statistics, prompts, key, noise, given)
        filling = begin_filling(self.network, params, canvas, prompts, negative, key, self.method, noise=noise)
        segment = step_filling(self.network, params, filling, self.method, count=0)
        return _Begun(filling, segment.state, jnp.int32(segment.calls))

    def advance(
        self, params: PyTree, filling: Filling, carry: PyTree, start: Array
    ) -> tuple[PyTree, Array, Array]:
        """Call `start` [] of the network: (the sampler's state after it, latents as they are, latents as expected)."""
        segment = step_filling(self.network, params, filling, self.method, state=carry, start=start)
        return segment.state, segment.latents, segment.estimate

    def finish(self, vae_params: PyTree, statistics: PyTree, latents: Array) -> Array:
        """What the task gives of its latents."""
        if not (isinstance(self.task, TextToVideo) and self.task.decode):
            return latents
        video = split.decode(self.task.vae, vae_params, denormalise(latents, statistics))
        return jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    def _canvas(
        self, params: PyTree, vae_params: PyTree, statistics: PyTree, prompts: Prompts, key: Array,
        noise: Array | None, given: PyTree,
    ) -> tuple[Canvas, Array | None]:  # fmt: skip
        task = self.task
        if isinstance(given, CanvasInput):
            return given.canvas, task.start_noise(params, key, noise, given)
        return task.canvas(params, vae_params, statistics, prompts.ids.shape[0], given), noise


def sample_stepwise(
    task: TextToVideo | SampleCanvas,
    mesh: Mesh,
    parameters: Parameters,
    prompts: tuple[Prompts, Prompts],
    key: Array,
    noise: Array | None = None,
    given: PyTree = None,
    *,
    watch: Watch,
) -> Array:
    """As vdit.sampling.programs.sample on one host, step by step.

    Args:
        task, mesh, parameters, prompts, key, noise, given: as of `sample`.
        watch: called after each call of the network. What it raises ends the task.

    Returns:
        [b ...], as the task makes them.
    """
    count, stepwise = prompts[0].ids.shape[0], Stepwise(task=task)
    inputs, out_sharding = inputs_on(task, mesh, prompts, noise, given)
    with jax.set_mesh(mesh):
        begun = compiled(stepwise, None, "begin")(*parameters, *inputs[:2], key, *inputs[2:])
    calls, carry, latents = int(begun.calls), begun.carry, None
    for start in range(calls):
        with jax.set_mesh(mesh):
            advance = compiled(stepwise, None, "advance")
            carry, latents, estimate = advance(parameters.network, begun.filling, carry, jnp.int32(start))
            step = SampledStep(done=start + 1, calls=calls, estimate=estimate[:count])
            jax.block_until_ready(latents)
        watch(step)  # outside: a program that it calls is compiled once for each mesh in context
    with jax.set_mesh(mesh):
        out = compiled(stepwise, out_sharding, "finish")(parameters.vae, parameters.statistics, latents)
    return out[:count]
