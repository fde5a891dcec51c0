"""What the text tokenizer and encoder are made of."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vdit.errors import ConfigError
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """The encoder of a T5 (Raffel et al., 2020; version 1.1) or umT5 (Chung et al., 2023).

    vocab_size: rows of the embedding table; may be more than the tokenizer has pieces.
    width, heads, head_dim, mlp, layers: d_model, num_heads, d_kv, d_ff and num_layers of the public configs.
        heads * head_dim need not be the width.
    buckets, max_distance: of the relative positions; longer distances share the last bucket.
    per_layer_bias: each layer has its own table of relative positions (umT5), or all share one (T5).
    gated: the MLP is `down(activation(gate(x)) * up(x))` (version 1.1, umT5), or `down(activation(up(x)))`.
    eps: of the norms. eos_id, pad_id: ids that the tokenizer ends and pads captions with.
    extra_ids: how many sentinels the tokenizer has beside its file's pieces (vdit.models.text.T5Tokenizer).
    pad: whether captions are padded to text.max_length, and the DiT attends to their padding, as in Wan.
    dtype: type of the matrix products; embeddings, residuals, norms and softmax stay float32.
    scan: stack the layers' parameters and run them with lax.scan, which compiles one layer only.
    """

    vocab_size: int
    width: int
    heads: int
    head_dim: int = 64
    mlp: int
    layers: int
    buckets: int = 32
    max_distance: int = 128
    per_layer_bias: bool = False
    gated: bool = True
    activation: Literal["gelu_tanh", "relu"] = "gelu_tanh"
    eps: float = 1e-6
    eos_id: int = 1
    pad_id: int = 0
    extra_ids: int = 100
    pad: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "heads", "head_dim", "mlp", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.t5.{name}={getattr(self, name)} must be at least 1")
        if self.extra_ids < 0:
            raise ConfigError(f"text.t5.extra_ids={self.extra_ids} must not be negative")
        if self.buckets < 4 or self.buckets % 4:
            raise ConfigError(f"text.t5.buckets={self.buckets} must be a multiple of 4: half of each sign are exact")
        if self.max_distance <= self.buckets // 4:
            rule = f"must be above buckets/4={self.buckets // 4}, the distances with a bucket of their own"
            raise ConfigError(f"text.t5.max_distance={self.max_distance} {rule}")
        for name in ("eos_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(f"text.t5.{name}={getattr(self, name)} must be in 0..{self.vocab_size - 1}")


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A tokenizer and an encoder: a small one that is trained with the DiT, or a T5.

    tokenizer: path of a sentencepiece .model, or None to train one from the captions.
    vocab_size: rows of the embedding table, and the most pieces that a trained tokenizer may have (a
        small corpus yields fewer: `vdit.models.text.fit_vocabulary` then shrinks the table).
    max_length: most tokens of a caption, the first special token included; longer ones are cut.
    width, depth, heads: of the encoder; depth 0 is a bag of embeddings with positions.
    dtype: type of the matrix products; embeddings, norms and softmax stay float32.
    t5: a T5 encoder in the place of the small one. Then width must be its width, tokenizer is its .model
        file or folder, and vocab_size, depth, heads and dtype, which are the small encoder's, are not read.
    """

    tokenizer: str | None = None
    vocab_size: int = 4096
    max_length: int = 64
    width: int = 128
    depth: int = 2
    heads: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    t5: T5Config | None = None

    def __post_init__(self) -> None:
        if self.t5 is not None and self.width != self.t5.width:
            rule = "must be the same: it is the width of what the DiT attends to"
            raise ConfigError(f"text.width={self.width} and text.t5.width={self.t5.width} {rule}")
        for name in ("vocab_size", "max_length", "width", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name}={getattr(self, name)} must be at least 1")
        if self.depth < 0:
            raise ConfigError(f"text.depth={self.depth} must not be negative")
        if self.width % self.heads:
            raise ConfigError(f"text.width={self.width} must be a multiple of text.heads={self.heads}")
        if self.width % 2:
            raise ConfigError(f"text.width={self.width} must be even, for its sinusoidal positions")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


_SIZES = {  # width, heads, mlp, layers
    "small": (512, 6, 1024, 8),
    "base": (768, 12, 2048, 12),
    "large": (1024, 16, 2816, 24),
    "xl": (2048, 32, 5120, 24),
    "xxl": (4096, 64, 10240, 24),
}


def t5_preset(name: str, **changes) -> T5Config:
    """A public T5 or umT5 encoder by name.

    Args:
        name: "t5-v1_1-SIZE" or "umt5-SIZE", SIZE one of small, base, large, xl, xxl (there is no public umT5 large).
            Wan's is "umt5-xxl".
        **changes: fields to set otherwise.

    Returns:
        The config.

    Raises:
        ConfigError: the name is unknown.
    """
    family, _, size = name.rpartition("-")
    known = [f"{f}-{s}" for f in ("t5-v1_1", "umt5") for s in _SIZES if (f, s) != ("umt5", "large")]
    if name not in known:
        raise ConfigError(f"T5 preset {name!r} is unknown: use one of {', '.join(known)}")
    width, heads, mlp, layers = _SIZES[size]
    fields = {"vocab_size": 32128}
    if family == "umt5":
        fields = {"vocab_size": 256384, "per_layer_bias": True, "extra_ids": 300}
    return T5Config(**fields | {"width": width, "heads": heads, "mlp": mlp, "layers": layers} | changes)


def t5_text(t5: T5Config, *, tokenizer: str | None = None, max_length: int = 512) -> TextConfig:
    """The text config of a model whose captions a T5 encodes.

    Args:
        t5: the encoder.
        tokenizer: its tokenizer file or folder; None where an import supplies it.
        max_length: of a caption in tokens; Wan's is 512.

    Returns:
        The config.
    """
    return TextConfig(tokenizer=tokenizer, max_length=max_length, width=t5.width, t5=t5)
