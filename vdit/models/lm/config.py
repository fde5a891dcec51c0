"""What a decoder-only language model is made of, and the public ones by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from vdit.errors import ConfigError
from vdit.nn.attention.kernel import TIMES
from vdit.reprs import short_repr


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig:
    """A decoder of Llama's kind (Touvron et al., 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    vocab_size: rows of the embedding table; may be more than the tokenizer has tokens.
    width, layers, heads, mlp: of the transformer. kv_heads: heads of keys and values, each for heads / kv_heads heads
        of queries (Ainslie et al., 2023). head_dim: of a head; heads * head_dim need not be the width.
    qkv_bias: queries, keys and values have biases (Qwen2). qk_norm: they are normalised in each head (Qwen3).
    tied: the output's matrix is the embedding table.
    rope_theta: base of the rotary frequencies. rope_divisors: what each of the head_dim / 2 frequencies is divided by;
        () for none (`llama3_divisors` gives Llama 3's).
    eps: of the norms. context: most tokens that the model was trained to read at once.
    dtype: type of the matrix products and of the cache; residuals, norms, softmax and logits stay float32.
    scan: stack the layers' parameters and run them with lax.scan, which compiles one layer only.
    remat: what a layer keeps for its backward: everything, or ("full") nothing but its input.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    mlp: int
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    rope_theta: float = 10_000.0
    rope_divisors: tuple[float, ...] = ()
    eps: float = 1e-5
    context: int = 2048
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: bool = True
    remat: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lm.{name}={getattr(self, name)} must be at least 1")
        if self.heads % self.kv_heads:
            raise ConfigError(f"lm.heads={self.heads} must be a multiple of lm.kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"lm.head_dim={self.head_dim} must be even: rotary positions turn pairs")
        if self.rope_divisors and len(self.rope_divisors) != self.head_dim // 2:
            rule = f"must be {self.head_dim // 2} numbers, half of lm.head_dim, or none"
            raise ConfigError(f"lm.rope_divisors: {len(self.rope_divisors)} numbers {rule}")
        if min((*self.rope_divisors, self.rope_theta, self.eps)) <= 0:
            raise ConfigError("lm.rope_theta, lm.rope_divisors and lm.eps must be positive")

    @property
    def longest(self) -> int:
        """Most tokens of one text: what it was trained on, and what attention can count."""
        return min(self.context, TIMES)


def llama3_divisors(
    head_dim: int, theta: float, *, factor: float, low: float = 1.0, high: float = 4.0, original: int = 8192
) -> tuple[float, ...]:
    """Divisors of the rotary frequencies that stretch Llama 3's context (Grattafiori et al., 2024).

    Args:
        head_dim: of a head.
        theta: base of the frequencies.
        factor: what the slow frequencies are divided by.
        low, high: turns within the original context below which a frequency is slow, and above which it stays.
        original: tokens of the context before.

    Returns:
        head_dim / 2 numbers from 1 to factor.
    """
    divisors = []
    for i in range(head_dim // 2):
        turns = original * theta ** (-2 * i / head_dim) / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (keep + (1 - keep) / factor))
    return tuple(divisors)


_SMOLLM2 = {"vocab_size": 49152, "eps": 1e-5, "context": 8192}
_LLAMA3 = {"vocab_size": 128256, "rope_theta": 5e5, "eps": 1e-5, "context": 131072, "kv_heads": 8}
_QWEN2 = {"vocab_size": 151936, "rope_theta": 1e6, "eps": 1e-6, "context": 32768, "qkv_bias": True}
_QWEN3 = {"vocab_size": 151936, "rope_theta": 1e6, "eps": 1e-6, "context": 40960, "qk_norm": True, "kv_heads": 8}


def _sizes(width: int, layers: int, heads: int, head_dim: int, mlp: int, **more) -> dict:
    return {"width": width, "layers": layers, "heads": heads, "head_dim": head_dim, "mlp": mlp, **more}


_PRESETS = {
    "smollm2-135m": _SMOLLM2 | _sizes(576, 30, 9, 64, 1536, kv_heads=3, rope_theta=1e5),
    "smollm2-360m": _SMOLLM2 | _sizes(960, 32, 15, 64, 2560, kv_heads=5, rope_theta=1e5),
    "smollm2-1.7b": _SMOLLM2 | _sizes(2048, 24, 32, 64, 8192, kv_heads=32, rope_theta=130_000.0),
    "llama-3.2-1b": _LLAMA3 | _sizes(2048, 16, 32, 64, 8192, rope_divisors=llama3_divisors(64, 5e5, factor=32)),
    "llama-3.2-3b": _LLAMA3 | _sizes(3072, 28, 24, 128, 8192, rope_divisors=llama3_divisors(128, 5e5, factor=32)),
    "llama-3.1-8b": _LLAMA3
    | _sizes(4096, 32, 32, 128, 14336, tied=False, rope_divisors=llama3_divisors(128, 5e5, factor=8)),
    "qwen2.5-0.5b": _QWEN2 | _sizes(896, 24, 14, 64, 4864, kv_heads=2),
    "qwen2.5-1.5b": _QWEN2 | _sizes(1536, 28, 12, 128, 8960, kv_heads=2),
    "qwen2.5-3b": _QWEN2 | _sizes(2048, 36, 16, 128, 11008, kv_heads=2),
    "qwen2.5-7b": _QWEN2 | _sizes(3584, 28, 28, 128, 18944, kv_heads=4, vocab_size=152064, tied=False),
    "qwen3-0.6b": _QWEN3 | _sizes(1024, 28, 16, 128, 3072),
    "qwen3-1.7b": _QWEN3 | _sizes(2048, 28, 16, 128, 6144),
    "qwen3-4b": _QWEN3 | _sizes(2560, 36, 32, 128, 9728),
    "qwen3-8b": _QWEN3 | _sizes(4096, 36, 32, 128, 12288, tied=False),
}
# Qwen2's models have the sizes of Qwen2.5's.
_SAME = {"qwen2-0.5b": "qwen2.5-0.5b", "qwen2-1.5b": "qwen2.5-1.5b", "qwen2-7b": "qwen2.5-7b"}


def lm_preset(name: str, **changes) -> LMConfig:
    """A public language model by name.

    Args:
        name: "smollm2-135m", "llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b" or another of their families.
        **changes: fields to set otherwise.

    Returns:
        The config.

    Raises:
        ConfigError: the name is unknown.
    """
    fields = _PRESETS.get(_SAME.get(name, name))
    if fields is None:
        raise ConfigError(f"language model {name!r} is unknown: use one of {', '.join([*_PRESETS, *_SAME])}")
    return LMConfig(**fields | changes)
