"""The conditions that vdit brings: text, class label, action, reference image, image channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vdit.dist.rules import constrain
from vdit.models.conditioner import Conditioner, clips_to_frames
from vdit.models.text.config import TextConfig
from vdit.models.text.encoder import drop_captions
from vdit.nn.embedding import Embed
from vdit.nn.layers import MLP, LayerNorm, Linear
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, Axis, Row

OF_FRAMES = ("batch", None, None)
TEXT_FEATURES, TEXT_EMPTY = "text_features", "text_empty"  # names of cached text in a row


@register("conditioner", "text")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition(Conditioner):
    """A caption. Its token ids have fields of their own in a row, since captions differ in length.

    config: of the tokenizer and the encoder.
    """

    config: TextConfig = TextConfig()
    dropout: float = 0.0
    name: ClassVar[str] = "text"
    axis: ClassVar[Axis] = "sequence"
    prompted: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.config.max_length, self.config.width)

    def drop(self, row: Row, clips: Array) -> Row:
        """The captions of these clips become the empty prompt, and so do their features where a row has them."""
        text, ids = drop_captions(self.config, row.text, row.text_segment_ids, row.text_position, clips[:, 1:])
        if TEXT_FEATURES in row.cond:
            features = row.cond[TEXT_FEATURES]
            empty = clips_to_frames(row.cond[TEXT_EMPTY], row.text_segment_ids)
            empty = jnp.where(row.text_position[..., None] == 0, empty, 0).astype(features.dtype)
            dropped = jnp.take_along_axis(clips, row.text_segment_ids, axis=1)[..., None]
            row = row.with_cond(TEXT_FEATURES, jnp.where(dropped, empty, features), "text")
        return dataclasses.replace(row, text=text, text_segment_ids=ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFeatures(Conditioner):
    """Encoded captions, in place of a text encoder (vdit.data.texts): one vector for each text token of a row.

    width: of a vector. stored: its type in a row.
    """

    width: int
    stored: str = "float16"
    dropout: float = 0.0
    name: ClassVar[str] = TEXT_FEATURES
    axis: ClassVar[Axis] = "text"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    @property
    def dtype(self) -> str:
        return self.stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmptyText(TextFeatures):
    """The encoded empty prompt, which is one token: what a clip has whose caption is dropped."""

    name: ClassVar[str] = TEXT_EMPTY
    axis: ClassVar[Axis] = "clip"


@register("conditioner", "class_label")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition(Conditioner):
    """A class label from 1 to `classes`; 0 stands for "no class".

    classes: how many there are; 0 for models without (the labels are packed all the same).
    """

    classes: int = 0
    dropout: float = 0.0
    name: ClassVar[str] = "label"
    axis: ClassVar[Axis] = "clip"
    shape: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[str] = "int32"
    prompted: ClassVar[bool] = True

    def read(self, sample: Mapping[str, Any]) -> np.ndarray:
        return np.asarray(int(sample.get("label", 0)), np.int32)

    def embed(self, values: Array, width: int) -> Array:
        return Embed(self.classes + 1, width, name="label_embed")(values)


@register("conditioner", "action")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionCondition(Conditioner):
    """What is done in each video frame: numbers (vdit.data.conditions). Camera poses go the same way.

    width: numbers of one frame of tokens: those of all video frames that it stands for.
    """

    width: int
    dropout: float = 0.0
    name: ClassVar[str] = "action"
    axis: ClassVar[Axis] = "frame"
    field: ClassVar[str] = "actions"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    def embed(self, values: Array, width: int) -> Array:
        return MLP(width, width, name="action")(constrain(values, OF_FRAMES))


@register("conditioner", "channels")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelsCondition(Conditioner):
    """Known latents and their mask, as channels beside the noisy latents (Wan's image-to-video).

    channels: of one latent: Wan has 4 of mask and 16 of latents.
    """

    channels: int
    dropout: float = 0.0
    name: ClassVar[str] = "condition"
    axis: ClassVar[Axis] = "token"
    optional: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels,)

    def embed(self, values: Array, width: int) -> Array:
        return values


@register("conditioner", "image")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageCondition(Conditioner):
    """A reference image as tokens of an image encoder (Wan 2.1's image-to-video: CLIP's).

    width: of the encoder. positions: how many tokens have a learned position; 0 for no such positions (Wan 2.1's
    first and last frame: 514). products: type of the matrix products.
    """

    width: int
    positions: int = 0
    products: str = "float32"
    dropout: float = 0.0
    name: ClassVar[str] = "image"
    axis: ClassVar[Axis] = "sequence"
    optional: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.positions or 1, self.width)

    def features(self, patch: tuple[int, int, int]) -> tuple[int, ...]:
        return self.shape

    def embed(self, values: Array, width: int) -> Array:
        return ImageEmbed(self, width, name="image_embed")(values)


class ImageEmbed(nn.Module):
    """Encoded images to tokens that the blocks attend to: `[b s m e] -> [b s m d]` (Wan 2.1)."""

    config: ImageCondition
    width: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        cfg, dtype, eps = self.config, jnp.dtype(self.config.products), 1e-5  # Wan leaves torch's default here
        b, s, m, _ = image.shape
        if cfg.positions:
            init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, "embed"))
            table = self.param("position", init, (cfg.positions, cfg.width))
            image = image + table[:m]
        x = LayerNorm(eps, name="norm_in")(image.reshape(b, s * m, -1))
        x = Linear(cfg.width, ("embed", "mlp"), dtype=dtype, name="up")(x)
        x = Linear(self.width, ("mlp", "embed"), dtype=dtype, name="down")(nn.gelu(x, approximate=False))
        return LayerNorm(eps, name="norm_out")(x).reshape(b, s, m, -1)
