"""One attention function with clip ids; kernels behind it, and sequence parallelism around them."""

from vdit.nn.attention.function import SAVED, attention

__all__ = ["SAVED", "attention"]
