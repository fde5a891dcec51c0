"""VBench (Huang et al., 2024): videos in its layout for its own scripts, and what those scripts measured, read back.

VBench looks for PROMPT-0.mp4 to PROMPT-4.mp4 of each line of its prompt files, in one folder, and writes
NAME_eval_results.json: for each dimension the score, and the score of each video.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vdit.errors import DataError
from vdit.eval.evaluate import Figure
from vdit.eval.statistics import mean_interval
from vdit.paths import MIB, parse_json, read_bytes

PER_PROMPT = 5  # videos of each prompt; 25 for the prompts of temporal_flickering
_LONGEST = 240  # bytes of a file's name, less what stands behind the prompt
_LIMIT = 64 * MIB


def video_name(prompt: str, number: int) -> str:
    """The name of a prompt's video as VBench looks for it.

    Raises:
        DataError: the prompt cannot be a file's name.
    """
    if not prompt or "/" in prompt or "\0" in prompt or prompt.startswith(".") or len(prompt.encode()) > _LONGEST:
        raise DataError(f"prompt {prompt!r} cannot be a file's name, which VBench needs: leave it out")
    return f"{prompt}-{number}.mp4"


def read_results(path: str | Path) -> list[Figure]:
    """Figures of an _eval_results.json, with intervals over its videos.

    Raises:
        DataError: the file is no such thing.
    """
    data = read_bytes(path, limit=_LIMIT, error=DataError, fix="give VBench's NAME_eval_results.json")
    json = parse_json(data, name=str(path), error=DataError, fix="give VBench's NAME_eval_results.json")
    if not isinstance(json, dict) or not json:
        raise DataError(f"{path}: holds no dimension of VBench: give its NAME_eval_results.json")
    figures = []
    for dimension, entry in json.items():
        if not isinstance(entry, list) or not entry or not _is_number(entry[0]):
            raise DataError(f"{path}: {dimension} must be a list of a score and videos, as VBench writes it")
        videos = entry[1] if len(entry) > 1 and isinstance(entry[1], list) else []
        by_video = {
            Path(str(one.get("video_path"))).stem: float(one["video_results"])
            for one in videos if isinstance(one, dict) and _is_number(one.get("video_results"), flags=True)
        }  # fmt: skip
        interval = mean_interval(np.array(list(by_video.values()) or [entry[0]], float))
        # Its own score stands: of some dimensions it is not the mean of the videos.
        shift = float(entry[0]) - interval.value
        figures.append(Figure(
            metric="vbench", name=f"vbench_{dimension}", better="higher", by_video=by_video,
            interval=type(interval)(value=float(entry[0]), low=interval.low + shift, high=interval.high + shift,
                                    n=len(by_video)),
        ))  # fmt: skip
    return figures


def _is_number(value: object, *, flags: bool = False) -> bool:
    """A finite number; booleans, which some dimensions have for each video, only with `flags`."""
    if isinstance(value, bool):
        return flags
    return isinstance(value, int | float) and bool(np.isfinite(value))
