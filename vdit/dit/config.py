"""What a diffusion transformer is made of; presets."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vdit.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """One transformer for class-conditional DiT, Wan 2.x and vdit's own models.

    in_channels: channels of the latents (vdit.vae.VAEConfig.latent_channels).
    patch: latent frames, rows and columns folded into one token.
    modulation: "block", an adaLN-Zero projection in each block (Peebles and Xie, 2023), or "shared", one
        projection for all blocks plus a learned table in each (Wan, PixArt-alpha).
    position: "rope" turns queries and keys in 3D; "sincos" adds fixed embeddings at the input; "both" does
        both: small models place things much sooner when tokens know where they are.
    qk_norm: RMS norm of queries and keys over the "full" width (Wan), over each "head", or "none".
    text: "cross" adds text cross-attention to each block; "none" leaves it out.
    text_pool: also add the caption's mean text embedding to the time embedding (as SDXL does); small
        models learn the words much sooner with it.
    classes: number of class labels, 0 for none. One more row of the table stands for "no class".
    learn_variance: predict 2 x channels, the second half for the variance (Nichol and Dhariwal, 2021).
    dtype: type of the matrix products; norms, softmax, modulation and time stay float32.
    remat: "none" keeps all activations, "full" recomputes each block in the backward, "dots" keeps the
        results of matrix products with parameters only.
    scan: run blocks under lax.scan, with parameters stacked over layers (compiles 5 times faster).
    """

    in_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int | None = None
    modulation: Literal["block", "shared"] = "shared"
    position: Literal["rope", "sincos", "both"] = "rope"
    qk_norm: Literal["none", "full", "head"] = "head"
    text: Literal["none", "cross"] = "cross"
    text_pool: bool = True
    classes: int = 0
    learn_variance: bool = False
    time_features: int = 256
    norm_eps: float = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots"] = "none"
    scan: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"dit.width={self.width} must be a multiple of dit.heads={self.heads}")
        if self.position != "sincos" and self.head_dim % 2:
            raise ConfigError(
                f"dit.width/dit.heads={self.head_dim} must be even for rotary positions: change dit.heads"
            )
        if self.position != "rope" and self.width % 4:
            raise ConfigError(f"dit.width={self.width} must be a multiple of 4 for sin-cos positions")
        for name in ("in_channels", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"dit.{name}={getattr(self, name)} must be at least 1")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ConfigError(f"dit.patch={self.patch} must be three numbers, each at least 1: (t, h, w)")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width

    @property
    def token_values(self) -> int:
        """p: how many latent values a token carries."""
        return math.prod(self.patch) * self.in_channels

    def flops(self, tokens: int, clip_tokens: float, text_tokens: float = 0.0) -> float:
        """FLOPs of one forward pass over `tokens`, in clips of `clip_tokens` (a multiply-add is two).

        Training costs three times as much. Attention is counted within clips: what is useful, not what a
        kernel that ignores clip boundaries spends.
        """
        d, hidden = self.width, self.hidden
        linear = 4 * d * d + 2 * d * hidden
        score = 2 * clip_tokens * d
        if self.text == "cross":
            linear += 2 * d * d
            score += 2 * text_tokens * d
        out = self.token_values * (2 if self.learn_variance else 1)
        return 2.0 * tokens * (self.depth * (linear + score) + d * (self.token_values + out))


def preset(name: str, **changes: object) -> DiTConfig:
    """A named size: "tiny", "S", "B", "L", "XL" (widths and depths of Peebles and Xie, 2023)."""
    sizes = {
        "tiny": {"width": 128, "depth": 4, "heads": 4},
        "S": {"width": 384, "depth": 12, "heads": 6},
        "B": {"width": 768, "depth": 12, "heads": 12},
        "L": {"width": 1024, "depth": 24, "heads": 16},
        "XL": {"width": 1152, "depth": 28, "heads": 16},
    }
    if name not in sizes:
        raise ConfigError(f"DiT preset {name!r} is unknown: use one of {', '.join(sizes)}")
    return DiTConfig(**{**sizes[name], **changes})
