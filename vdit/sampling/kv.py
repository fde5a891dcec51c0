"""Frames that a causal model makes one after the other, beside what it keeps of finished ones.

Finished frames are not asked again: their keys and values are computed once (vdit.models.cache) and read by the
frames
that follow. While nothing has been forgotten, these are the frames that the whole canvas would give. When there is no
room left the oldest are forgotten; what they have told the others stays in the others' keys and values, where a canvas
that slid on would compute these afresh without it. Positions are rotary, so only distances count.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vdit.data.patches import unpatchify
from vdit.diffusion import add_noise, guide
from vdit.errors import ConfigError
from vdit.models.cache import KVCache
from vdit.models.network import Network
from vdit.nn.embedding import MAX_POSITION
from vdit.reprs import short_repr
from vdit.sampling.canvas import Canvas, Prompts, canvas_tokens
from vdit.sampling.config import SamplingConfig
from vdit.sampling.guidance import negative_row, positive_row
from vdit.types import Array, PyTree, Row


def can_keep_kv(network: Network, method: SamplingConfig) -> bool:
    """Whether what was computed of finished frames can be used again.

    Not where positions are more than distances, where what is known is told in another way than by its level, or where
    a method does more than to ask about the row and its negative.
    """
    if method.structure is not None or method.reuse is not None or method.context_guidance != 1.0:
        return False
    one = network.boundary is None and method.conditioning == "clean"
    return one and network.backbone.caches_frames


def use_kv(keep: bool | None, network: Network, method: SamplingConfig) -> bool:
    """Whether it is kept: as asked for, or None for where it can be. ConfigError where it cannot."""
    can = can_keep_kv(network, method)
    if keep and not can:
        raise ConfigError(
            "keep=True: only of a causal model (backbone.causal, backbone.position='rope') that is told what is known, "
            "without context_guidance and reuse, can what was computed serve again: leave it out"
        )
    return can if keep is None else keep


def canvas_keys(key: Array) -> tuple[Array, Array, Array]:
    """Of a canvas' key: (for the sampler, for the noise of new frames, for noise on known ones)."""
    own, others, key = jax.random.split(key, 3)
    return key, own, others


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVMemory:
    """past: of r rows, those that the network is asked about for one video: with the prompt, and with the negative one.

    text: the encoded prompts, [r m e], None without. at: int32 [], the position in time of the next frame of tokens.
    """

    past: KVCache
    text: Array | None
    at: Array


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class KVContinuation:
    """How one video goes on, `new` frames of tokens (of `patch` latent frames each) at a time.

    capacity: how many frames of tokens are remembered. cell: (h, w, c) of a latent frame. limit: positions go up to
    it, then they are counted from 0 again.
    """

    network: Network
    method: SamplingConfig
    capacity: int
    cell: tuple[int, int, int]
    new: int = 1
    limit: int = MAX_POSITION

    def begin(
        self, params: PyTree, prompts: Prompts, negative: Prompts, key: Array, latents: Array, action: Array | None
    ) -> KVMemory:
        """After the first latents that there are, [1 k*p h w c] of any number: the newest are remembered."""
        memory = self.empty(params, prompts, negative)
        return self.remember(params, memory, prompts, negative, latents, action, key)

    def advance(
        self, params: PyTree, prompts: Prompts, negative: Prompts, key: Array, memory: KVMemory, action: Array | None
    ) -> tuple[Array, KVMemory]:
        """(the next latents [1 new*p h w c], what is remembered with them). The prompts may be others than before."""
        key, own, others = canvas_keys(key)
        noise = jax.random.normal(own, (1, self.new * self.network.backbone.patch[0], *self.cell), jnp.float32)
        memory = dataclasses.replace(memory, text=self.empty(params, prompts, negative).text)
        made = self.make(params, memory, prompts, negative, noise, action, key)
        return made, self.remember(params, memory, prompts, negative, made, action, others)

    def empty(self, params: PyTree, prompts: Prompts, negative: Prompts) -> KVMemory:
        """Nothing remembered yet."""
        backbone = self.network.backbone
        latents = jnp.zeros((1, backbone.patch[0], *self.cell), jnp.float32)
        row = self._row(latents, None, jnp.int32(0), prompts, negative)
        rows, tokens = row.segment_ids.shape
        past = backbone.empty_cache(rows, tokens * self.capacity)
        return KVMemory(past=past, text=self.network.encode_text(params, row), at=jnp.int32(0))

    def remember(
        self, params: PyTree, memory: KVMemory, prompts: Prompts, negative: Prompts, latents: Array,
        action: Array | None, key: Array,
    ) -> KVMemory:  # fmt: skip
        """Latents [1 k*p h w c] are finished, at most `capacity` frames of tokens: what was before moves on.

        key: of the noise on them, where the method's known_level is above 0.
        """
        method, past = self.method, memory.past
        if method.known_level:
            noise = jax.random.normal(key, latents.shape, jnp.float32)
            latents = add_noise(method.schedule, latents, noise, jnp.float32(method.known_level))
        row = self._row(latents, action, memory.at, prompts, negative)
        time = jnp.full(row.frame_segment_ids.shape, method.schedule.time(jnp.float32(method.known_level)))
        more = self.network.apply(params, row, time, memory.text, cache=past, return_cache=True).cache
        count = past.time.shape[1]
        newest = lambda x, y, axis: jax.lax.slice_in_dim(  # noqa: E731
            jnp.concatenate([x, y], axis), y.shape[axis], count + y.shape[axis], axis=axis
        )
        past = KVCache(
            keys=newest(past.keys, more.keys, 2), values=newest(past.values, more.values, 2),
            time=newest(past.time, more.time, 1), segment_ids=newest(past.segment_ids, more.segment_ids, 1),
        )  # fmt: skip
        at = memory.at + row.frame_segment_ids.shape[1]
        return self._counted_again(dataclasses.replace(memory, past=past, at=at))

    def make(
        self, params: PyTree, memory: KVMemory, prompts: Prompts, negative: Prompts, noise: Array,
        action: Array | None, key: Array,
    ) -> Array:  # fmt: skip
        """The next latents [1 k*p h w c], from noise of that shape and what is done, [1 k a]."""
        method, patch = self.method, self.network.backbone.patch
        row = self._row(noise, action, memory.at, prompts, negative)
        x = method.sampler.sample(
            self._denoiser(params, memory, row),
            row.values[:1],
            schedule=method.schedule,
            prediction=method.prediction,
            grid=method.grid,
            key=key,
        )
        grid = tuple(side // p for side, p in zip(noise.shape[1:4], patch))
        return unpatchify(x, grid, patch)

    def _row(
        self, latents: Array, action: Array | None, at: Array, prompts: Prompts, negative: Prompts
    ) -> Row:
        """The rows of these latents: one, or with guidance two."""
        level = jnp.ones((*latents.shape[:2], 1, 1), jnp.float32)
        canvas = Canvas(latents=latents, level=level, cond={} if action is None else {"action": action})
        tokens = canvas_tokens(canvas, self.network.backbone.patch)
        rows = [positive_row(self.network, canvas, tokens, prompts)]
        if self.method.rows > 1:
            rows.append(negative_row(self.network, rows[0], negative))
        row = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
        return dataclasses.replace(row, position=row.position + jnp.stack([at, 0 * at, 0 * at]))

    def _denoiser(self, params: PyTree, memory: KVMemory, row: Row):
        method = self.method

        def predict(x: Array, t: Array, count: int) -> tuple[Array, ...]:
            """The network's word on the first `count` rows: [1 n p] of each."""
            asked, text = jax.tree.map(lambda leaf: leaf[:count], (row, memory.text))
            past = KVCache(
                keys=memory.past.keys[:, :count], values=memory.past.values[:, :count],
                time=memory.past.time[:count], segment_ids=memory.past.segment_ids[:count],
            )  # fmt: skip
            asked = dataclasses.replace(asked, values=jnp.concatenate([x] * count))
            time = jnp.broadcast_to(method.schedule.time(jnp.asarray(t, jnp.float32)), asked.frame_segment_ids.shape)
            out = self.network.apply(params, asked, time, text, cache=past).prediction
            return tuple(out[i : i + 1] for i in range(count))

        single = lambda x, t: predict(x, t, 1)[0]  # noqa: E731
        if not method.guidance.needed:
            return single
        return guide(lambda x, t: predict(x, t, 2), method.guidance, single=single)

    def _counted_again(self, memory: KVMemory) -> KVMemory:
        """With positions from 0 on again, where there is no room for as many more as are remembered."""
        past = memory.past

        def again(memory: KVMemory) -> KVMemory:
            by = memory.at - self.capacity
            return dataclasses.replace(
                memory, past=self.network.backbone.shift_cache(past, by), at=memory.at - by
            )  # fmt: skip

        full = memory.at + self.capacity > self.limit
        return jax.lax.cond(full, again, lambda memory: memory, memory)
