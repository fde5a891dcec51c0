"""Saving and restoring the steps of a run."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vdit.checkpoint.files import META, File, check_manifest, clear_cut_short, write_manifest
from vdit.config import diff
from vdit.errors import CheckpointError
from vdit.types import PyTree

_SHOWN = 4


class DataIterator(Protocol):
    """What a checkpoint needs of a data iterator (Grain's iterators have it)."""

    def get_state(self) -> dict[str, Any] | bytes:
        """The place: what the next element depends on."""

    def set_state(self, state: dict[str, Any] | bytes) -> None:
        """Continues from a place."""


class Checkpointer:
    """Saves and restores the steps of one run. Close it, or use it as a context manager.

    directory: made if absent. keep: how many steps are kept. meta: plain JSON values stored with each
    step, by custom {"config": ..., "stage": ...}. Left-overs of a save that was killed are removed.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, meta: Mapping[str, Any] | None = None):
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        clear_cut_short(self.directory)
        self._meta = dict(meta or {})
        self._manager = ocp.training.Checkpointer(
            self.directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )
        self._sealing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, trees: Mapping[str, PyTree], *, place: dict | bytes | None = None) -> None:
        """Saves a step in the background; waits for the save before it, if that is not done yet.

        trees: name -> tree of arrays (typed random keys allowed). They are copied before this returns,
        so the caller may donate them to the next step. place: the data iterator's `get_state()`.
        """
        self.wait()
        parts: dict[str, Any] = {name: _without_keys(tree) for name, tree in trees.items()}
        parts["data"] = File(_place_file(), _to_json(place), every_host=True)
        parts["meta"] = File(META, self._meta, every_host=False)
        # force: without it, a save is silently dropped while another one is under way
        response = self._manager.save_checkpointables_async(step, parts, force=True)
        self._sealing = threading.Thread(target=self._seal, args=(response, step), daemon=True)
        self._sealing.start()

    def restore(
        self, abstract: Mapping[str, PyTree], *, step: int | None = None, data: DataIterator | None = None
    ) -> dict[str, PyTree]:
        """The trees of a step (the last one if None), laid out as `abstract` says; moves `data` to its place.

        abstract: name -> tree of ShapeDtypeStructs, with their shardings where they matter.
        """
        self.wait()
        trees = load_trees(self.directory, abstract, step=step)
        if data is not None:
            data.set_state(_read_place(find_step(self.directory, step)))
        return trees

    def latest_step(self) -> int | None:
        """The last complete step, or None."""
        self.wait()
        return max(_steps(self.directory), default=None)

    def wait(self) -> None:
        """Returns when the save under way, if any, is complete; raises what went wrong with it."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise CheckpointError(f"{self.directory}: the save failed: {failure}") from failure

    def close(self) -> None:
        """Waits for the last save and lets go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _seal(self, response, step: int) -> None:
        try:
            response.result()
            if jax.process_index() == 0:
                write_manifest(self.directory / str(step))
        except BaseException as failure:  # raised again in the caller's thread by wait()
            self._failure = failure


def load_params(
    directory: str | Path,
    *,
    ema: bool = True,
    step: int | None = None,
    abstract: PyTree | None = None,
    as_stored: bool = False,
) -> PyTree:
    """The parameters of a run for inference: the averaged ones if wanted and there, else the plain ones.

    directory: a run's checkpoints. abstract: tree of ShapeDtypeStructs with shardings to load onto a
    mesh; None loads what was stored onto the first device. as_stored: keep the types that arrays have on disk,
    whatever `abstract` says (imported weights may be bfloat16).
    """
    root = Path(directory).absolute()
    folder = find_step(root, step)
    name = "ema" if ema and (folder / "ema").is_dir() else "params"
    if abstract is None:
        struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # noqa: E731
        abstract = jax.tree.map(struct, _stored(folder)[name])
    elif as_stored:
        _check_shapes(folder, {name: abstract})
        types = {_path(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(_stored(folder)[name])}
        keep = lambda path, s: jax.ShapeDtypeStruct(s.shape, types[_path(path)], sharding=s.sharding)  # noqa: E731
        abstract = jax.tree_util.tree_map_with_path(keep, abstract)
    return load_trees(root, {name: abstract}, step=int(folder.name))[name]


def load_meta(directory: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """The plain JSON values stored with a step: its config and what else the run said of itself."""
    folder = find_step(Path(directory).absolute(), step)
    try:
        return json.loads((folder / "meta" / META).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: no readable meta data ({error}); take another step") from None


def load_trees(
    directory: str | Path, abstract: Mapping[str, PyTree], *, step: int | None = None
) -> dict[str, PyTree]:
    """The named trees of a step, laid out as `abstract` says, after a check of the files and the shapes."""
    folder = find_step(Path(directory).absolute(), step)
    check_manifest(folder)
    _check_shapes(folder, abstract)
    wanted = {name: _placed(_without_keys(tree)) for name, tree in abstract.items()}
    try:
        loaded = ocp.load_checkpointables(folder, wanted)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{folder}: cannot be read: {reason}; take another step") from error
    return {name: _with_keys(loaded[name], tree) for name, tree in abstract.items()}


def find_step(directory: Path, step: int | None = None) -> Path:
    """The folder of a complete step, the last one if None."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory; give the folder that a run wrote")
    steps = _steps(directory)
    if not steps:
        raise CheckpointError(f"{directory}: holds no complete checkpoint; train until the first save")
    if step is None:
        return directory / str(max(steps))
    if step not in steps:
        raise CheckpointError(f"{directory}: no step {step}; there are {sorted(steps)}")
    return directory / str(step)


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


