"""Which clips are kept: the keep expression, and of near-duplicates the best copy that passes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipelines.keep import Keep
from data_pipelines.records import ClipRecord

ERROR, DUPLICATE = "cannot be used", "duplicate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A clip as the rows of a curated folder have it.

    Args:
        clip: the record, measured.
        name: of its file, for people.
        captions: of its file, or its own.
        cluster: id of the cluster of near-duplicates that it is in; None where it is alone.
        rank: its place in the cluster: 0 for the best copy.
    """

    clip: ClipRecord
    name: str
    captions: tuple[str, ...] = ()
    cluster: str | None = None
    rank: int = 0

    @property
    def columns(self) -> dict[str, Any]:
        """What a keep expression can name."""
        height, width = self.clip.size or (None, None)
        own = {"duration": self.clip.duration, "height": height, "width": width, "duplicate": self.rank > 0}
        return own | self.clip.measures

    def to_json(self) -> dict[str, Any]:
        return {"clip": self.clip.to_json(), "name": self.name, "captions": list(self.captions),
                "cluster": self.cluster, "rank": self.rank}  # fmt: skip

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Row:
        return cls(clip=ClipRecord.from_json(values["clip"]), name=values["name"], captions=tuple(values["captions"]),
                   cluster=values["cluster"], rank=values["rank"])  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a row. reason: None where it is kept; the rule that it breaks, ERROR or DUPLICATE otherwise.
    better: the id of the copy that is kept in its place."""

    row: Row
    reason: str | None = None
    better: str | None = None

    @property
    def kept(self) -> bool:
        return self.reason is None


def judge(rows: Iterable[Row], keep: Keep) -> Iterator[Verdict]:
    """The verdict on each row, in their order; holds in memory the rows that have near-duplicates, and no others.

    Args:
        rows: rows, those of one cluster anywhere among them. An iterable that can be gone through twice.
        keep: the expression. A clip that has an error is not kept, whatever it says.
    """
    best: dict[str, tuple[int, str]] = {}
    for row in rows:
        if row.cluster is not None and row.clip.error is None and keep.reason(row.columns) is None:
            known = best.get(row.cluster)
            if known is None or row.rank < known[0]:
                best[row.cluster] = row.rank, row.clip.id
    for row in rows:
        if row.clip.error is not None:
            yield Verdict(row=row, reason=ERROR)
            continue
        reason = keep.reason(row.columns)
        better = best.get(row.cluster or "")
        if reason is None and better is not None and better[1] != row.clip.id:
            yield Verdict(row=row, reason=DUPLICATE, better=better[1])
        else:
            yield Verdict(row=row, reason=reason)
