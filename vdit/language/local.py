"""A language model on this machine's devices: conversations to text, in batches of fixed shapes, jitted.

    model = open_lm("SmolLM2-135M-Instruct")             # vdit.pretrained.lm: a public folder or a GGUF file
    [answer] = model.complete([Request(messages=(user("Say hello."),))], GenerationOptions(max_tokens=16))

Prompts are filled up to one of a few lengths, and batches to a power of two, so that few programs are compiled. Answers
are written a few tokens at a time; between them the host looks for stop texts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from vdit.errors import LanguageError
from vdit.language.base import Completion, Frames, GenerationOptions, Message, Request, parts_of
from vdit.models.lm.chat import ChatTemplate
from vdit.models.lm.generate import Decoding, Generated, Prompts, extend, pad_prompts, start
from vdit.models.lm.model import LanguageModel
from vdit.models.lm.tokenizer import LMTokenizer
from vdit.reprs import short_repr
from vdit.types import Array, PyTree

_LENGTHS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
_ROOM = 32  # answers have room for a multiple of it
_STEPS = 16  # tokens between two looks for stop texts
_VIDEO = "<video>"  # what templates write for frames


class FrameReader(Protocol):
    """How a model sees frames: what stands for them in the prompt, and what is put in its place."""

    def prompt(self, frames: Frames) -> str:
        """Text in the place of the frames, with one placeholder token for each embedding."""

    @property
    def token(self) -> int:
        """Id of the placeholder."""

    def embed(self, frames: Frames) -> Array:
        """float [k d], an embedding for each placeholder."""


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalLM:
    """A language model with its tokenizer and chat template: a TextModel (vdit/language/base.py).

    Attributes:
        name: for provenance.
        model: the network. params: its parameters, on the mesh if there is one.
        tokenizer: of its texts.
        template: writes conversations as the model was trained on them.
        stop_ids: tokens that end an answer.
        frames: how it sees videos; None for a model of text.
        mesh: where it runs; None for one device.
        batch: most conversations at a time.
    """

    name: str
    model: LanguageModel
    params: PyTree
    tokenizer: LMTokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    frames: FrameReader | None = None
    mesh: Mesh | None = None
    batch: int = 8

    def complete(self, requests: Sequence[Request], options: GenerationOptions) -> list[Completion]:
        """Answers each request, in their order.

        Args:
            requests: any number.
            options: for all of them. A request's answer depends on it, the options and the weights; beside other
                requests, rounding may differ in the last bits.

        Returns:
            A completion for each.

        Raises:
            LanguageError: a request is too long for the model, or holds frames that it cannot see.
            TextError: the chat template refuses a conversation.
        """
        if not requests:
            return []
        texts = self.template.render_all([self._conversation(request) for request in requests])
        frames = [[part for message in r.messages for part in parts_of(message) if isinstance(part, Frames)]
                  for r in requests]  # fmt: skip
        ids = [self._ids(text, shown) for text, shown in zip(texts, frames)]
        longest = max(map(len, ids))
        room = min(-(-options.max_tokens // _ROOM) * _ROOM, self.model.config.longest - longest)
        if room < options.max_tokens:
            rule = f"must be at most {self.model.config.longest}: shorten the request, or lower max_tokens"
            both = f"a prompt of {longest} tokens and an answer of {options.max_tokens}"
            raise LanguageError(f"{self.name}: {both}: {rule}")
        done: dict[int, Completion] = {}
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for first in range(0, len(order), self.batch):
            group = order[first : first + self.batch]
            answers = self._answer([ids[i] for i in group], [frames[i] for i in group], options, room)
            done |= dict(zip(group, answers))
        return [done[i] for i in range(len(requests))]

    def _conversation(self, request: Request) -> list[Mapping[str, Any]]:
        """Messages as templates take them: plain text, or parts of text and video."""

        def content(message: Message) -> str | list[dict[str, str]]:
            parts = parts_of(message)
            if self.frames is None:
                if any(isinstance(part, Frames) for part in parts):
                    raise LanguageError(f"{self.name}: reads text only, and a request holds frames: use a vision model")
                return "".join(parts)
            shown = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "video"} for p in parts]
            if any(_VIDEO in part for part in parts if isinstance(part, str)):
                raise LanguageError(f"{self.name}: a text of the request holds {_VIDEO}, which stands for frames")
            return shown

        return [{"role": message["role"], "content": content(message)} for message in request.messages]

    def _ids(self, text: str, frames: Sequence[Frames]) -> list[int]:
        if self.frames is None:
            return self.tokenizer.encode(text)
        pieces = text.split(_VIDEO)
        if len(pieces) != len(frames) + 1:
            raise LanguageError(f"{self.name}: its chat template shows {len(pieces) - 1} of {len(frames)} videos")
        shown = [*map(self.frames.prompt, frames), ""]
        return self.tokenizer.encode("".join(text for pair in zip(pieces, shown) for text in pair))

    def _answer(
        self, ids: Sequence[Sequence[int]], frames: Sequence[Sequence[Frames]], options: GenerationOptions, room: int
    ) -> list[Completion]:
        """One batch."""
        rows = 1 << (len(ids) - 1).bit_length()
        length, most = max(map(len, ids)), self.model.config.longest - room
        tokens = min(next((n for n in _LENGTHS if n >= length), length), max(most, length))
        prompts = pad_prompts(ids, rows=rows, tokens=tokens)
        decoding = Decoding.make(
            rows, max_tokens=options.max_tokens, temperature=options.temperature, top_p=options.top_p,
            seed=options.seed, stop_ids=self.stop_ids,
        )  # fmt: skip
        with self._on_mesh():
            state = start(self.model, self.params, self._embedded(prompts, frames), decoding, max_tokens=room)
            while True:
                texts, cut = self._texts(state, options.stop, len(ids))
                done = np.asarray(state.done) | np.asarray(cut + [True] * (rows - len(ids)))
                if done.all():
                    break
                state = extend(self.model, self.params, dataclasses.replace(state, done=done), decoding, _STEPS)
        stopped, written = np.asarray(state.stopped), np.asarray(state.length)
        return [
            Completion(
                text=text, finish_reason="stop" if cut[i] or stopped[i] else "length", tokens_in=len(ids[i]),
                tokens_out=int(written[i]),
            )
            for i, text in enumerate(texts)
        ]  # fmt: skip

    def _texts(self, state: Generated, stops: Sequence[str], rows: int) -> tuple[list[str], list[bool]]:
        """What the first rows have written, and whether a stop text has cut it."""
        tokens, length = np.asarray(state.tokens), np.asarray(state.length)
        texts, cut = [], []
        for row in range(rows):
            text = self.tokenizer.decode(tokens[row, : length[row]])
            places = [place for stop in stops if (place := text.find(stop)) >= 0]
            texts.append(text[: min(places)] if places else text)
            cut.append(bool(places))
        return texts, cut

    def _embedded(self, prompts: Prompts, frames: Sequence[Sequence[Frames]]) -> Prompts:
        """Prompts of ids, with what frames look like in the place of their placeholders."""
        if self.frames is None or not any(frames):
            return prompts
        inputs = np.array(_embed(self.model, self.params, prompts.inputs))
        for row, shown in enumerate(frames):
            places = np.flatnonzero(prompts.inputs[row] == self.frames.token)
            seen = [np.asarray(self.frames.embed(one)) for one in shown]
            if len(places) != sum(map(len, seen)):
                rule = f"has {len(places)} places for {sum(map(len, seen))} embeddings of frames"
                raise LanguageError(f"{self.name}: a request {rule}: its texts must not hold the placeholder")
            if seen:
                inputs[row, places] = np.concatenate(seen)
        return Prompts(inputs=inputs, length=prompts.length)

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: LanguageModel, params: PyTree, ids: Array) -> Array:
    return model.apply({"params": params}, ids, method="embed_tokens")
