"""Answers on disk, by the content of what was asked: the same frames, prompt, model and options are paid for once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from vdit import paths
from vdit.errors import LanguageError
from vdit.language.base import Completion, GenerationOptions, Request, TextModel
from vdit.outputs import write_whole
from vdit.reprs import short_repr

_LIMIT = 16 << 20  # bytes of one answer


def default_folder() -> Path:
    """~/.cache/vdit/answers, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdit" / "answers"


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A `TextModel` whose answers are kept in a folder.

    Attributes:
        model: is asked for what the folder does not hold.
        folder: one JSON file for each answer.
        identity: what the answers belong to beside the model's name, such as the address of a server.
        fresh: ask again for what the folder holds, and replace it.
    """

    model: TextModel
    folder: Path
    identity: str = ""
    fresh: bool = False

    @property
    def name(self) -> str:
        return self.model.name

    def complete(self, requests: Sequence[Request], options: GenerationOptions) -> list[Completion]:
        """See TextModel."""
        files = [self._file(request, options) for request in requests]
        done = [None if self.fresh else self._read(file) for file in files]
        missing = [i for i, completion in enumerate(done) if completion is None]
        if missing:
            for i, completion in zip(missing, self.model.complete([requests[i] for i in missing], options)):
                done[i] = completion
                self._write(files[i], completion)
        return done

    def _file(self, request: Request, options: GenerationOptions) -> Path:
        key = request.digest(self.name, self.identity, dataclasses.asdict(options))
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, file: Path) -> Completion | None:
        """An answer that was paid for before has no tokens now. None where there is none, or none that can be read."""
        if not file.is_file():
            return None
        try:
            fields = paths.read_json(file, limit=_LIMIT, error=LanguageError)
            text, reason = fields["text"], fields["finish_reason"]
        except (LanguageError, LookupError, TypeError):
            return None
        known = isinstance(text, str) and reason in ("stop", "length", "filter")
        return Completion(text=text, finish_reason=reason) if known else None

    def _write(self, file: Path, completion: Completion) -> None:
        import json

        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(completion))
        write_whole(file, lambda part: part.write_text(text, encoding="utf-8"), replace=True)
