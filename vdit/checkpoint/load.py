"""Reading a run's checkpoints: parameters for inference, any named trees, and what a step says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vdit.checkpoint.files import META, read_json, steps_in
from vdit.checkpoint.steps import find_step
from vdit.checkpoint.trees import check_shapes, leaf_types, path_of, read_trees, spans_hosts, stored
from vdit.config import diff
from vdit.errors import CheckpointError
from vdit.finite import nonfinite_names
from vdit.reprs import listed
from vdit.types import PyTree

_SHOWN = 4


def load_params(
    directory: str | Path,
    *,
    ema: bool = True,
    step: int | None = None,
    abstract: PyTree | None = None,
    as_stored: bool = False,
) -> PyTree:
    """The parameters of a run for inference: the averaged ones if wanted and there, else the plain ones.

    directory: a run's checkpoints. step: None takes the newest whose files are as they were written (see find_step).
    abstract: tree of ShapeDtypeStructs with shardings to load onto a mesh; None loads what was stored onto the first
    device. as_stored: keep the types that arrays have on disk, whatever `abstract` says (imported weights may be
    bfloat16).

    Raises:
        CheckpointError: there is no such step, it is damaged, does not fit `abstract`, or holds NaN or infinity.
    """
    folder = find_step(directory, step, together=spans_hosts(abstract))
    name = "ema" if ema and (folder / "ema").is_dir() else "params"
    there = stored(folder)
    if abstract is None:
        struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # noqa: E731
        abstract = jax.tree.map(struct, there[name])
    elif as_stored:
        check_shapes(folder, {name: abstract}, there)
        types = leaf_types(there[name])
        keep = lambda path, s: jax.ShapeDtypeStruct(s.shape, types[path_of(path)], sharding=s.sharding)  # noqa: E731
        abstract = jax.tree_util.tree_map_with_path(keep, abstract)
    params = read_trees(folder, {name: abstract}, there=there)[name]
    spoilt = nonfinite_names(params)
    if spoilt:
        others = ", ".join(str(other) for other in steps_in(folder.parent) if str(other) != folder.name)
        fix = f"take another step of {folder.parent} ({others})" if others else "train again"
        held = f"hold NaN or infinity ({listed(spoilt)})"
        raise CheckpointError(f"{folder}: {name} {held}, which spoil every video: {fix}")
    return params


def load_trees(
    directory: str | Path, abstract: Mapping[str, PyTree], *, step: int | None = None
) -> dict[str, PyTree]:
    """The named trees of a step, laid out as `abstract` says, after a check of the files and the shapes.

    step: None takes the newest whose files are as they were written (see find_step).
    """
    return read_trees(find_step(directory, step, together=spans_hosts(abstract)), abstract)


def load_progress(directory: str | Path, *, step: int | None = None) -> PyTree:
    """What a training state's checkpoint counts: "step", "skipped", "skipped_in_a_row"; {} of an imported model's."""
    folder = find_step(directory, step)
    if not (folder / "progress").is_dir():
        return {}
    struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # noqa: E731
    return read_trees(folder, {"progress": jax.tree.map(struct, stored(folder)["progress"])})["progress"]


def load_meta(directory: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """The plain JSON values stored with a step: its config and what else the run said of itself."""
    return read_json(find_step(directory, step) / "meta" / META)


def check_config(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, may_change: tuple[str, ...] = ()
) -> None:
    """Refuses to go on under another config than the checkpoint's; names the keys that differ.

    may_change: dotted keys, or starts of them (`dit_train`), that a resumed run may change.
    """
    free = lambda key: any(key == start or key.startswith(start + ".") for start in may_change)  # noqa: E731
    changed = {key: pair for key, pair in diff(dict(saved), dict(now)).items() if not free(key)}
    if changed:
        lines = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in list(changed.items())[:_SHOWN]]
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise CheckpointError(
            f"the checkpoint was made by another config: {'; '.join(lines)}{more}; "
            "set them back, or train into another directory"
        )
