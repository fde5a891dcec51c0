"""One attention function with clip ids; kernels behind it, and sequence parallelism around them."""

from vdit.nn.attention.api import attention

__all__ = ["attention"]
