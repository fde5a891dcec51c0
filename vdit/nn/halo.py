"""Videos that devices share, by frames and by rows: what each layer needs of its neighbours' parts.

For modules that run inside `jax.shard_map`. A causal convolution needs the last frames of the device before, a
convolution of frames the rows next to its own. The parts are equal: the clip is padded with frames in front, and
since a clip's first frame is special (1 + 2k frames become 1 + k), its place is known at every level.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vdit.types import Array

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the devices of a mesh share videos `[b t h w c]`; the same value on every device.

    time: mesh axes that share frames, the slowest first; () where frames are whole.
    time_shards: devices along them.
    height: mesh axes that share rows; () where rows are whole.
    height_shards: devices along them.
    first: where frames are shared, the number of the clip's first frame among the frames of all devices; frames before
        it are padding. None: the clip began in an earlier chunk, and no frame is padding.
    """

    time: Axes = ()
    time_shards: int = 1
    height: Axes = ()
    height_shards: int = 1
    first: int | None = None

    def finer(self, times: int) -> Split:
        """The same where each frame has become `times` frames, but the clip's first one alone."""
        return self if self.first is None else dataclasses.replace(self, first=(self.first + 1) * times - 1)

    def coarser(self, times: int) -> Split:
        """The inverse of `finer`."""
        return self if self.first is None else dataclasses.replace(self, first=(self.first + 1) // times - 1)

    def without_first(self) -> Split:
        """The same for a clip that begins a frame later."""
        return self if self.first is None else dataclasses.replace(self, first=self.first + 1)

    def is_first(self, x: Array) -> Array:
        """Which of a device's frames is the clip's first: bool, to be broadcast with x [b t h w c]."""
        return self._frame_numbers(x) == self.first

    def from_first(self, x: Array) -> Array:
        """Zeros in place of the frames before the clip, as a causal convolution expects: x [b t h w c]."""
        return x if not self.time or not self.first else jnp.where(self._frame_numbers(x) >= self.first, x, 0)

    def with_history(self, x: Array, frames: int, cache: Array | None) -> Array:
        """A device's frames after those of the device before it.

        Args:
            x: [b t h w c], this device's frames.
            frames: how many earlier frames are needed.
            cache: [b frames h w c], the frames before the first device's; None: zeros.

        Returns:
            [b frames+t h w c].
        """
        before = _from_neighbours(x, 1, self.time, self.time_shards, frames, 1)
        if cache is not None:
            shard = jax.lax.axis_index(self.time)
            for i in range(min(self.time_shards, -(-frames // x.shape[1]))):
                at = i * x.shape[1]
                start = jnp.concatenate([cache[:, at:], before[:, frames - at :]], axis=1)
                before = jnp.where(shard == i, start, before)
        return jnp.concatenate([before, x], axis=1)

    def of_last(self, x: Array) -> Array:
        """What the device with the last frames has, on every device that shares frames with it."""
        if not self.time:
            return x
        if not x.size:
            return jnp.zeros(x.shape, x.dtype)
        mine = jax.lax.axis_index(self.time) == self.time_shards - 1
        return jax.lax.psum(jnp.where(mine, x, 0), self.time)

    def with_rows(self, x: Array, above: int, below: int) -> Array:
        """A device's rows between those of its neighbours.

        Args:
            x: [b t h w c], this device's rows.
            above: rows of the neighbour above.
            below: rows of the neighbour below.

        Returns:
            [b t above+h+below w c], with zeros beyond the edges of the frame.
        """
        parts = [x]
        if above:
            parts.insert(0, _from_neighbours(x, 2, self.height, self.height_shards, above, 1))
        if below:
            parts.append(_from_neighbours(x, 2, self.height, self.height_shards, below, -1))
        return jnp.concatenate(parts, axis=2)

    def all_rows(self, x: Array, axis: int) -> Array:
        """The rows of all devices that share them, in order, along `axis`."""
        return jax.lax.all_gather(x, self.height, axis=axis, tiled=True) if self.height else x

    def mean_over_rows(self, x: Array) -> Array:
        """The mean over the devices that share rows."""
        return jax.lax.pmean(x, self.height) if self.height else x

    def _frame_numbers(self, x: Array) -> Array:
        start = jax.lax.axis_index(self.time) * x.shape[1]
        return (start + jnp.arange(x.shape[1]))[:, None, None, None]


WHOLE = Split()


def _from_neighbours(x: Array, axis: int, mesh_axes: Axes, num_shards: int, count: int, step: int) -> Array:
    """`count` places along `axis` that lie just before a device's own (step 1) or just after (step -1).

    They may be spread over several devices. Zeros where there is none.
    """
    size, parts = x.shape[axis], []
    ordered, positions = _mesh_order(mesh_axes)
    for hop in range(1, -(-count // size) + 1):
        need = min(size, count - (hop - 1) * size)
        part = jax.lax.slice_in_dim(x, size - need, size, axis=axis) if step == 1 else (
            jax.lax.slice_in_dim(x, 0, need, axis=axis)
        )
        meet = [(i, i + hop * step) for i in range(num_shards) if 0 <= i + hop * step < num_shards]
        pairs = [(positions[i], positions[j]) for i, j in meet]
        parts.append(jax.lax.ppermute(part, ordered, pairs) if pairs else jnp.zeros_like(part))
    return jnp.concatenate(parts[::-step], axis=axis)


def _mesh_order(axes: Axes) -> tuple[Axes, list[int]]:
    """The axes in the mesh's order, and each device's place in that order, counted in the given one.

    ppermute counts devices along several axes in the mesh's order, the other collectives in the order they are given.
    """
    ordered = tuple(axis for axis in jax.sharding.get_abstract_mesh().axis_names if axis in axes)
    grid = np.arange(jax.lax.axis_size(axes)).reshape([jax.lax.axis_size(axis) for axis in ordered])
    return ordered, grid.transpose([ordered.index(axis) for axis in axes]).reshape(-1).tolist()
