"""The network as one thing: text encoder, image encoder, diffusion transformer on packed rows."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.models.dit.config import DiTConfig
from vdit.models.dit.model import DiT
from vdit.models.dit.past import KVCache
from vdit.models.dit.reuse import Residuals, Reusing
from vdit.models.text.config import TextConfig
from vdit.models.text.encoder import make_encoder
from vdit.models.vision import CLIPVision, CLIPVisionConfig
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

HIGH, LOW = "dit", "dit_low"


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Parameters are {"text": ..., "vision": ..., "dit": ..., "dit_low": ...}, of which "dit" is always there.

    text: None for models without text. vision: the image encoder of models whose transformer attends to an
    image (Wan 2.1 image-to-video). boundary: None, or the time (0..1000) from which up the transformer "dit"
    is asked, and below it a second one of the same form, "dit_low" (Wan 2.2 A14B).
    """

    text: TextConfig | None
    dit: DiTConfig
    vision: CLIPVisionConfig | None = None
    boundary: float | None = None

    def __post_init__(self) -> None:
        wanted = self.vision.width if self.vision is not None else 0
        if self.dit.image_width != wanted:
            rule = f"must be vision.width={wanted} (0 without vision)"
            raise ConfigError(f"dit.image_width={self.dit.image_width} {rule}")

    @property
    def uses_text(self) -> bool:
        return self.text is not None and self.dit.text != "none"

    @property
    def experts(self) -> tuple[str, ...]:
        """Keys of the transformers' parameters."""
        return (HIGH,) if self.boundary is None else (HIGH, LOW)

    def init(self, key: Array) -> PyTree:
        """Fresh parameters, in boxes that carry their logical axes."""
        row = _smallest_row(self.dit)
        time = jnp.zeros(row.frame_segment_ids.shape, jnp.float32)
        params, extra = {}, {}
        text = None
        if self.uses_text:
            params["text"] = make_encoder(self.text).init(key, row.text, row.text_segment_ids, row.text_position)[
                "params"
            ]
            text = jnp.zeros((*row.text.shape, self.text.width), jnp.float32)
        if self.vision is not None:
            side = self.vision.image_size
            params["vision"] = CLIPVision(self.vision).init(key, jnp.zeros((1, side, side, 3), jnp.float32))["params"]
            extra["image"] = jnp.zeros((1, 1, self.vision.width), jnp.float32)
            extra["image_segment_ids"] = row.segment_ids
        if self.dit.condition_channels:
            values = math.prod(self.dit.patch) * self.dit.condition_channels
            extra["condition"] = jnp.zeros((1, 1, values), jnp.float32)
        for expert in self.experts:
            inputs = _dit_inputs(row, time) | extra
            params[expert] = DiT(self.dit).init(key, row.values, text=text, **inputs)["params"]
        return params

    def encode_text(self, params: PyTree, row: Row) -> Array | None:
        """Captions of the row, encoded: float [b m e]; None without text."""
        if not self.uses_text:
            return None
        variables = {"params": params["text"]}
        return make_encoder(self.text).apply(variables, row.text, row.text_segment_ids, row.text_position)

    def encode_image(self, params: PyTree, pixels: Array) -> Array:
        """Images as the transformer attends to them: float [b side side 3], prepared by vdit.models.vision -> [b m
        e]."""
        return CLIPVision(self.vision).apply({"params": params["vision"]}, pixels)

    def apply(
        self,
        params: PyTree,
        row: Row,
        time: Array,
        text: Array | None = None,
        *,
        condition: Array | None = None,
        image: Array | None = None,
        expert: str = HIGH,
        past: KVCache | None = None,
        keep: bool = False,
        reuse: Reusing | None = None,
    ) -> Array | tuple[Array, KVCache] | tuple[Array, Residuals]:
        """Predict for noisy `row.values` at slot times `time` [b k]: float32 [b n p] (2p with variance).

        text: encoded captions, if they are at hand already (sampling encodes them once).
        condition: [b n pc], further channels of each token. image: [b m e], encoded images, one for clip 1 of
        each row. expert: which of `experts` is asked. past: finished frames of the row's clips, as that expert kept
        them; keep: return (prediction, Past of this row) (causal models: vdit/models/dit/past.py). reuse: residuals of
        an
        earlier call of that expert; returned are (prediction, Residuals) (vdit/models/dit/reuse.py).
        """
        if text is None:
            text = self.encode_text(params, row)
        inputs = _dit_inputs(row, time)
        if condition is not None:
            inputs["condition"] = condition
        if image is not None:
            inputs |= {"image": image, "image_segment_ids": jnp.ones(image.shape[:2], jnp.int32)}
        inputs |= {"text": text, "past": past, "keep": keep, "reuse": reuse}
        return DiT(self.dit).apply({"params": params[expert]}, row.values, **inputs)


def _smallest_row(dit: DiTConfig) -> Row:
    """A row of one clip of one token with one token of text; parameters do not depend on sizes."""
    one = jnp.ones((1, 1), jnp.int32)
    zero = jnp.zeros((1, 1), jnp.int32)
    return Row(
        values=jnp.zeros((1, 1, dit.token_values), jnp.float32),
        position=jnp.zeros((1, 1, 3), jnp.int32),
        segment_ids=one,
        frame_index=zero,
        frame_segment_ids=one,
        text=zero,
        text_segment_ids=one,
        text_position=zero,
        label=zero,
        action=jnp.zeros((1, 1, dit.action_width), jnp.float32) if dit.action_width else None,
    )


def _dit_inputs(row: Row, time: Array) -> dict[str, Array]:
    action = {} if row.action is None else {"action": row.action}
    return action | {
        "time": time,
        "position": row.position,
        "segment_ids": row.segment_ids,
        "frame_index": row.frame_index,
        "frame_segment_ids": row.frame_segment_ids,
        "text_segment_ids": row.text_segment_ids,
        "label": row.label,
    }
