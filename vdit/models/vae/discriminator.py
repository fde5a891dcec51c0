"""A video discriminator: one score for each overlapping patch of spacetime."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from vdit.models.vae.blocks import fold
from vdit.models.vae.config import DiscriminatorConfig
from vdit.nn.conv import Conv
from vdit.nn.halo import WHOLE, Split
from vdit.nn.norm import RMSNorm
from vdit.types import Array


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
