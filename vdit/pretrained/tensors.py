"""What a public checkpoint's tensors look like to the rest, whatever files hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdit.errors import WeightsError
from vdit.finite import all_finite
from vdit.paths import MIB
from vdit.paths import read_json as read_any_json
from vdit.reprs import short_repr

CONFIG_LIMIT = 2 * MIB  # of a config.json; one of a thousand class names has 50 kB
INDEX_LIMIT = 8 * MIB  # of the index of shards: a line for each of up to 80,000 tensors
FIX = "download it again"
_SHOWN = 4


class TensorInfo(NamedTuple):
    """What is known of a tensor without reading it. dtype may be one of ml_dtypes (bfloat16, float8)."""

    shape: tuple[int, ...]
    dtype: np.dtype


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorFiles:
    """Named tensors in one file or several.

    path: what was opened, for messages. info: name -> (shape, dtype). largest_file: bytes.
    reader(name): reads one tensor from disk. metadata: texts that a safetensors header holds beside them.
    """

    path: Path
    info: Mapping[str, TensorInfo]
    largest_file: int
    reader: Callable[[str], np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        """One tensor, in memory of its own; WeightsError if it holds NaN or infinity."""
        if name not in self.info:
            raise WeightsError(f"{self.path}: has no tensor {name!r}; there are {listed(self.info)}")
        values = self.reader(name)
        if not all_finite(values):
            raise WeightsError(f"{self.path}: {name} holds NaN or infinity: it would spoil every video; {FIX}")
        return values


def read_json(path: str | Path, *, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """A JSON object from a file such as config.json; see vdit.paths."""
    value = read_any_json(path, limit=limit, error=WeightsError, fix=FIX)
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
