"""What a public checkpoint's tensors look like to the rest, whatever files hold them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdit.errors import WeightsError

JSON_LIMIT = 100_000_000
_SHOWN = 4


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it. dtype may be one of ml_dtypes (bfloat16, float8)."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorFiles:
    """Named tensors in one file or several.

    path: what was opened, for messages. info: name -> (shape, dtype). largest_file: bytes.
    reader(name): reads one tensor from disk.
    """

    path: Path
    info: Mapping[str, TensorInfo]
    largest_file: int
    reader: Callable[[str], np.ndarray]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in memory of its own."""
        if name not in self.info:
            raise WeightsError(f"{self.path}: has no tensor {name!r}; there are {listed(self.info)}")
        return self.reader(name)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file such as config.json."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > JSON_LIMIT:
            raise WeightsError(f"{path}: has {size} bytes, more than {JSON_LIMIT} for JSON; take the right file")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); it belongs to the model's folder") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no JSON ({_brief(error)}); download it again") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: is {type(value).__name__}, must be a JSON object; take the right file")
    return value


def listed(names: Iterable[str]) -> str:
    """The first names of many, and how many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"


def refuse_no_weights(path: Path, start: bytes) -> None:
    """Says what a file is that holds a download's stand-in for the weights. start: its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: is a pointer of Git LFS, not the weights; run `git lfs pull` in its repository")
    if start[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise WeightsError(f"{path}: is a web page, not the weights; download the file itself")


def _brief(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