def _steps(directory: Path) -> list[int]:
    """Complete steps: Orbax gives a folder its final name as the last act of a save."""
    folders = [entry for entry in directory.iterdir() if entry.name.isdigit()]
    return [int(folder.name) for folder in folders if (folder / "_CHECKPOINT_METADATA").exists()]


def _stored(folder: Path) -> dict[str, PyTree]:
    """Name -> tree of what the step's files say of their arrays (.shape, .dtype)."""
    names = [entry.name for entry in folder.iterdir() if (entry / "_METADATA").exists()]
    return {name: ocp.metadata(folder, checkpointable_name=name).metadata for name in names}


def _check_shapes(folder: Path, abstract: Mapping[str, PyTree]) -> None:
    stored = _stored(folder)
    missing = sorted(set(abstract) - set(stored))
    if missing:
        raise CheckpointError(f"{folder}: has no {missing}, only {sorted(stored)}; use its own config")
    wrong: list[str] = []
    for name, tree in abstract.items():
        there, wanted = _shapes(stored[name]), _shapes(_without_keys(tree))
        for key in sorted(set(there) | set(wanted)):
            old, new = there.get(key, "absent"), wanted.get(key, "absent")
            if old != new:
                wrong.append(f"{name}/{key} is {old}, must be {new}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        shown = "; ".join(wrong[:_SHOWN])
        raise CheckpointError(f"{folder}: does not fit: {shown}{more}; use the config that wrote it")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _path(path) -> str:
    """A leaf's path in words that are the same for a dict, a tuple and a dataclass."""
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _placed(abstract: PyTree) -> PyTree:
    """Shapes without a sharding get the first device: else Orbax takes the one they were saved from."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first)  # noqa: E731
    return jax.tree.map(place, abstract)


def _without_keys(tree: PyTree) -> PyTree:
    """The tree with typed random keys as the plain integers that can be stored."""

    def plain(leaf):
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(plain, tree)


def _with_keys(tree: PyTree, abstract: PyTree) -> PyTree:
    def typed(leaf, wanted):
        if not _is_key(wanted):
            return leaf
        impl = []  # a ShapeDtypeStruct does not tell its generator, a traced key does
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), wanted)
        key = jax.random.wrap_key_data(leaf, impl=impl[0])
        return jax.device_put(key, wanted.sharding) if wanted.sharding is not None else key

    return jax.tree.map(typed, tree, abstract)


def _place_file() -> str:
    return f"host_{jax.process_index()}_of_{jax.process_count()}.json"


def _read_place(folder: Path) -> dict | bytes:
    """This host's place in the data."""
    file = folder / "data" / _place_file()
    if not file.exists():
        there = sorted(entry.name for entry in (folder / "data").glob("host_*"))
        raise CheckpointError(
            f"{folder}: the place in the data is of {there}, this run needs {file.name}: "
            "resume on as many hosts, or start the data anew"
        )
    value = json.loads(file.read_text())
    if value is None:
        raise CheckpointError(f"{folder}: holds no place in the data; start the data anew")
    return base64.b64decode(value["bytes"]) if "bytes" in value else value["dict"]


def _to_json(place: dict | bytes | None) -> Any:
    if isinstance(place, bytes):
        return {"bytes": base64.b64encode(place).decode()}
    plain = jax.tree.map(lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, place)
    return None if place is None else {"dict": plain}
