"""What a video VAE is made of, what it is trained on, and presets."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Protocol

from vdit.errors import ConfigError
from vdit.registry import register
from vdit.reprs import short_repr

if TYPE_CHECKING:
    from vdit.models.vae.losses import VAELoss


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """One causal 3D VAE for Wan 2.1's, Wan 2.2's, Stable Diffusion's and vdit's own.

    Pixels are folded into channels (`patch`, `patch_frames`), then each level works at its own width and
    a change of level halves the size in space, in time, or in both.

    latent_channels: channels of the latents.
    base_channels, channel_mults: width of each level, from the pixels inwards.
    decoder_base_channels: likewise of the decoder; None takes base_channels.
    blocks_per_level: residual blocks of each encoder level; the decoder has `decoder_extra_blocks` more.
    spatial_down, temporal_down: what each change of level halves; one entry less than levels. With nothing
        halved in time and kernels of one frame, the VAE is one of images, and a clip is coded frame by frame.
    up_channels: "halve": a step up in space halves the channels (Wan 2.1); "keep" leaves them to the next
        level's first block (Wan 2.2, Stable Diffusion).
    level_shortcut: a shortcut without parameters past each level and its change of size: means of groups of
        values on the way down, repeats on the way up (Wan 2.2).
    patch: side of the square of pixels folded into channels before the first convolution. Most of the
        work is then at low resolution, which is what makes small networks cheap.
    patch_frames: frames folded into channels likewise; the first frame stands alone.
    block_kernel: size in t, h, w of the convolutions of the residual blocks.
    edge_kernel: likewise of the first and last convolution of the encoder and the decoder.
    middle: "attention" is residual block, attention within each frame, residual block (Wan); "blocks"
        leaves the attention out; "none" leaves out all three.
    norm: "rms" over the channels of each pixel, or "group": over `norm_groups` groups of channels and all
        pixels of a frame, with learned scale and shift (Wu and He, 2018; Stable Diffusion).
    norm_out: also normalise before the last convolution of the encoder and the decoder. Without, small
        networks learn several times sooner: the brightness of a pixel need not be coded in a direction alone.
    norm_eps: added to the mean square, or the variance, under the root.
    out_width: features of a hidden layer at each place before the decoder's last convolution; None for none. Where
        `patch` folds many pixels into a place, it draws sharper edges than as many channels everywhere.
    linear_path: a linear map of the pixels that a latent stands for is added to the latents, and one of a latent to
        its pixels; the networks add what a linear code cannot say. With tens of channels a VAE of real footage keeps
        decibels more (docs/experiment_log.md). Frames must be folded (`patch_frames`), not halved.
    quant: a 1x1x1 convolution of the latents after the encoder and one before the decoder.
    dtype: type of the convolutions; norms and softmax stay float32.
    conv: how convolutions are computed (vdit/nn/conv.py).
    remat: recompute each residual block in the backward.
    """

    latent_channels: int = 16
    base_channels: int = 96
    decoder_base_channels: int | None = None
    channel_mults: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    decoder_extra_blocks: int = 1
    spatial_down: tuple[bool, ...] = (True, True, True)
    temporal_down: tuple[bool, ...] = (False, True, True)
    up_channels: Literal["halve", "keep"] = "halve"
    level_shortcut: bool = False
    patch: int = 1
    patch_frames: int = 1
    block_kernel: tuple[int, int, int] = (3, 3, 3)
    edge_kernel: tuple[int, int, int] = (3, 3, 3)
    middle: Literal["attention", "blocks", "none"] = "attention"
    norm: Literal["rms", "group"] = "rms"
    norm_groups: int = 32
    norm_out: bool = True
    norm_eps: float = 1e-6
    out_width: int | None = None
    linear_path: bool = False
    quant: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    conv: Literal["auto", "winograd", "taps", "native"] = "auto"
    remat: bool = False

    def __post_init__(self) -> None:
        self._check_levels()
        for name in ("latent_channels", "base_channels", "blocks_per_level", "patch", "patch_frames", "norm_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vae.{name}={getattr(self, name)} must be at least 1")
        for name in ("block_kernel", "edge_kernel"):
            sizes = getattr(self, name)
            if len(sizes) != 3 or any(size < 1 or size % 2 == 0 for size in sizes):
                raise ConfigError(f"vae.{name}={sizes} must be three odd numbers: (t, h, w)")
        for name in ("decoder_base_channels", "out_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"vae.{name}={getattr(self, name)} must be at least 1, or None")
        if self.linear_path and any(self.temporal_down):
            raise ConfigError(
                "vae.linear_path=True needs frames that are folded, not halved: "
                f"vae.temporal_down={self.temporal_down} must be all False (vae.patch_frames folds them)"
            )
        if self.decoder_extra_blocks < 0:
            raise ConfigError(f"vae.decoder_extra_blocks={self.decoder_extra_blocks} must not be negative")
        widths = set(self.widths + self.decoder_widths)
        if self.norm == "group" and any(width % self.norm_groups for width in widths):
            raise ConfigError(f"vae widths {sorted(widths)} must be multiples of vae.norm_groups={self.norm_groups}")
        self._check_steps()

    def _check_levels(self) -> None:
        changes = len(self.channel_mults) - 1
        for name in ("spatial_down", "temporal_down"):
            if len(getattr(self, name)) != changes:
                raise ConfigError(
                    f"vae.{name}={getattr(self, name)} must have {changes} entries, one less than "
                    f"vae.channel_mults={self.channel_mults}"
                )
        for level, halves in enumerate(zip(self.spatial_down, self.temporal_down)):
            if not any(halves):
                raise ConfigError(f"vae change of level {level} halves nothing: drop the level")
        if min(self.channel_mults, default=0) < 1:
            raise ConfigError(f"vae.channel_mults={self.channel_mults} must be numbers from 1")

    def _check_steps(self) -> None:
        """Channels must divide where a step up halves them, or a shortcut regroups them."""
        for level, space in enumerate(self.spatial_down):
            width = self.decoder_widths[level + 1]
            if space and self.up_channels == "halve" and width % 2:
                raise ConfigError(
                    f"vae width {width} of level {level + 1} must be even, as the decoder "
                    f"halves it: change vae.base_channels={self.base_channels}"
                )
        if not self.level_shortcut:
            return
        if self.up_channels == "halve":
            raise ConfigError("vae.level_shortcut=True needs vae.up_channels='keep'")
        inwards = [(self.widths[max(i - 1, 0)], self.widths[i], self.change(i)) for i in range(len(self.widths))]
        wide = (*self.decoder_widths, self.decoder_widths[-1])
        outwards = [(wide[i], wide[i + 1], self.change(i - 1)) for i in range(1, len(self.widths))]
        for fewer, more, (time, space) in inwards + outwards:
            if fewer * time * space**2 % more:
                raise ConfigError(
                    f"vae.level_shortcut cannot regroup {fewer} channels x {time * space**2} into {more}: "
                    f"change vae.channel_mults={self.channel_mults}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder."""
        return tuple(self.base_channels * mult for mult in self.channel_mults)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, from the pixels inwards too."""
        return tuple((self.decoder_base_channels or self.base_channels) * mult for mult in self.channel_mults)

    def change(self, level: int) -> tuple[int, int]:
        """By what the step from `level` inwards divides time and each side of space; (1, 1) of the last."""
        if level == len(self.channel_mults) - 1:
            return 1, 1
        return 1 + self.temporal_down[level], 1 + self.spatial_down[level]

    @property
    def spatial_stride(self) -> int:
        """Pixels of a side that one latent stands for."""
        return self.patch * 2 ** sum(self.spatial_down)

    @property
    def temporal_stride(self) -> int:
        """Frames that one latent frame stands for, the first frame apart."""
        return self.patch_frames * 2 ** sum(self.temporal_down)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t', h', w', c) of the latents of a video of `frames` x `height` x `width`."""
        s = self.spatial_stride
        return 1 + (frames - 1) // self.temporal_stride, height // s, width // s, self.latent_channels


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A video discriminator that judges overlapping spacetime patches (Isola et al., 2017, in 3D).

    patch: side of the square of pixels folded into channels first.
    channel_mults: one strided convolution for each, of base_channels times this width. All halve space;
        temporal_down says which halve time.
    dtype: of the products.
    conv: the convolution algorithm (vdit.nn.conv).
    """

    base_channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 4)
    temporal_down: tuple[bool, ...] = (False, True, True)
    patch: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    conv: Literal["auto", "winograd", "taps", "native"] = "auto"

    def __post_init__(self) -> None:
        if len(self.temporal_down) != len(self.channel_mults):
            raise ConfigError(
                f"discriminator.temporal_down={self.temporal_down} must have as many entries as "
                f"discriminator.channel_mults={self.channel_mults}"
            )
        if self.patch < 1 or self.base_channels < 1:
            raise ConfigError("discriminator.patch and discriminator.base_channels must be at least 1")


class VAEObjective(Protocol):
    """What the training of a VAE minimises. Implementations are registered frozen dataclasses."""

    def make_loss(self, vae: VAEConfig, discriminator: DiscriminatorConfig) -> VAELoss:
        """A loss of {"vae": parameters, ...} on batches {"video": [b t h w 3]}.

        Args:
            vae: the network.
            discriminator: the usual discriminator, for losses that have one.

        Returns:
            A function (params, batch, key, step) -> (loss [], metrics). Its `init(key, video, boxed=...)` makes the
            parameters. Where the objective has a `decoder_share` above 0, its `for_decoder()` is the loss of the last
            steps, which takes no gradient of params["vae"]["encoder"].
        """
        ...


@register("vae_objective", "autoencoding")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class VAELossConfig(VAEObjective):
    """What a VAE is trained on. Every term is a mean over its elements, so weights do not depend on sizes.

    reconstruction: "l1", "mse", or "huber" (square below `huber_delta`, then linear).
    kl_weight: weight of the KL divergence of the latents from a standard normal.
    equivariance_weight: weight of the reconstruction of the video at half its size, mirrored and turned, from latents
        that are changed in the same way (EQ-VAE, Kouzelis et al., 2025); 0 leaves it out. Latents become smoother, and
        easier for a transformer to learn.
    latent_noise: the decoder is trained on latents with Gaussian noise, of a strength that is drawn for each clip from
        a half-normal distribution of this scale, in standard deviations of a channel (RAE, Zheng et al., 2025); 0
        leaves it out. What a transformer samples is never quite a latent: such a decoder forgives it.
    decoder_share: share of the steps, the last ones, in which the decoder alone is trained. The encoder stays as it is
        by then, and neither the divergence nor equivariance is asked for any more: latents that are easy to learn come
        first, sharp videos from them after. The decoder is trained on the mean of the latents, with `latent_noise`.
        `vae_train.optimizer.restart` at 1 - decoder_share has the learning rate come to its end for the encoder, too.
    decoder_reconstruction: the reconstruction in those steps; None goes on with `reconstruction`. "huber" after "mse"
        makes sharper edges at the right places; from the first step on it puts them at wrong ones
        (docs/experiment_log.md).
    decoder_edge_weight: weight, in those steps, of how much weaker or stronger edges are than the video's
        (`vdit.models.vae.losses.edge_loss`); 0 leaves it out.
    adversarial_weight: weight of the generator's term; 0 leaves the discriminator out.
    adversarial_start: step from which the discriminator is trained and heard.
    perceptual_weight: weight of the distance between SqueezeNet features; 0 leaves it out.
    perceptual_weights: the Keras h5 file with SqueezeNet 1.1's parameters (without top).
    perceptual_frames: frames of each clip that the perceptual term looks at, drawn at random.
    """

    reconstruction: Literal["l1", "mse", "huber"] = "l1"
    huber_delta: float = 0.1
    kl_weight: float = 1e-4
    equivariance_weight: float = 0.0
    latent_noise: float = 0.0
    decoder_share: float = 0.0
    decoder_reconstruction: Literal["l1", "mse", "huber"] | None = None
    decoder_edge_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    perceptual_weight: float = 0.0
    perceptual_weights: str | None = None
    perceptual_frames: int = 2

    def __post_init__(self) -> None:
        weights = ("kl_weight", "equivariance_weight", "adversarial_weight", "perceptual_weight")
        for name in (*weights, "decoder_edge_weight", "latent_noise", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ConfigError(f"vae_loss.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.decoder_share < 1:
            raise ConfigError(f"vae_loss.decoder_share={self.decoder_share} must be in [0, 1)")
        if self.huber_delta <= 0:
            raise ConfigError(f"vae_loss.huber_delta={self.huber_delta} must be above 0")
        if self.perceptual_frames < 1:
            raise ConfigError(f"vae_loss.perceptual_frames={self.perceptual_frames} must be at least 1")
        if self.perceptual_weight and not self.perceptual_weights:
            raise ConfigError(
                f"vae_loss.perceptual_weight={self.perceptual_weight} needs vae_loss.perceptual_weights, "
                "the path of SqueezeNet 1.1's Keras h5 file: give it, or set the weight to 0"
            )

    def make_loss(self, vae: VAEConfig, discriminator: DiscriminatorConfig) -> VAELoss:
        """The loss with its networks; reads the perceptual weights from disk. See VAEObjective."""
        from vdit.models.vae.losses import make_loss

        return make_loss(vae, self, discriminator)


PRESETS: dict[str, dict[str, object]] = {
    "wan21": {"norm_eps": 1e-24},
    "wan22": {
        "latent_channels": 48,
        "base_channels": 160,
        "decoder_base_channels": 256,
        "patch": 2,
        "up_channels": "keep",
        "level_shortcut": True,
        "norm_eps": 1e-24,
    },
    "sd": {
        "latent_channels": 4,
        "base_channels": 128,
        "temporal_down": (False, False, False),
        "up_channels": "keep",
        "block_kernel": (1, 3, 3),
        "edge_kernel": (1, 3, 3),
        "norm": "group",
    },
    "base": {
        "base_channels": 64,
        "patch": 2,
        "channel_mults": (1, 2, 4),
        "spatial_down": (True, True),
        "temporal_down": (True, True),
        "middle": "blocks",
    },
    "small": {
        "base_channels": 48,
        "patch": 4,
        "channel_mults": (1, 2, 2),
        "spatial_down": (False, True),
        "temporal_down": (True, True),
        "middle": "none",
        "blocks_per_level": 1,
    },
    "tiny": {
        "latent_channels": 8,
        "base_channels": 64,
        "patch": 4,
        "patch_frames": 4,
        "block_kernel": (1, 3, 3),
        "edge_kernel": (1, 1, 1),
        "norm_out": False,
        "channel_mults": (1, 2),
        "spatial_down": (True,),
        "temporal_down": (False,),
        "middle": "none",
        "blocks_per_level": 1,
        "decoder_extra_blocks": 0,
    },
}
# Folds pixels and frames in one step: many cheap training steps teach more than a few expensive ones. A latent of 48
# channels keeps a sixteenth of the values, by a linear code and what the networks add to it.
PRESETS["footage"] = PRESETS["tiny"] | {
    "latent_channels": 48,
    "base_channels": 96,
    "out_width": 384,
    "linear_path": True,
}


def preset(name: str, **changes: object) -> VAEConfig:
    """A VAE by name.

    Args:
        name: strides 4x8x8: "wan21" (127 M parameters), "base", "small", "footage" (real videos on a CPU), "tiny" (the
            quickstart's); 4x16x16: "wan22" (705 M); 1x8x8, for images: "sd", Stable Diffusion's (84 M).
        **changes: fields to set otherwise.

    Returns:
        The config.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"VAE preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return VAEConfig(**{**PRESETS[name], **changes})
