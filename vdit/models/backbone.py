"""The backbone: the network that denoises packed tokens, as a value that anyone can bring."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vdit.errors import ConfigError
from vdit.models.cache import BlockCall, KVCache, Residuals
from vdit.models.conditioner import Conditioner, Patch
from vdit.nn.attention import attention
from vdit.reprs import short_repr
from vdit.types import Array, PyTree, Row

__all__ = ["Backbone", "Context", "Output", "Spec", "attention", "smallest_row", "token_values"]


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a backbone returns.

    Attributes:
        prediction: float32 [b n p], of noise, velocity or data, as the model is trained; [b n 2p] where the second half
            is of the variance.
        cache: the keys and values of these tokens, where they were asked for; else None.
        residuals: what the blocks added, where a call was given those of an earlier one; else None.
        hidden: [L b n d], the tokens after each of L blocks, where they were asked for; else None.
    """

    prediction: Array
    cache: KVCache | None = None
    residuals: Residuals | None = None
    hidden: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What a backbone must know before its parameters are made.

    Attributes:
        conditions: the conditions that the backbone takes, without the text.
        text_width: e, the width of encoded captions; None without text.
    """

    conditions: tuple[Conditioner, ...] = ()
    text_width: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What a backbone takes besides the row.

    Attributes:
        spec: as it was when the parameters were made.
        text: encoded captions, float [b m e], which belong to clips as `row.text_segment_ids` says; None without text.
        cache: keys and values of finished frames of the row's clips, for backbones that are `causal`.
        return_cache: whether the output shall hold the cache of this row.
        return_hidden: whether the output shall hold the hidden states, of backbones that have them.
        block_cache: the residuals of an earlier call and when to use them again, for `caches_blocks`.
    """

    spec: Spec = Spec()
    text: Array | None = None
    cache: KVCache | None = None
    return_cache: bool = False
    return_hidden: bool = False
    block_cache: BlockCall | None = None


class Backbone(Protocol):
    """A network on packed rows. Inherit from it to get the defaults.

    Implementations are frozen keyword-only dataclasses, registered with `@register("backbone", "my_name")`.

    Attributes:
        in_channels: c, channels of a latent.
        patch: latent frames, rows and columns of a token: p = prod(patch) * c.
        width, depth, heads: of the residual stream. `vdit plan` estimates memory and time from them, and a mesh's
            tensor axis must divide `heads`.
    """

    in_channels: int
    patch: Patch
    width: int
    depth: int
    heads: int

    def init(self, key: Array, spec: Spec) -> PyTree:
        """Fresh parameters; in boxes that carry their logical axes (flax's with_logical_partitioning), or plain.

        Args:
            key: typed random key.
            spec: the conditions and the text that the model takes.
        """
        ...

    def apply(self, params: PyTree, row: Row, levels: Array, context: Context) -> Output:
        """Predicts for the noisy tokens of a row.

        A token must read nothing of other clips: attend where `segment_ids` are equal.

        Args:
            params: as `init` makes them, without boxes.
            row: noisy `values` float32 [b n p].
            levels: float32 [b k], the noise level of each frame of tokens, 0 to 1000 (Schedule.time); a token's is
                `levels[b, row.frame_index]`.
            context: what else is given.
        """
        ...

    def flops(self, tokens: int, clip_tokens: float, **more: float) -> float:
        """Useful FLOPs of one forward pass over `tokens`, in clips of `clip_tokens` (a multiply-add is two)."""
        ...

    @property
    def conditions(self) -> tuple[Conditioner, ...]:
        """Conditions that the backbone's own config declares, beside those of the experiment."""
        return ()

    @property
    def uses_text(self) -> bool:
        """Whether it takes captions."""
        return False

    @property
    def embeds_text(self) -> bool:
        """Whether it embeds the captions' tokens itself, so that the network needs no text encoder."""
        return False

    @property
    def learn_variance(self) -> bool:
        """Whether it predicts 2 x channels, the second half for the variance."""
        return False

    @property
    def causal(self) -> bool:
        """Whether frames read no later ones of their clip."""
        return False

    @property
    def caches_frames(self) -> bool:
        """Whether keys and values of finished frames can be kept and used again at other positions."""
        return False

    @property
    def caches_blocks(self) -> bool:
        """Whether blocks can be passed over, with `Context.block_cache`."""
        return False

    @property
    def remat(self) -> str:
        """How much the backward pass computes again: one of "none", "dots", "attention", "full"."""
        return "none"

    def with_remat(self, policy: str) -> Backbone:
        """The same backbone that computes as much again; itself where it cannot."""
        return self

    def empty_cache(self, rows: int, tokens: int) -> KVCache:
        """A cache without frames, with room for `tokens` in each of `rows`. Only of those that `caches_frames`."""
        raise ConfigError(f"backbone {type(self).__name__} keeps no keys and values of finished frames: leave keep out")

    def shift_cache(self, cache: KVCache, frames: Array) -> KVCache:
        """The cache as if all its tokens were `frames` frames earlier. Only of those that `caches_frames`."""
        raise ConfigError(f"backbone {type(self).__name__} keeps no keys and values of finished frames: leave keep out")

    def empty_residuals(self, rows: int, tokens: int) -> Residuals:
        """Residuals before the first call. Only of those that `caches_blocks`."""
        raise ConfigError(f"backbone {type(self).__name__} runs all blocks in each call: set reuse=0")


def token_values(backbone: Backbone) -> int:
    """How many latent values a token carries.

    Args:
        backbone: gives patch and channels.

    Returns:
        p = prod(patch) * in_channels.
    """
    pt, ph, pw = backbone.patch
    return pt * ph * pw * backbone.in_channels


def smallest_row(backbone: Backbone, conditions: tuple[Conditioner, ...]) -> Row:
    """A row of one clip of one token with one token of text, to make parameters with: they do not depend on sizes.

    Args:
        backbone: gives the size of a token.
        conditions: those that the model takes.

    Returns:
        A row of zeros.
    """
    one, zero = jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    row: Any = Row(
        values=jnp.zeros((1, 1, token_values(backbone)), jnp.float32),
        position=jnp.zeros((1, 1, 3), jnp.int32),
        segment_ids=one,
        frame_index=zero,
        frame_segment_ids=one,
        text=zero,
        text_segment_ids=one,
        text_position=zero,
    )
    for condition in conditions:
        values = jnp.zeros((1, 1, *condition.features(backbone.patch)), condition.dtype)
        row = row.with_cond(condition.name, values, condition.axis)
    return row
