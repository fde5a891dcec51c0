"""Public weights to a checkpoint of ours on disk, one tensor at a time: no model is ever in memory.

Where the model fits onto the mesh, load(...) and Checkpointer.save do the same, on any number of hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdit.checkpoint import StreamedLeaf, save_streamed
from vdit.pretrained.plan import Plan, Put, make_plan
from vdit.pretrained.tensors import TensorFiles
from vdit.pretrained.weights import Rule
from vdit.reprs import short_repr
from vdit.types import PyTree

_LEAST_PIECE, _MOST_PIECE = 1_000_000, 64_000_000


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a tree of parameters comes from: what `load` takes. abstract: nested dicts of ShapeDtypeStructs."""

    rules: Sequence[Rule]
    tensors: TensorFiles
    abstract: PyTree
    ignore: Sequence[str] = ()


def import_trees(
    trees: Mapping[str, Any],
    directory: str | Path,
    *,
    step: int = 0,
    meta: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes step `step` of a checkpoint directory from public weights; all are checked before anything is written.

    trees: name -> Source, or nested dicts of Sources: {"params": {"dit": Source(...), "text": Source(...)}}.
    dtype: as of `load`. Memory: one tensor, and twice an eighth of the largest file (at most 64 MB).
    """
    plans = {name: _plans(tree, dtype) for name, tree in trees.items()}
    largest = max(plan.tensors.largest_file for found in plans.values() for plan in found.values())
    save_streamed(
        directory,
        {name: _leaves(found) for name, found in plans.items()},
        {name: _feed(found) for name, found in plans.items()},
        step=step,
        meta=meta,
        piece_bytes=min(max(largest // 8, _LEAST_PIECE), _MOST_PIECE),
    )


def _plans(tree: Any, dtype: str | None, path: str = "") -> dict[str, Plan]:
    """Plans by the path of their tree, which ends in "/" unless it is the root."""
    if isinstance(tree, Source):
        return {path: make_plan(tree.rules, tree.tensors, tree.abstract, dtype=dtype, ignore=tree.ignore)}
    return {p: plan for key, part in tree.items() for p, plan in _plans(part, dtype, f"{path}{key}/").items()}


def _leaves(plans: Mapping[str, Plan]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for start, plan in plans.items():
        for path, leaf in plan.leaves.items():
            *parents, last = (start + path).split("/")
            node = root
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = StreamedLeaf(shape=leaf.shape, dtype=leaf.dtype, stacked=leaf.stacked)
    return root


def _feed(plans: Mapping[str, Plan]) -> Callable[[Put], None]:
    def feed(put: Put) -> None:
        for start, plan in plans.items():
            plan.feed(lambda path, layer, values, start=start: put(start + path, layer, values))

    return feed
