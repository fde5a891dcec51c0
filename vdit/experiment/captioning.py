"""Objectives of language: the next token of a text, and captions of clips in two stages, as LLaVA is trained.

    loss, accuracy = next_token_loss(logits, text, segment_ids, end=2)       # any packed texts

    Experiment(..., backbone=Captioner(...), objective=Captioning(text_steps=500, connector_steps=500))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vdit.diffusion.objectives import weighted_mean
from vdit.errors import ConfigError
from vdit.experiment.objectives import DiffusionModel, LossFn, Objective
from vdit.models.captioner import Captioner, CaptionerModel
from vdit.models.network import HIGH
from vdit.registry import register
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

END = 2  # the end of a text, in tokenizers that vdit trains
SEPARATOR = " | "


def next_token_loss(logits: Array, text: Array, segment_ids: Array, *, end: int = END) -> tuple[Array, Array]:
    """Cross-entropy of each token's successor in its text; the successor of the last one is `end`.

    Args:
        logits: float32 [b m v], scores at each token.
        text: int [b m], packed texts.
        segment_ids: int [b m], the text of each token; 0 for padding.
        end: id of the end.

    Returns:
        (loss float32 [], accuracy float32 []), means over all tokens that are no padding.
    """
    following = jnp.pad(text[:, 1:], ((0, 0), (0, 1)))
    same = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1))) == segment_ids
    target = jnp.where(same, following, end)
    useful = (segment_ids > 0).astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    cost = jax.nn.logsumexp(logits, axis=-1) - chosen
    hit = (jnp.argmax(logits, axis=-1) == target).astype(jnp.float32)
    return weighted_mean(cost, useful), weighted_mean(hit, useful)


@register("objective", "captioning")
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioning(Objective):
    """Captions of clips, as Liu et al. (2023) train LLaVA: the connector first, then all.

    A clip's text is its short caption and its detailed one, with " | " between them.

    text_steps: before all else, the language model alone learns the captions, without seeing the clips. 0 where it came
        trained.
    connector_steps: then what sees (connector and tower) learns to speak to the language model, which stands still.
        After that everything is trained.
    """

    text_steps: int = 0
    connector_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("text_steps", "connector_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"objective.{name}={getattr(self, name)}: must be 0 or more")

    def compose_text(self, captions: Sequence[str]) -> str:
        """"a dog | A brown dog runs.": the short and the detailed caption."""
        return SEPARATOR.join(caption.replace("|", ",") for caption in captions[:2])

    def make_loss(self, model: DiffusionModel) -> LossFn:
        """The loss of a captioner.

        Raises:
            ConfigError: the backbone is no captioner, or its vocabulary is smaller than the tokenizer's.
        """
        backbone, text = model.network.backbone, model.network.text
        if not isinstance(backbone, Captioner):
            raise ConfigError("objective=captioning trains a captioner: set backbone=captioner")
        if backbone.lm.vocab_size < text.vocab_size:
            raise ConfigError(f"backbone.lm.vocab_size={backbone.lm.vocab_size}: must be at least "
                              f"text.vocab_size={text.vocab_size}")  # fmt: skip
        return functools.partial(_captioning_loss, self, backbone)


def _captioning_loss(
    config: Captioning, backbone: Captioner, params: PyTree, row: Row, key: jax.Array, step: Array
) -> tuple[Array, dict[str, Array]]:
    del key
    blind = step < config.text_steps
    connecting = ~blind & (step < config.text_steps + config.connector_steps)
    held = {"lm": connecting, "tower": blind, "connector": blind}
    parts = {name: _hold(tree, held[name]) for name, tree in params[HIGH].items()}
    logits = CaptionerModel(backbone).apply({"params": parts}, row, blind)
    loss, accuracy = next_token_loss(logits, row.text, row.text_segment_ids)
    useful = (row.text_segment_ids > 0).astype(jnp.float32).sum()
    tokens = (row.segment_ids > 0).astype(jnp.float32).sum()
    return loss, {"weight": useful, "tokens": tokens, "accuracy": accuracy}


def _hold(tree: PyTree, held: Array) -> PyTree:
    """The same values; no gradient reaches them where `held`."""
    return jax.tree.map(lambda leaf: jnp.where(held, jax.lax.stop_gradient(leaf), leaf), tree)
