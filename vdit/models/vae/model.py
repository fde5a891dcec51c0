"""The causal 3D VAE: encoder, decoder, and the two together; images are clips of one frame."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdit.errors import ShapeError
from vdit.models.vae.blocks import (
    Downsample,
    Middle,
    ResidualBlock,
    Upsample,
    conv_options,
    fold,
    mean_shortcut,
    norm,
    repeat_shortcut,
    unfold,
)
from vdit.models.vae.config import DiscriminatorConfig, VAEConfig
from vdit.nn.conv import CausalConv, Conv
from vdit.nn.halo import WHOLE, Split
from vdit.nn.layers import RMSNorm
from vdit.reprs import short_repr
from vdit.types import Array, PyTree

INITIAL_LOGVAR = -4.0


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "logvar"], meta_fields=[])
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A normal distribution of latents, independent in each element.

    mean, logvar: float32 [b t h w c].
    """

    mean: Array
    logvar: Array

    def sample(self, key: Array) -> Array:
        """One draw `[b t h w c]`."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> Array:
        """KL divergence from the standard normal, of each element: `[b t h w c]`."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar)


class Encoder(nn.Module):
    """`[b t h w 3] -> [b t' h' w' 2*latent_channels]`, mean and log variance side by side."""

    config: VAEConfig
    split: Split = WHOLE

    @nn.compact
    def __call__(self, x: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        config, split, old, new = self.config, self.split, cache or {}, {}
        if cache is None and config.patch_frames > 1 and not split.time:
            # The first frame fills its group alone, so that an image is a group too.
            x = jnp.concatenate([jnp.repeat(x[:, :1], config.patch_frames - 1, axis=1), x], axis=1)
        split = split.coarser(config.patch_frames)
        options = conv_options(config, split)
        edge = {"kernel": config.edge_kernel, **options}
        pixels = x
        x = fold(x, config.patch_frames, config.patch).astype(options["dtype"])
        x, new["conv_in"] = CausalConv(config.widths[0], name="conv_in", **edge)(x, old.get("conv_in"))
        block = nn.remat(ResidualBlock) if config.remat else ResidualBlock
        for level, width in enumerate(config.widths):
            entered = split.from_first(x) if config.level_shortcut else x
            for i in range(config.blocks_per_level):
                name = f"block{level}_{i}"
                x, new[name] = block(config, width, split, name=name)(x, old.get(name))
            if level < len(config.widths) - 1:
                space, time = config.spatial_down[level], config.temporal_down[level]
                down = Downsample(config, space, time, split, name=f"down{level}")
                x, new[down.name] = down(x, old.get(down.name))
                split = split.coarser(1 + time)
            if config.level_shortcut:
                x = x + mean_shortcut(entered, width, config.change(level))
        edge["split"] = split
        if config.middle != "none":
            x, new["middle"] = Middle(config, split, name="middle")(x, old.get("middle"))
        x = nn.silu(norm(config, split, "norm_out")(x) if config.norm_out else x)
        channels = 2 * config.latent_channels
        x, new["conv_out"] = CausalConv(channels, name="conv_out", **edge)(x, old.get("conv_out"))
        if config.quant:
            # Training starts with little noise on the latents: the decoder cannot learn from noise.
            quiet = jnp.repeat(jnp.array([0.0, INITIAL_LOGVAR]), config.latent_channels)
            x = Conv(channels, (1, 1, 1), bias_init=lambda *_: quiet, name="quant", **options)(x)
        if config.linear_path:
            pixels = fold(pixels, config.patch_frames, config.spatial_stride).astype(options["dtype"])
            mean = Conv(config.latent_channels, (1, 1, 1), name="linear_path", **conv_options(config, split))(pixels)
            x = x + jnp.concatenate([mean, jnp.zeros_like(mean)], axis=-1)
        return x, new


class Decoder(nn.Module):
    """`[b t' h' w' latent_channels] -> [b t h w 3]`."""

    config: VAEConfig
    split: Split = WHOLE

    @nn.compact
    def __call__(self, z: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        config, split, old, new = self.config, self.split, cache or {}, {}
        start = cache is None and not split.time  # the clip's first frame is the first here
        options = conv_options(config, split)
        edge = {"kernel": config.edge_kernel, **options}
        x = z.astype(options["dtype"])
        if config.quant:
            x = Conv(config.latent_channels, (1, 1, 1), name="post_quant", **options)(x)
        x, new["conv_in"] = CausalConv(config.decoder_widths[-1], name="conv_in", **edge)(x, old.get("conv_in"))
        if config.middle != "none":
            x, new["middle"] = Middle(config, split, name="middle")(x, old.get("middle"))
        block = nn.remat(ResidualBlock) if config.remat else ResidualBlock
        for level, width in reversed(list(enumerate(config.decoder_widths))):
            entered = x
            for i in range(config.blocks_per_level + config.decoder_extra_blocks):
                name = f"block{level}_{i}"
                x, new[name] = block(config, width, split, name=name)(x, old.get(name))
            if level > 0:
                space, time = config.spatial_down[level - 1], config.temporal_down[level - 1]
                up = Upsample(config, space, time, split, name=f"up{level}")
                x, new[up.name] = up(x, old.get(up.name))
                split = split.finer(1 + time)
                if config.level_shortcut:
                    x = x + repeat_shortcut(entered, width, config.change(level - 1), start=start)
        edge["split"] = split
        x = nn.silu(norm(config, split, "norm_out")(x) if config.norm_out else x)
        if config.out_width:
            x = nn.silu(Conv(config.out_width, (1, 1, 1), name="out", **conv_options(config, split))(x))
        channels = 3 * config.patch_frames * config.patch**2
        x, new["conv_out"] = CausalConv(channels, name="conv_out", **edge)(x, old.get("conv_out"))
        x = unfold(x, config.patch_frames, config.patch)
        if config.linear_path:
            channels = 3 * config.patch_frames * config.spatial_stride**2
            # From zero: what random latents say of pixels would have to be unlearned.
            path = Conv(channels, (1, 1, 1), kernel_init=nn.initializers.zeros_init(), name="linear_path", **options)
            x = x + unfold(path(z.astype(options["dtype"])), config.patch_frames, config.spatial_stride)
        return (x[:, config.patch_frames - 1 :] if start else x), new


class VAE(nn.Module):
    """Causal 3D VAE (Kingma and Welling, 2014): video to latents and back, whole or chunk by chunk.

    Videos are float [b t h w 3] in [-1, 1] with t = 1 + temporal_stride * k; latents are
    [b 1+k h' w' c]. A chunk's cache is None at the start of a clip, then what the call before returned.
    Decoded values are not clipped. split: videos and latents are the parts of one device (vdit/models/vae/split.py);
    where frames are shared out, a chunk has the frames before its first that make the parts equal.
    """

    config: VAEConfig
    split: Split = WHOLE

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.split.finer(self.config.temporal_stride))
        self.decoder = Decoder(self.config, self.split)

    def __call__(self, video: Array, key: Array | None = None) -> tuple[Array, Gaussian]:
        """Reconstruction `[b t h w 3]` and the latents' distribution; of the mean when `key` is None."""
        gaussian = self.encode(video)
        return self.decode(gaussian.mean if key is None else gaussian.sample(key)), gaussian

    def encode(self, video: Array) -> Gaussian:
        """`[b t h w 3]` -> the distribution of latents `[b t' h' w' c]`."""
        return self.encode_chunk(video, None)[0]

    def decode(self, latents: Array) -> Array:
        """`[b t' h' w' c] -> [b t h w 3]`, float32."""
        return self.decode_chunk(latents, None)[0]

    def encode_chunk(self, video: Array, cache: PyTree = None) -> tuple[Gaussian, PyTree]:
        """Encodes the next frames of a clip.

        Args:
            video: [b t h w 3]; t is 1 + stride*k at the start of a clip (cache None), later stride*k with k >= 1.
            cache: what the previous call returned; None at the start.

        Returns:
            (distribution of the latents, the next cache).
        """
        check_video(self.config, video.shape, start=cache is None and not self.split.time)
        moments, cache = self.encoder(video, cache)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Gaussian(mean=mean, logvar=jnp.clip(logvar, -30.0, 20.0)), cache

    def decode_chunk(self, latents: Array, cache: PyTree = None) -> tuple[Array, PyTree]:
        """Decodes the next latent frames of a clip.

        Args:
            latents: [b t' h' w' c], any number of frames from 1.
            cache: what the previous call returned; None at the start.

        Returns:
            (frames [b t h w 3] float32, the next cache).
        """
        check_latents(self.config, latents.shape)
        video, cache = self.decoder(latents, cache)
        return video.astype(jnp.float32), cache


def check_video(config: VAEConfig, shape: tuple[int, ...], *, start: bool = True) -> None:
    """Refuses a video that the VAE cannot encode.

    Args:
        config: of the VAE.
        shape: [b t h w 3].
        start: the video is the start of a clip, not a later chunk.

    Raises:
        ShapeError: it names the nearest shapes that work.
    """
    if len(shape) != 5 or shape[-1] != 3:
        raise ShapeError(f"video of shape {tuple(shape)} must be [b t h w 3]")
    _, frames, *sides, _ = shape
    stride, first = config.temporal_stride, 1 if start else 0
    if frames < max(first, 1) or (frames - first) % stride:
        low = frames - (frames - first) % stride
        nearest = [n for n in (low, low + stride) if n >= max(first, 1)]
        rule = f"1 + {stride}k, the first frame alone" if start else f"{stride}k after the first chunk"
        raise ShapeError(f"{frames} frames must be {rule}: use {' or '.join(map(str, nearest))}")
    for name, side in zip(("height", "width"), sides):
        s = config.spatial_stride
        if side < s or side % s:
            nearest = [n for n in (side // s * s, side // s * s + s) if n]
            raise ShapeError(f"{name} {side} must be a multiple of {s}: use {' or '.join(map(str, nearest))}")


def check_latents(config: VAEConfig, shape: tuple[int, ...]) -> None:
    """Refuses latents that the VAE cannot decode.

    Args:
        config: of the VAE.
        shape: [b t h w c].

    Raises:
        ShapeError: the shape is another.
    """
    if len(shape) != 5 or shape[-1] != config.latent_channels or shape[1] < 1:
        raise ShapeError(
            f"latents of shape {tuple(shape)} must be [b t h w {config.latent_channels}], t at least 1"
        )


class Discriminator(nn.Module):
    """`[b t h w 3] -> [b t' h' w']`, high where the patch looks real. Takes images (t = 1) too.

    Not causal: a patch is judged by the frames before and after it. Sides must be multiples of
    config.patch; time is halved rounding up. split: rows may be shared out, by devices that each have some of the
    scores' rows; not frames.
    """

    config: DiscriminatorConfig
    split: Split = WHOLE

    @nn.compact
    def __call__(self, video: Array) -> Array:
        config = self.config
        options = {"dtype": jnp.dtype(config.dtype), "formulation": config.conv, "split": self.split}
        x = fold(video, 1, config.patch).astype(options["dtype"])
        for level, (mult, time) in enumerate(zip(config.channel_mults, config.temporal_down)):
            strides = (2 if time else 1, 2, 2)
            x = Conv(config.base_channels * mult, strides=strides, name=f"conv{level}", **options)(x)
            if level:
                x = RMSNorm(axis="conv_out", name=f"norm{level}")(x)
            x = nn.leaky_relu(x, 0.2)
        return Conv(1, name="conv_out", **options)(x)[..., 0].astype(jnp.float32)
