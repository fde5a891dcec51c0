"""Metrics against an emulator: where the things of a game are, and what happens to them, frame by frame.

The truth is what the emulator shows after the same state and the same actions (vdit.generate.emulation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from vdit.eval.evaluate import Better, Case, Metric, Need, Values
from vdit.eval.games import GAMES, KINDS, THINGS, match_events, read_play
from vdit.registry import register


@register("metric", "game_things")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GameThings(Metric):
    """Where ball and paddles are, by frame.

    "NAME_error": distance of the thing from its true place, in short sides of the frame; of frames where both show it.
    "NAME_in_place": share of frames where it is within `near` short sides of its true place, or where neither shows it.
    """

    near: float = 0.05
    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = tuple(GAMES)
    better: ClassVar[Mapping[str, Better]] = (
        {f"{name}_error": "lower" for name in THINGS} | {f"{name}_in_place": "higher" for name in THINGS}
    )  # fmt: skip

    def measure(self, case: Case) -> Values:
        made, true = (read_play(case.scene["world"], video).things for video in (case.made, case.made_truth))
        found: dict[str, np.ndarray] = {}
        for name, path in true.items():
            error = np.linalg.norm(made[name] - path, axis=1)
            neither = np.isnan(path[:, 0]) & np.isnan(made[name][:, 0])
            found[f"{name}_error"] = error
            found[f"{name}_in_place"] = (neither | (error <= self.near)).astype(np.float64)
        return found


@register("metric", "game_events")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GameEvents(Metric):
    """Whether what happens in the emulator happens in the video: bounces, scores, bricks that go.

    "KIND_precision": share of the video's events that the emulator has, at most `within` frames earlier or later and to
    the same side or brick. "KIND_recall": share of the emulator's events that the video has. "event_...": of all kinds.
    A video without any event of a kind has no precision, and where the emulator has none there is no recall.
    """

    within: int = 2
    needs: ClassVar[tuple[Need, ...]] = ("scene", "truth")
    worlds: ClassVar[tuple[str, ...]] = tuple(GAMES)
    better: ClassVar[Mapping[str, Better]] = {
        f"{kind}_{part}": "higher" for kind in ("event", *KINDS) for part in ("precision", "recall")
    }

    def measure(self, case: Case) -> Values:
        game, found = case.scene["world"], {}
        made, true = read_play(game, case.video), read_play(game, case.truth)
        for kind in (None, *KINDS):
            matched = match_events(made, true, kind, first=case.given, within=self.within)
            if kind is not None and not matched.made + matched.true:
                continue
            name = kind or "event"
            found[f"{name}_precision"] = matched.hits / matched.made if matched.made else float("nan")
            found[f"{name}_recall"] = matched.hits / matched.true if matched.true else float("nan")
        return found
