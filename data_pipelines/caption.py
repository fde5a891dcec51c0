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
from typing import Any, Literal

import apache_beam as beam
from apache_beam.metrics import Metrics

from data_pipelines.clips import Encoded
from vdit import paths
from vdit.errors import ConfigError, DataError, VideoError, WeightsError
from vdit.language.base import Frames
from vdit.language.captioning import MOST_FRAMES, Captioner, sample_frames
from vdit.language.checks import CaptionRules
from vdit.language.endpoint import Endpoint
from vdit.language.prompts import CaptionPrompts, PromptFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How clips are captioned.

    Args:
        model: what `by` says.
        by: "endpoint": a model of the server at $OPENAI_BASE_URL, which every worker must reach. "lm": public weights
            of a model that sees (a SmolVLM2 folder). "run": a captioner that vdit train has trained. Every worker
            loads the weights of the last two.
        frames: of each clip, that the model sees; None: 8, or as many as a run's captioner was trained on.
        side: pixels of their longer side, at most.
        language: of the captions; "any" is not checked.
    """

    model: str
    by: Literal["endpoint", "lm", "run"] = "endpoint"
    frames: int | None = None
    side: int = 384
    language: str = "en"

    def __post_init__(self) -> None:
        if self.by not in ("endpoint", "lm", "run"):
            raise ConfigError(f"captions by {self.by!r}: give endpoint, lm or run")
        if self.frames is not None and not 1 <= self.frames <= MOST_FRAMES:
            raise ConfigError(f"frames={self.frames}: give 1 to {MOST_FRAMES}")

    def check(self) -> str:
        """What can be known before weights are read: there is a server, a model's folder, a run. Says it in a line.

        Raises:
            VditError: there is not.
        """
        if self.by == "endpoint":
            self.captioner()
            return "the server's address is set; it was not asked"
        if self.by == "run":
            from vdit.train.workspace import Workspace

            backbone = Workspace(self.model).experiment().backbone
            if not backbone.embeds_text:
                raise ConfigError(f"{self.model}: is no captioner: train one with vdit train experiments/captioner.py")
            return f"{self.model} is a captioner; its weights were not read"
        if not paths.is_hub(self.model):
            paths.read_json(paths.path(self.model) / "config.json", limit=paths.MIB, error=WeightsError,
                            fix="give the folder of a SmolVLM2")  # fmt: skip
        return f"{self.model} has a config.json; its weights were not read"

    def captioner(self) -> Captioner:
        """Asks the model; loads its weights where they are here.

        Raises:
            VditError: there is no server, or no such weights.
        """
        rules = CaptionRules(language=self.language)
        if self.by == "endpoint":
            return Captioner(model=Endpoint.from_environment(self.model), rules=rules,
                             prompts=CaptionPrompts.of(PromptFile.shipped("caption.md")))  # fmt: skip
        # jax, for which an endpoint does not wait.
        if self.by == "lm":
            from vdit.pretrained.lm import open_lm

            return Captioner(model=open_lm(self.model), rules=rules,
                             prompts=CaptionPrompts.of(PromptFile.shipped("caption_steps.md")))  # fmt: skip
        from vdit.generate.captions import load_captioner

        model = load_captioner(self.model)
        return Captioner(model=model, rules=rules, prompts=model.prompts, max_tokens=model.max_tokens)

    def frames_of(self, captioner: Captioner) -> int:
        """How many frames of a clip the model sees."""
        return self.frames or (captioner.model.frames if self.by == "run" else 8)

    def identity(self) -> list[Any]:
        """What answers are kept by: the options, and which weights they are."""
        known: Any = None
        if self.by == "run":
            from vdit.train.pretrained import step_identity
            from vdit.train.workspace import Workspace

            known = step_identity(Workspace(self.model).dit)
        elif self.by == "lm" and not paths.is_hub(self.model):
            folder = paths.path(self.model)
            known = sorted((name, str(paths.version_of(folder / name))) for name in paths.files_below(folder))
        return [dataclasses.asdict(self), known]


class CaptionClips(beam.DoFn):
    """Batches of encoded clips to the clips with captions. A clip without a good answer keeps what it had.

    Args:
        options: the model and what it sees.
        folder: where answers are kept.
    """

    def __init__(self, options: CaptionOptions, folder: str):
        self.options, self.folder = options, folder

    def setup(self) -> None:
        self._captioner, self._identity = self.options.captioner(), self.options.identity()
        self._frames = self.options.frames_of(self._captioner)
        self._counters = {name: Metrics.counter("caption", name) for name in ("done", "cached", "no answer", "tokens")}

    def process(self, clips: Sequence[Encoded]) -> Iterator[Encoded]:
        told = {made.row.clip.id: self._known(made) for made in clips if made.error is None}
        self._counters["cached"].inc(sum(captions is not None for captions in told.values()))
        asked: list[tuple[Encoded, Frames]] = []
        for made in clips:
            if made.error is None and told[made.row.clip.id] is None:
                try:
                    file = paths.local_copy(made.file, error=VideoError)
                    asked.append((made, sample_frames(file, count=self._frames, side=self.options.side)))
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
        key = json.dumps([made.meta["sha256"], self._identity])
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
