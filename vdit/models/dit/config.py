"""What a diffusion transformer is made of; presets."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.models.backbone import Backbone, Context, Output, Spec, smallest_row
from vdit.models.cache import KVCache, Residuals
from vdit.models.conditioner import Conditioner
from vdit.models.conditions import ActionCondition, ChannelsCondition, ClassCondition, ImageCondition
from vdit.nn.embedding import rotate, rotations
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row


@register("backbone", "dit")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(Backbone):
    """One transformer for class-conditional DiT, Wan 2.x and vdit's own models.

    in_channels: channels of the latents (vdit.models.vae.VAEConfig.latent_channels).
    condition_channels: channels of known latents and masks that come beside the noisy ones, 0 for none
        (Wan's image-to-video: 4 of mask, 16 of latents).
    patch: latent frames, rows and columns folded into one token.
    width, depth, heads: channels of the residual stream, number of blocks, attention heads.
    mlp_width: hidden width of the MLPs; None is 4 * width.
    modulation: "block", an adaLN-Zero projection in each block (Peebles and Xie, 2023), or "shared", one
        projection for all blocks plus a learned table in each (Wan, PixArt-alpha).
    position: "rope" turns queries and keys in 3D; "sincos" adds fixed embeddings at the input; "both" does
        both: small models place things much sooner when tokens know where they are.
    qk_norm: RMS norm of queries and keys over the "full" width (Wan), over each "head", or "none".
    text: "cross" adds text cross-attention to each block; "none" leaves it out.
    text_width: width of the encoded captions; None for that of the encoder that the model is trained with.
    text_pool: also add the caption's mean text embedding to the time embedding (as SDXL does); small
        models learn the words much sooner with it.
    classes: number of class labels, 0 for none. One more row of the table stands for "no class".
    image_width: width of encoded images, which the text cross-attention then attends to as well, with keys
        and values of their own; 0 for none (Wan 2.1's image-to-video: CLIP's 1280).
    image_positions: how many tokens of encoded images a clip has, where each has a learned position; 0 for
        no such positions (Wan 2.1's first and last frame: 514).
    action_width: numbers that say what is done in one frame of tokens, embedded beside its noise level; 0 for none.
    causal: frames read themselves and earlier ones of their clip, not later ones: world models that take
        actions and answer frame by frame (diffusion forcing, Chen et al. 2024; CausVid, Yin et al. 2024). What was
        computed of finished frames can be kept and used again (vdit/models/cache.py).
    learn_variance: predict 2 x channels, the second half for the variance (Nichol and Dhariwal, 2021).
    time_frequency_shift: the sinusoids of the time embedding have the frequencies
        10000^(-i / (time_features / 2 - shift)): 0 in DiT and Wan, 1 in diffusers' DiT.
    norm_eps: added to the mean square by every norm of the blocks and of the head.
    mlp_norm_eps: that of the norm before the MLP where it is another (diffusers' DiT: 1e-5); None for norm_eps.
    dtype: type of the matrix products; norms, softmax, modulation and time stay float32.
    remat: "none" keeps all activations, "full" recomputes each block in the backward, "dots" keeps the
        results of matrix products with parameters only, "attention" those of attention only.
    sequence_parallel: where mesh.sequence shares out the tokens of a row, devices meet in self-attention by
        "ulysses" (exchange heads for tokens), a "ring" (pass keys on), or "auto": heads as far as they go round,
        a ring for the rest (vdit/nn/attention/sequence.py).
    scan: run blocks under lax.scan, with parameters stacked over layers (compiles 5 times faster).
    """

    in_channels: int = 16
    condition_channels: int = 0
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_width: int | None = None
    modulation: Literal["block", "shared"] = "shared"
    position: Literal["rope", "sincos", "both"] = "rope"
    qk_norm: Literal["none", "full", "head"] = "head"
    text: Literal["none", "cross"] = "cross"
    text_width: int | None = None
    text_pool: bool = True
    classes: int = 0
    image_width: int = 0
    image_positions: int = 0
    action_width: int = 0
    causal: bool = False
    learn_variance: bool = False
    time_features: int = 256
    time_frequency_shift: int = 0
    norm_eps: float = 1e-6
    mlp_norm_eps: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots", "attention"] = "none"
    sequence_parallel: Literal["auto", "ulysses", "ring"] = "auto"
    scan: bool = True

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"backbone.width={self.width} must be a multiple of backbone.heads={self.heads}")
        if self.position != "sincos" and self.head_dim % 2:
            raise ConfigError(
                f"dit.width/dit.heads={self.head_dim} must be even for rotary positions: change dit.heads"
            )
        if self.position != "rope" and self.width % 4:
            raise ConfigError(f"backbone.width={self.width} must be a multiple of 4 for sin-cos positions")
        for name in ("in_channels", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"backbone.{name}={getattr(self, name)} must be at least 1")
        for name in ("condition_channels", "image_width", "image_positions", "action_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"backbone.{name}={getattr(self, name)} must not be negative: use 0 for none")
        if self.image_width and self.text != "cross":
            raise ConfigError(
                f"backbone.image_width={self.image_width} needs the text cross-attention: set backbone.text='cross'"
            )
        if self.image_positions and not self.image_width:
            raise ConfigError(f"backbone.image_positions={self.image_positions} needs encoded images (image_width)")
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ConfigError(f"backbone.patch={self.patch} must be three numbers, each at least 1: (t, h, w)")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_width or 4 * self.width

    @property
    def uses_text(self) -> bool:
        return self.text != "none"

    @property
    def caches_frames(self) -> bool:
        """Only where positions are distances, so that cached frames can move to earlier positions."""
        return self.causal and self.position == "rope"

    @property
    def caches_blocks(self) -> bool:
        return True

    @property
    def conditions(self) -> tuple[Conditioner, ...]:
        """What `classes`, `action_width`, `condition_channels` and `image_width` declare."""
        found: list[Conditioner] = []
        if self.classes:
            found.append(ClassCondition(classes=self.classes))
        if self.action_width:
            found.append(ActionCondition(width=self.action_width))
        if self.condition_channels:
            found.append(ChannelsCondition(channels=self.condition_channels))
        if self.image_width:
            image = ImageCondition(width=self.image_width, positions=self.image_positions, products=self.dtype)
            found.append(image)
        return tuple(found)

    def init(self, key: Array, spec: Spec) -> PyTree:
        from vdit.models.dit.model import DiT

        row, text = smallest_row(self, spec.conditions), None
        if spec.text_width is not None:
            text = jnp.zeros((*row.text.shape, spec.text_width), jnp.float32)
        time = jnp.zeros(row.frame_segment_ids.shape, jnp.float32)
        return DiT(self, spec.conditions).init(key, row, time, text)["params"]

    def apply(self, params: PyTree, row: Row, levels: Array, context: Context) -> Output:
        from vdit.models.dit.model import DiT

        return DiT(self, context.spec.conditions).apply(
            {"params": params}, row, levels, context.text, cache=context.cache, return_cache=context.return_cache,
            return_hidden=context.return_hidden, block_cache=context.block_cache,
        )  # fmt: skip

    def with_remat(self, policy: str) -> DiTConfig:
        return dataclasses.replace(self, remat=policy)

    def empty_cache(self, rows: int, tokens: int) -> KVCache:
        zeros = jnp.zeros((self.depth, rows, tokens, self.heads, self.head_dim), self.dtype)
        marks = jnp.zeros((rows, tokens), jnp.int32)
        return KVCache(keys=zeros, values=zeros, time=marks, segment_ids=marks)

    def shift_cache(self, cache: KVCache, frames: Array) -> KVCache:
        """Keys are turned back as rotary positions are; what is before frame 0 then stays at 0."""
        by = jnp.asarray(frames)
        cos, sin = rotations(jnp.stack([by, 0 * by, 0 * by])[None, None], self.head_dim)
        keys = rotate(cache.keys.reshape(-1, *cache.keys.shape[2:]), cos, -sin).reshape(cache.keys.shape)
        return dataclasses.replace(cache, keys=keys, time=jnp.maximum(cache.time - by, 0))

    def empty_residuals(self, rows: int, tokens: int) -> Residuals:
        return Residuals.empty(rows, tokens, self.width, self.dtype)

    @property
    def token_values(self) -> int:
        """p: how many latent values a token carries."""
        return math.prod(self.patch) * self.in_channels

    @property
    def condition_values(self) -> int:
        """pc: how many values of the condition a token carries."""
        return math.prod(self.patch) * self.condition_channels

    def flops(
        self, tokens: int, clip_tokens: float, text_tokens: float = 0.0, image_tokens: float = 0.0, *,
        frame_tokens: float = 0.0, past_tokens: float = 0.0,
    ) -> float:  # fmt: skip
        """FLOPs of one forward pass over `tokens`, in clips of `clip_tokens` (a multiply-add is two).

        text_tokens and image_tokens: those that a clip attends to. Training costs three times as much.
        Attention is counted within clips: what is useful, not what a kernel that ignores clip boundaries
        spends. So of causal models half a clip and half a frame, of frame_tokens (0 where it is not known: they are
        few), and all of past_tokens, those kept of its finished frames. Keys and values of text and images are left
        out: they are few.
        """
        d, hidden = self.width, self.hidden
        linear = 4 * d * d + 2 * d * hidden
        keys = (clip_tokens + frame_tokens) / 2 if self.causal else clip_tokens
        score = 2 * (keys + past_tokens) * d
        if self.text == "cross":
            linear += 2 * d * d
            score += 2 * text_tokens * d
        if self.image_width:
            score += 2 * image_tokens * d
        out = self.token_values * (2 if self.learn_variance else 1)
        return 2.0 * tokens * (self.depth * (linear + score) + d * (self.token_values + self.condition_values + out))


SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 128, "depth": 4, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
# The block of Peebles and Xie (2023): class-conditional images of 4 latent channels.
CLASS_CONDITIONAL: dict[str, object] = {
    "in_channels": 4,
    "modulation": "block",
    "position": "sincos",
    "qk_norm": "none",
    "text": "none",
    "text_pool": False,
    "classes": 1000,
    "learn_variance": True,
}
# The block of Wan (2025): text is umT5-XXL's 4096.
WAN: dict[str, object] = {
    "modulation": "shared",
    "position": "rope",
    "qk_norm": "full",
    "text": "cross",
    "text_width": 4096,
    "text_pool": False,
}
_WAN_14B = {**WAN, "width": 5120, "depth": 40, "heads": 40, "mlp_width": 13824}
_WAN_1_3B = {**WAN, "width": 1536, "depth": 30, "heads": 12, "mlp_width": 8960}
_WAN_5B = {**WAN, "in_channels": 48, "width": 3072, "depth": 30, "heads": 24, "mlp_width": 14336}
PRESETS: dict[str, dict] = {
    **SIZES,
    **{
        f"DiT-{size}/{patch}": {**CLASS_CONDITIONAL, **SIZES[size], "patch": (1, patch, patch)}
        for size in ("S", "B", "L", "XL")
        for patch in (2, 4, 8)
    },
    "wan2.1-t2v-1.3b": _WAN_1_3B,
    "wan2.1-t2v-14b": _WAN_14B,
    "wan2.1-i2v-14b": {**_WAN_14B, "condition_channels": 20, "image_width": 1280},
    "wan2.2-ti2v-5b": _WAN_5B,
    "wan2.2-t2v-a14b": _WAN_14B,
    "wan2.2-i2v-a14b": {**_WAN_14B, "condition_channels": 20},
}


def preset(name: str, **changes: object) -> DiTConfig:
    """A transformer by name.

    Args:
        name: "tiny", "S", "B", "L" or "XL" (width, depth and heads of Peebles and Xie, 2023; the rest is DiTConfig's
            own), "DiT-XL/2" or the like, or a Wan transformer, as "wan2.1-t2v-1.3b". Both experts of Wan 2.2 A14B have
            one shape.
        **changes: fields to set otherwise.

    Returns:
        The config.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in PRESETS:
        raise ConfigError(f"DiT preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return DiTConfig(**{**PRESETS[name], **changes})
