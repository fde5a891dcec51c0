"""The caption stage: what a language model that sees says of each kept clip, by the back ends of `vdit caption`.

    clips | beam.BatchElements(8, 8) | beam.ParDo(CaptionClips(CaptionOptions(model="Qwen3-VL-8B"), work))

An answer is kept in the work folder, by the clip's content and the question, so a stopped pipeline pays for nothing
twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from data_pipelines.clips import Encoded
from vdit import paths
from vdit.errors import DataError, VideoError
from vdit.language.base import Frames
from vdit.language.captioning import Captioner, sample_frames
from vdit.language.checks import CaptionRules
from vdit.language.endpoint import Endpoint
from vdit.language.prompts import CaptionPrompts, PromptFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How clips are captioned.

    Args:
        model: of the server at $OPENAI_BASE_URL, which every worker must reach.
        frames: of each clip, that the model sees. side: pixels of their longer side, at most.
        language: of the captions; "any" is not checked.
    """

    model: str
    frames: int = 8
    side: int = 384
    language: str = "en"

    def captioner(self) -> Captioner:
        """Asks the model.

        Raises:
            ConfigError: there is no server.
        """
        return Captioner(model=Endpoint.from_environment(self.model), rules=CaptionRules(language=self.language),
                         prompts=CaptionPrompts.of(PromptFile.shipped("caption.md")))  # fmt: skip


class CaptionClips(beam.DoFn):
    """Batches of encoded clips to the clips with captions. A clip without a good answer keeps what it had.

    Args:
        options: the model and what it sees.
        folder: where answers are kept.
    """

    def __init__(self, options: CaptionOptions, folder: str):
        self.options, self.folder = options, folder

    def setup(self) -> None:
        self._captioner = self.options.captioner()
        self._counters = {name: Metrics.counter("caption", name) for name in ("done", "cached", "no answer", "tokens")}

    def process(self, clips: Sequence[Encoded]) -> Iterator[Encoded]:
        told = {made.row.clip.id: self._known(made) for made in clips if made.error is None}
        self._counters["cached"].inc(sum(captions is not None for captions in told.values()))
        asked: list[tuple[Encoded, Frames]] = []
        for made in clips:
            if made.error is None and told[made.row.clip.id] is None:
                try:
                    file = paths.local_copy(made.file, error=VideoError)
                    asked.append((made, sample_frames(file, count=self.options.frames, side=self.options.side)))
                except VideoError:
                    told[made.row.clip.id] = []
        for (made, _), answer in zip(asked, self._captioner.caption([frames for _, frames in asked]) if asked else ()):
            captions = [text for text in (answer.short, answer.detailed) if text]
            self._counters["tokens"].inc(answer.tokens_in + answer.tokens_out)
            paths.write_atomic(self._file(made), json.dumps({"captions": captions, "problem": answer.problem}))
            told[made.row.clip.id] = captions
        for made in clips:
            captions = told.get(made.row.clip.id) or []
            self._counters["done" if captions else "no answer"].inc()
            row = dataclasses.replace(made.row, captions=tuple(captions) or made.row.captions)
            yield dataclasses.replace(made, row=row)

    def _file(self, made: Encoded) -> Any:
        key = json.dumps([made.meta["sha256"], dataclasses.asdict(self.options)])
        return paths.path(self.folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"

    def _known(self, made: Encoded) -> list[str] | None:
        file = self._file(made)
        if not paths.is_file(file):
            return None
        try:
            captions = paths.read_json(file, limit=paths.MIB, error=DataError)["captions"]
            return captions if all(isinstance(text, str) for text in captions) else None
        except (DataError, KeyError, TypeError):
            return None
