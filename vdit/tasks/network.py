"""The trained network as one thing: text encoder and diffusion transformer on packed rows."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from vdit.dit.config import DiTConfig
from vdit.dit.model import DiT
from vdit.text.config import TextConfig
from vdit.text.encoder import Encoder
from vdit.types import Array, PyTree, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Text encoder and DiT, trained together; parameters are {"text": ..., "dit": ...}.

    text: None for models without text.
    """

    text: TextConfig | None
    dit: DiTConfig

    def init(self, key: Array) -> PyTree:
        """Fresh parameters, in boxes that carry their logical axes."""
        row = _smallest_row(self.dit.token_values)
        time = jnp.zeros(row.slot_clip.shape, jnp.float32)
        params = {}
        if self.uses_text:
            encoder = Encoder(self.text)
            args = (row.text, row.text_clip, row.text_position)
            params["text"] = encoder.init(key, *args)["params"]
            text = jnp.zeros((*row.text.shape, self.text.width), jnp.float32)
        else:
            text = None
        params["dit"] = DiT(self.dit).init(key, row.values, text=text, **_dit_inputs(row, time))["params"]
        return params

    def encode_text(self, params: PyTree, row: Row) -> Array | None:
        """Captions of the row, encoded: float [b m e]; None without text."""
        if not self.uses_text:
            return None
        variables = {"params": params["text"]}
        return Encoder(self.text).apply(variables, row.text, row.text_clip, row.text_position)

    def apply(self, params: PyTree, row: Row, time: Array, text: Array | None = None) -> Array:
        """Predict for noisy `row.values` at slot times `time` [b k]: float32 [b n p] (2p with variance).

        text: encoded captions, if they are at hand already (sampling encodes them once).
        """
        if text is None:
            text = self.encode_text(params, row)
        inputs = _dit_inputs(row, time)
        return DiT(self.dit).apply({"params": params["dit"]}, row.values, text=text, **inputs)

    @property
    def uses_text(self) -> bool:
        return self.text is not None and self.dit.text != "none"


def _smallest_row(p: int) -> Row:
    """A row of one clip of one token with one token of text; parameters do not depend on sizes."""
    one = jnp.ones((1, 1), jnp.int32)
    zero = jnp.zeros((1, 1), jnp.int32)
    return Row(
        values=jnp.zeros((1, 1, p), jnp.float32),
        position=jnp.zeros((1, 1, 3), jnp.int32),
        clip=one,
        slot=zero,
        slot_clip=one,
        text=zero,
        text_clip=one,
        text_position=zero,
        label=zero,
    )


def _dit_inputs(row: Row, time: Array) -> dict[str, Array]:
    return {
        "time": time,
        "position": row.position,
        "clip": row.clip,
        "slot": row.slot,
        "slot_clip": row.slot_clip,
        "text_clip": row.text_clip,
        "label": row.label,
    }
