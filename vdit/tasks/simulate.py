"""Simulate: a world that is played. What is done comes in, the frames that follow come out, a few at a time.

Each step is a canvas whose known part is the newest of what there is, with what was done in it, and whose last group
of frames is new. One program serves every step: the canvas has one size, and while less has happened than it holds,
the rest of it is not there.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdit.dist.rules import replicated
from vdit.nn.compiling import compiler_options
from vdit.tasks.canvas import Canvas, Prompts
from vdit.tasks.generate import Method, fill
from vdit.tasks.network import Network
from vdit.types import Array, PyTree
from vdit.vae import split
from vdit.vae.config import VAEConfig
from vdit.vae.statistics import denormalise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """What a simulation knows between two steps; never changed in place, so that it can be gone back to.

    latents: float32 [1 k*p h w c], normalised: k places for groups of p latent frames (those of a frame of tokens).
    action: float32 [1 k a], what was done in each.
    at: int32 [], the place of the next group; those ahead of it hold what there is, from `first` on (see Step).
    count: int32 [], how many groups were made. decoder: the VAE's cache.
    """

    latents: Array
    action: Array
    at: Array
    count: Array
    decoder: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """From a World and what is done to the next World and its frames: a pure function, compiled once.

    context: how many groups are known at most; then the oldest is forgotten at each step.
    first: the place of the oldest group once some have been forgotten. Place 0 is only for the group that a video
        begins with, where that is of another kind than the others (1), and for any where all are alike (0).
    """

    network: Network
    vae: VAEConfig
    method: Method
    context: int
    first: int

    @property
    def places(self) -> int:
        """k: as many as hold the context and a new group."""
        return self.context + 1 + self.first

    def begin(self, latents: Array, action: Array, decoder: PyTree) -> World:
        """The World after latents [1 m*p h w c] and their actions [1 m a], m of at least 1 and at most `context`.

        decoder: the VAE's cache after them.
        """
        groups = action.shape[1]
        missing = self.places - groups
        pad = lambda x, count: np.pad(x, ((0, 0), (0, count), *[(0, 0)] * (np.ndim(x) - 2)))  # noqa: E731
        at, zero = np.int32(groups), np.int32(0)
        latents = pad(latents, missing * self.network.dit.patch[0])
        return World(latents=latents, action=pad(action, missing), at=at, count=zero, decoder=decoder)

    def __call__(
        self,
        params: PyTree,
        vae_params: PyTree,
        statistics: PyTree,
        prompts: Prompts,
        negative: Prompts,
        key: Array,
        world: World,
        action: Array,
    ) -> tuple[World, Array]:
        """action: float32 [a], what is done -> the next World, and float32 [1 t h w 3] in [-1, 1], what is seen."""
        patch, at = self.network.dit.patch[0], world.at
        actions = jax.lax.dynamic_update_slice_in_dim(world.action, action[None, None], at, axis=1)
        key = jax.random.fold_in(key, world.count)
        canvas = self.canvas(world, actions)
        latents = fill(self.network, params, canvas, prompts, negative, key, self.method)
        new = jax.lax.dynamic_slice_in_dim(latents, at * patch, patch, axis=1)
        video, decoder = split.decode_chunk(self.vae, vae_params, denormalise(new, statistics), world.decoder)
        full = at == self.places - 1
        world = World(
            latents=jnp.where(full, _forget(latents, self.first * patch, patch), latents),
            action=jnp.where(full, _forget(actions, self.first, 1), actions),
            at=jnp.where(full, at, at + 1),
            count=world.count + 1,
            decoder=decoder,
        )
        return world, jnp.clip(video.astype(jnp.float32), -1.0, 1.0)

    def canvas(self, world: World, actions: Array) -> Canvas:
        """All that is there is known, but for the group at world.at."""
        place = jnp.arange(self.places)
        there = (place <= world.at) & (place >= jnp.where(world.at == self.places - 1, self.first, 0))
        level = jnp.repeat((place == world.at).astype(jnp.float32), self.network.dit.patch[0])
        return Canvas(
            latents=world.latents, level=level[None, :, None, None], action=actions, there=there[None], first=0
        )


def _forget(x: Array, first: int, count: int) -> Array:
    """[b t ...] without the `count` from `first` on; what is last stands twice."""
    return jnp.concatenate([x[:, :first], x[:, first + count :], x[:, -count:]], axis=1)


@functools.lru_cache(maxsize=8)
def compiled(step: Step, mesh: Mesh):
    """`jax.jit(step)`, the same one for equal steps. Between steps every device holds all of the World."""
    return jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options())
