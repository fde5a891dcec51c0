"""The pieces of the VAE. All work on `[b t h w c]`, causally in time.

Pieces that look back in time are called with a cache and return the next one:
`piece(x, cache) -> (y, cache)`. A cache of None stands for the start of a clip, so a whole clip is a
first chunk that happens to be long. Caches are plain dicts of arrays. Where several devices share a clip, each
piece takes `split` (vdit/nn/halo.py), which says how, and gets their parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.models.vae.config import VAEConfig
from vdit.nn.conv import CausalConv, Conv, kernel_init
from vdit.nn.halo import WHOLE, Split
from vdit.nn.layers import GroupNorm, RMSNorm
from vdit.types import Array, PyTree

# Attention within frames holds at most so many scores at once (float32: half a gigabyte).
MAX_SCORES = 2**27


def conv_options(config: VAEConfig, split: Split) -> dict:
    """The options that every convolution of the model shares, as keyword arguments."""
    return {"dtype": jnp.dtype(config.dtype), "formulation": config.conv, "split": split}


def norm(config: VAEConfig, split: Split, name: str) -> nn.Module:
    """The normalisation of the model, float32 inside: `[b t h w c]`, same shape."""
    if config.norm == "group":
        return GroupNorm(config.norm_groups, config.norm_eps, "conv_out", split, name=name)
    return RMSNorm(config.norm_eps, "conv_out", name=name)


class ResidualBlock(nn.Module):
    """(Norm, SiLU, conv) twice, plus a shortcut: `[b t h w i] -> [b t h w features]`."""

    config: VAEConfig
    features: int
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        config, old, new = self.config, cache or {}, {}
        options = conv_options(config, self.split)
        h = x
        for i in (1, 2):
            h = nn.silu(norm(config, self.split, f"norm{i}")(h))
            # The second convolution starts at zero, the block as its shortcut: deep stacks learn sooner.
            init = kernel_init if i == 1 else nn.initializers.zeros_init()
            conv = CausalConv(self.features, config.block_kernel, kernel_init=init, name=f"conv{i}", **options)
            h, new[conv.name] = conv(h, old.get(conv.name))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1, 1), name="shortcut", **options)(x)
        return x + h, new


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame, plus a shortcut: `[b t h w c]`, same shape."""

    config: VAEConfig
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, t, h, w, c = x.shape
        options = conv_options(self.config, self.split)
        y = norm(self.config, self.split, "norm")(x)
        qkv = Conv(3 * c, (1, 1, 1), name="qkv", **options)(y).reshape(b * t, h * w, 3, c)
        q, k, v = (qkv[:, :, i] for i in range(3))
        k, v = (self.split.all_rows(part, 1) for part in (k, v))
        y = frame_attention(q, k, v).reshape(b, t, h, w, c)
        return x + Conv(c, (1, 1, 1), name="out", **options)(y)


