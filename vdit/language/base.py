"""What a language model is to the rest of vdit: requests in, completions out.

    model = Endpoint.from_environment("qwen3-vl-8b")          # or a public folder, or a run of our own
    request = Request(messages=(user("Describe the video.", Frames(pixels=video, times=times)),))
    [completion] = model.complete([request], GenerationOptions(max_tokens=200))
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.reprs import short_repr
from vdit.seeds import check_seed

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "filter"]
MOST_TOKENS = 1 << 20  # of an answer


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Frames of one video.

    Attributes:
        pixels: uint8 [t h w 3].
        times: t seconds from the start of the video, rising; () where nobody knows.
    """

    pixels: np.ndarray
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ShapeError(f"frames are {pixels.dtype} {pixels.shape}: must be uint8 [t h w 3], at least one")
        if self.times and len(self.times) != len(pixels):
            raise ShapeError(f"there are {len(pixels)} frames and {len(self.times)} times: give one for each frame")


Part = str | Frames
Message = Mapping[str, Any]  # {"role": Role, "content": str | Sequence[Part]}


def user(*parts: Part) -> Message:
    """A message of the user: texts and frames, in their order."""
    return {"role": "user", "content": parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts}


def system(text: str) -> Message:
    """A message that tells the model how to answer."""
    return {"role": "system", "content": text}


def parts_of(message: Message) -> tuple[Part, ...]:
    """The texts and frames of a message, in their order."""
    content = message["content"]
    return (content,) if isinstance(content, str) else tuple(content)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One conversation that a model is to continue.

    Attributes:
        messages: {"role": "system", "user" or "assistant", "content": a text, or a sequence of texts and `Frames`}.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigError("a request has no messages: give one of the user at least")
        for message in self.messages:
            if message.get("role") not in ("system", "user", "assistant"):
                raise ConfigError(f"role {message.get('role')!r} of a message is unknown: system, user or assistant")
            for part in parts_of(message):
                if not isinstance(part, Part):
                    raise ConfigError(f"a message holds a {type(part).__name__}: give texts and Frames")

    def digest(self, *more: Any) -> str:
        """A hash of all texts and pixels, and of `more`, which is plain JSON: 32 hexadecimal digits."""
        total = hashlib.sha256(json.dumps(more, sort_keys=True).encode())
        for message in self.messages:
            for part in parts_of(message):
                head: list[Any] = [message["role"], part if isinstance(part, str) else part.times]
                total.update(json.dumps([*head, [] if isinstance(part, str) else part.pixels.shape]).encode())
                if isinstance(part, Frames):
                    total.update(np.ascontiguousarray(part.pixels).tobytes())
        return total.hexdigest()[:32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated.

    Attributes:
        max_tokens: of the answer, at most.
        temperature: 0 takes the most probable token each time.
        top_p: tokens are sampled among the most probable that together have this probability; above 0, up to 1.
        stop: the answer ends before any of these texts.
        seed: of sampling. The same request, options and weights give the same text.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("max_tokens", 1 <= self.max_tokens <= MOST_TOKENS, f"1 to {MOST_TOKENS}"),
            ("temperature", 0 <= self.temperature <= 10, "0 to 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("stop", all(isinstance(text, str) and text for text in self.stop), "texts that are not empty"),
        ):
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be {rule}")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered.

    Attributes:
        text: without special tokens and without the stop text.
        finish_reason: "stop" where the model ended itself, "length" where max_tokens did, "filter" where a server
            withheld the answer.
        tokens_in: tokens of the request, frames included.
        tokens_out: tokens of the answer.
    """

    text: str
    finish_reason: FinishReason = "stop"
    tokens_in: int = 0
    tokens_out: int = 0


class TextModel(Protocol):
    """A model that answers. Implementations: an endpoint, a public folder or GGUF file, a run of our own.

    Attributes:
        name: for provenance, such as "SmolVLM2-500M-Video-Instruct".
    """

    name: str

    def complete(self, requests: Sequence[Request], options: GenerationOptions) -> list[Completion]:
        """Answers each request, in their order.

        Args:
            requests: any number; an implementation batches them as it can.
            options: for all of them.

        Raises:
            LanguageError: the model cannot answer.
        """
        ...
