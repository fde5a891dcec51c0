"""Simulate: a world that is played. What is done comes in, the frames that follow come out, a few at a time.

Each step makes one group of frames, those of a frame of tokens, beside the newest of what there is and what was done in
it. One program serves every step.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vdit.dist.rules import replicated
from vdit.models.network import Network
from vdit.models.vae import split
from vdit.models.vae.config import VAEConfig
from vdit.models.vae.statistics import denormalise
from vdit.nn.compiling import compiler_options
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts
from vdit.sampling.config import SamplingConfig
from vdit.sampling.denoise import fill
from vdit.sampling.kv import Continuation, Memory
from vdit.types import Array, PyTree


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What a simulation knows between two steps; never changed in place, so that it can be gone back to.

    known: what the next frames are made from, as the kind of step has it.
    count: int32 [], how many steps were made. decoder: the VAE's cache.
    """

    known: PyTree
    count: Array
    decoder: PyTree


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """From a World and what is done to the next World and its frames: a pure function, compiled once.

    Subclasses say what is known, `begin`: of latents [1 m*p h w c] of m groups of p latent frames, of at least 1 and
    at most `context`, and of what was done in each, [1 m a]; and what comes `next`: (latents of the next group,
    what is known then). context: how many groups are known at most; then the oldest is forgotten at each step.
    first: 1 where the group that a video begins with is of another kind than the others; 0 where all are alike.
    cell: (h, w, c) of a latent frame.
    """

    network: Network
    vae: VAEConfig
    method: SamplingConfig
    context: int
    first: int
    cell: tuple[int, int, int]

    def __call__(
        self, params: PyTree, vae_params: PyTree, statistics: PyTree, prompts: Prompts, negative: Prompts, key: Array,
        world: World, action: Array,
    ) -> tuple[World, Array]:  # fmt: skip
        """action: float32 [a], what is done -> the next World, and float32 [1 t h w 3] in [-1, 1], what is seen."""
        key = jax.random.fold_in(key, world.count)
        new, known = self.next(params, prompts, negative, key, world.known, action[None, None])
        video, decoder = split.decode_chunk(self.vae, vae_params, denormalise(new, statistics), world.decoder)
        world = World(known=known, count=world.count + 1, decoder=decoder)
        return world, jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    def begin(
        self, params: PyTree, prompts: Prompts, negative: Prompts, key: Array, latents: Array, action: Array
    ) -> PyTree:
        """See the class; traceable, as all of these."""
        raise NotImplementedError

    def next(
        self, params: PyTree, prompts: Prompts, negative: Prompts, key: Array, known: PyTree, action: Array
    ) -> tuple[Array, PyTree]:
        """See the class. action: [1 1 a]."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """latents: float32 [1 k*p h w c], normalised: k places for groups. action: float32 [1 k a], what was done in each.

    at: int32 [], the place of the next group; those ahead of it hold what there is, the first place only as long as
    nothing has been forgotten, if the first group is of another kind (Step.first).
    """

    latents: Array
    action: Array
    at: Array


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CanvasStep(Step):
    """Each step fills in a canvas of one size; while less has happened than it holds, the rest of it is not there."""

    @property
    def places(self) -> int:
        """k: as many as hold the context and a new group."""
        return self.context + 1 + self.first

    def begin(self, params, prompts, negative, key, latents, action) -> Places:
        """See Step."""
        missing = self.places - action.shape[1]
        pad = lambda x, count: jnp.pad(x, ((0, 0), (0, count), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731
        return Places(
            latents=pad(latents, missing * self._patch), action=pad(action, missing), at=jnp.int32(action.shape[1])
        )

    def next(self, params, prompts, negative, key, known, action) -> tuple[Array, Places]:
        """See Step."""
        patch, at = self._patch, known.at
        noise_key, others_key, key = jax.random.split(key, 3)
        noise = jax.random.normal(others_key, known.latents.shape, jnp.float32)
        own = jax.random.normal(noise_key, (1, patch, *self.cell), jnp.float32)
        noise = jax.lax.dynamic_update_slice_in_dim(noise, own, at * patch, axis=1)
        action = jax.lax.dynamic_update_slice_in_dim(known.action, action, at, axis=1)
        canvas = self.canvas(known, action)
        latents = fill(self.network, params, canvas, prompts, negative, key, self.method, noise=noise)
        new = jax.lax.dynamic_slice_in_dim(latents, at * patch, patch, axis=1)
        full = at == self.places - 1
        known = Places(
            latents=jnp.where(full, _forget(latents, self.first * patch, patch), latents),
            action=jnp.where(full, _forget(action, self.first, 1), action),
            at=jnp.where(full, at, at + 1),
        )
        return new, known

    def canvas(self, known: Places, action: Array) -> Canvas:
        """All that is there is known, but for the group at known.at. action: [1 k a]."""
        place = jnp.arange(self.places)
        there = (place <= known.at) & (place >= jnp.where(known.at == self.places - 1, self.first, 0))
        level = jnp.repeat((place == known.at).astype(jnp.float32), self._patch)
        level = level[None, :, None, None]
        return Canvas(latents=known.latents, level=level, cond={"action": action}, there=there[None])

    @property
    def _patch(self) -> int:
        return self.network.backbone.patch[0]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalStep(Step):
    """Each step asks a causal model about the new group alone, beside what is kept of the others."""

    def begin(self, params, prompts, negative, key, latents, action) -> Memory:
        """See Step."""
        memory = self._continuation.empty(params, prompts, negative, self.cell)
        return self._continuation.remember(params, memory, prompts, negative, latents, action, key)

    def next(self, params, prompts, negative, key, known, action) -> tuple[Array, Memory]:
        """See Step."""
        noise_key, known_key, key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (1, self.network.backbone.patch[0], *self.cell), jnp.float32)
        words = prompts, negative
        new = self._continuation.make(params, known, *words, noise, action, key)
        return new, self._continuation.remember(params, known, *words, new, action, known_key)

    @property
    def _continuation(self) -> Continuation:
        return Continuation(network=self.network, method=self.method, capacity=self.context)


def _forget(x: Array, first: int, count: int) -> Array:
    """[b t ...] without the `count` from `first` on; what is last stands twice."""
    return jnp.concatenate([x[:, :first], x[:, first + count :], x[:, -count:]], axis=1)


@functools.lru_cache(maxsize=8)
def compiled(step: Step, mesh: Mesh):
    """(`step.begin`, `step`), jitted, the same ones for equal steps. Between steps every device holds all."""
    options = {"out_shardings": replicated(mesh), "compiler_options": compiler_options()}
    return jax.jit(step.begin, **options), jax.jit(step, **options)