def frame_attention(q: Array, k: Array, v: Array, max_scores: int = MAX_SCORES) -> Array:
    """softmax(q k / sqrt(c)) v of each frame.

    Frames are processed one by one, with as many queries at a time as `max_scores` allows (at least one).

    Args:
        q: [f q c], queries of f frames.
        k: [f k c], keys.
        v: [f k c], values.
        max_scores: scores that are in memory at once.

    Returns:
        [f q c] in the dtype of v.
    """

    def attend(q: Array, k: Array, v: Array) -> Array:
        scores = jnp.einsum("fqc,fkc->fqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("fqk,fkc->fqc", weights, v)

    (frames, queries, c), keys = q.shape, k.shape[1]
    if frames * queries * keys <= max_scores:
        return attend(q, k, v)
    divisors = (n for n in range(1, queries + 1) if queries % n == 0)
    pieces = next(n for n in divisors if queries // n * keys <= max_scores or n == queries)

    def of_frame(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = (part[None] for part in qkv)
        if pieces == 1:
            return attend(q, k, v)[0]
        q = q.reshape(pieces, 1, queries // pieces, c)
        return jax.lax.map(jax.checkpoint(lambda q: attend(q, k, v)), q).reshape(queries, c)

    return jax.lax.map(jax.checkpoint(of_frame), (q, k, v))


class Middle(nn.Module):
    """Residual block, attention within frames, residual block: `[b t h w c]`, same shape."""

    config: VAEConfig
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        old, new = cache or {}, {}
        x, new["block1"] = ResidualBlock(self.config, x.shape[-1], self.split, name="block1")(x, old.get("block1"))
        if self.config.middle == "attention":
            x = FrameAttention(self.config, self.split, name="attention")(x)
        x, new["block2"] = ResidualBlock(self.config, x.shape[-1], self.split, name="block2")(x, old.get("block2"))
        return x, new


class Downsample(nn.Module):
    """Halves space, then time, where asked: `[b t h w c] -> [b t' h' w' c]`.

    In time, the clip's first frame passes as it is and the others are taken in pairs with the frame
    before them, so 1 + 2k frames give 1 + k. The cache is the last input frame of the time step.
    """

    config: VAEConfig
    space: bool
    time: bool
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        options = conv_options(self.config, self.split)
        width = x.shape[-1]
        if self.space:
            pads = ((0, 0), (0, 1), (0, 1))
            x = Conv(width, (1, 3, 3), (1, 2, 2), pads, name="space", **options)(x)
        if not self.time:
            return x, None
        pads = ((0, 0), (0, 0), (0, 0))
        halve = Conv(width, (3, 1, 1), (2, 1, 1), pads, name="time", **options)
        last = self.split.of_last(x[:, -1:])
        if self.split.time:
            y = halve(self.split.with_history(x, 1, cache))
            if self.split.first is None:
                return y, last
            return jnp.where(self.split.coarser(2).is_first(y), x[:, 1::2], y), last
        if cache is not None:
            return halve(jnp.concatenate([cache, x], axis=1)), last
        if x.shape[1] == 1 and not self.is_initializing():
            return x, last
        # An image still has to make the parameters of the time step when they are initialised.
        rest = halve(x if x.shape[1] > 1 else jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0))))
        return jnp.concatenate([x[:, :1], rest[:, : x.shape[1] // 2]], axis=1), last


class Upsample(nn.Module):
    """Doubles time, then space, where asked: `[b t h w c] -> [b t' h' w' c']`.

    In time, the clip's first frame passes as it is and each other one becomes two, by a causal
    convolution that never sees the first: 1 + k frames give 1 + 2k. The step in space halves the channels,
    where config.up_channels says so.
    """

    config: VAEConfig
    space: bool
    time: bool
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        options = conv_options(self.config, self.split)
        width = x.shape[-1]
        new = None
        if self.time and self.split.time:
            x, new = self._double_shared(x, cache)
        elif self.time:
            first, rest = (x[:, :1], x[:, 1:]) if cache is None else (x[:, :0], x)
            double = CausalConv(2 * width, (3, 1, 1), name="time", **options)
            if rest.shape[1]:
                rest, new = double(rest, cache)
                x = jnp.concatenate([first, _halves_to_frames(rest)], axis=1)
            else:
                if self.is_initializing():  # an image still has to make the parameters
                    double(x)
                b, _, h, w, c = x.shape
                new = jnp.zeros((b, 2, h, w, c), x.dtype)
        if self.space:
            features = width // 2 if self.config.up_channels == "halve" else width
            x = Conv(features, (1, 3, 3), upsample=True, name="space", **options)(x)
        return x, new


    def _double_shared(self, x: Array, cache: PyTree) -> tuple[Array, PyTree]:
        options = conv_options(self.config, self.split.without_first())
        y, new = CausalConv(2 * x.shape[-1], (3, 1, 1), name="time", **options)(x, cache)
        y = _halves_to_frames(y)
        if self.split.first is not None:
            y = jnp.where(self.split.finer(2).is_first(y), jnp.repeat(x, 2, axis=1), y)
        return y, new


def _halves_to_frames(x: Array) -> Array:
    """The two halves of the channels as two frames: `[b t h w 2c] -> [b 2t h w c]`."""
    b, t, h, w, c = x.shape
    return jnp.moveaxis(x.reshape(b, t, h, w, 2, c // 2), 4, 2).reshape(b, 2 * t, h, w, c // 2)


def mean_shortcut(x: Array, features: int, change: tuple[int, int]) -> Array:
    """Means of groups of neighbours, as AvgDown3D of Wan 2.2.

    The values of a block of f x s x s pixels are put in the order of channel, frame, row, column, and each
    `features`-th part of them is averaged. A clip's first frame fills its block with zeros before it.

    Args:
        x: [b t h w c].
        features: channels of the output.
        change: (f, s), what time and each side of space are divided by.

    Returns:
        [b t/f h/s w/s features].
    """
    f, s = change
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % f, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // f, f, h // s, s, w // s, s, c).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, t // f, h // s, w // s, features, -1).mean(-1)


def repeat_shortcut(x: Array, features: int, change: tuple[int, int], *, start: bool) -> Array:
    """Values repeated over neighbours, as DupUp3D of Wan 2.2; the counterpart of `mean_shortcut`.

    Args:
        x: [b t h w c].
        features: channels of the output.
        change: (f, s), what time and each side of space are multiplied by.
        start: the chunk holds a clip's first frame, which gives one frame.

    Returns:
        [b t*f h*s w*s features], without the first f - 1 frames where `start`.
    """
    f, s = change
    b, t, h, w, c = x.shape
    x = jnp.repeat(x, features * f * s * s // c, axis=-1).reshape(b, t, h, w, features, f, s, s)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * f, h * s, w * s, features)
    return x[:, f - 1 :] if start else x


def fold(x: Array, frames: int, patch: int) -> Array:
    """Moves frames and squares of pixels into channels.

    Args:
        x: [b f*t p*h p*w c].
        frames: f, frames that are folded together.
        patch: p, side of a square in pixels.

    Returns:
        [b t h w f*p*p*c].
    """
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // frames, frames, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t // frames, h // patch, w // patch, -1)


def unfold(x: Array, frames: int, patch: int) -> Array:
    """The inverse of `fold`: `[b t h w f*p*p*c] -> [b f*t p*h p*w c]`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, frames, patch, patch, c // (frames * patch * patch))
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * frames, h * patch, w * patch, -1)
