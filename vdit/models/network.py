"""The network as one thing: text encoder, image encoder, and a backbone on packed rows."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.models.backbone import Backbone, Context, Output, Spec
from vdit.models.conditioner import Conditioner
from vdit.models.conditions import TEXT_FEATURES, ActionCondition, ChannelsCondition, ClassCondition, TextCondition
from vdit.models.text.config import TextConfig
from vdit.models.text.encoder import make_encoder
from vdit.models.vision import CLIPVision, CLIPVisionConfig
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

HIGH, LOW = "dit", "dit_low"  # keys of the backbones' parameters, whichever they are


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Parameters are {"text": ..., "vision": ..., "dit": ..., "dit_low": ...}, of which "dit" is always there.

    text: None for models without text. backbone: the denoiser (vdit/models/backbone.py). conditions: what it takes
    besides the text and the conditions that its own config declares. vision: the image encoder of models that attend
    to an image (Wan 2.1 image-to-video). boundary: None, or the time (0..1000) from which up the backbone "dit" is
    asked, and below it a second one of the same form, "dit_low" (Wan 2.2 A14B).
    """

    text: TextConfig | None
    backbone: Backbone
    conditions: tuple[Conditioner, ...] = ()
    vision: CLIPVisionConfig | None = None
    boundary: float | None = None

    def __post_init__(self) -> None:
        encoded = {c.name: c.shape[-1] for c in self.backbone.conditions if c.axis == "sequence"}
        wanted, found = self.vision.width if self.vision is not None else 0, encoded.get("image", 0)
        if found != wanted:
            rule = f"must be vision.width={wanted} (0 without vision)"
            raise ConfigError(f"backbone.image_width={found} {rule}")
        names = [condition.name for condition in (*self.backbone.conditions, *self.conditions)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"conditions named {', '.join(sorted(twice))} more than once: rename or leave one out")

    @property
    def uses_text(self) -> bool:
        return self.text is not None and self.backbone.uses_text

    @property
    def spec(self) -> Spec:
        """The conditions and the text that the backbone takes."""
        return Spec(
            conditions=(*self.backbone.conditions, *self.conditions),
            text_width=self.text.width if self.uses_text else None,
        )

    @property
    def all_conditions(self) -> tuple[Conditioner, ...]:
        """Every condition, text included."""
        text = (TextCondition(config=self.text),) if self.uses_text else ()
        return (*text, *self.spec.conditions)

    @property
    def classes(self) -> int:
        """How many class labels the backbone knows; 0 for none."""
        return next((c.classes for c in self.spec.conditions if isinstance(c, ClassCondition)), 0)

    @property
    def action_width(self) -> int:
        """Numbers that say what is done in one frame of tokens; 0 for none."""
        return next((c.width for c in self.spec.conditions if isinstance(c, ActionCondition)), 0)

    @property
    def reference_channels(self) -> int:
        """Channels in which a reference video and its mask lie beside the noisy latents; 0 for none."""
        return next((c.channels for c in self.spec.conditions if isinstance(c, ChannelsCondition)), 0)

    @property
    def experts(self) -> tuple[str, ...]:
        """Keys of the backbones' parameters."""
        return (HIGH,) if self.boundary is None else (HIGH, LOW)

    def init(self, key: Array) -> PyTree:
        """Fresh parameters, in boxes that carry their logical axes."""
        one = jnp.ones((1, 1), jnp.int32)
        params = {}
        if self.uses_text and not self.backbone.embeds_text:
            params["text"] = make_encoder(self.text).init(key, 0 * one, one, 0 * one)["params"]
        if self.vision is not None:
            side = self.vision.image_size
            params["vision"] = CLIPVision(self.vision).init(key, jnp.zeros((1, side, side, 3), jnp.float32))["params"]
        for expert in self.experts:
            params[expert] = self.backbone.init(key, self.spec)
        return params

    def encode_text(self, params: PyTree, row: Row) -> Array | None:
        """Captions of the row, encoded: float [b m e]; None without text. Features that the row has are taken."""
        if not self.uses_text or self.backbone.embeds_text:
            return None
        if TEXT_FEATURES in row.cond:
            return row.cond[TEXT_FEATURES].astype(jnp.float32)
        variables = {"params": params["text"]}
        return make_encoder(self.text).apply(variables, row.text, row.text_segment_ids, row.text_position)

    def encode_image(self, params: PyTree, pixels: Array) -> Array:
        """Images as the backbone attends to them: float [b side side 3], prepared by vdit.vision -> [b m e]."""
        return CLIPVision(self.vision).apply({"params": params["vision"]}, pixels)

    def apply(
        self, params: PyTree, row: Row, time: Array, text: Array | None = None, *, expert: str = HIGH, **context
    ) -> Output:
        """Predicts for noisy `row.values`.

        Args:
            params: as `init` makes them, without boxes.
            row: noisy tokens, with every condition in `row.cond` that is not optional.
            time: [b k], the noise level of each frame in 0..1000.
            text: encoded captions, if they are at hand already (sampling encodes them once).
            expert: which of `experts` is asked.
            context: cache, return_cache, return_hidden and block_cache (vdit.models.backbone.Context), of that expert.
        """
        if text is None:
            text = self.encode_text(params, row)
        return self.backbone.apply(params[expert], row, time, Context(spec=self.spec, text=text, **context))

    def with_prompts(self, row: Row, ids: Array) -> Row:
        """The row with what prompts say besides captions: of models without text, the class that is their one token.

        Args:
            row: one clip a row.
            ids: int32 [b m], tokens of the prompts (vdit.models.text.tokenizer).
        """
        for condition in self.spec.conditions:
            if condition.prompted and not self.uses_text:
                row = row.with_cond(condition.name, ids[:, :1].astype(condition.dtype), condition.axis)
        return row

    def drop(self, row: Row, clips: Array) -> Row:
        """The row as the negative rows of guidance have it in these clips, bool [b s+1]: without what is guided."""
        for condition in self.all_conditions:
            if condition.guided:
                row = condition.drop(row, clips)
        return row
