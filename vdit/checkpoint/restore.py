"""Reading a run's checkpoints: which step to use, its trees of arrays, parameters for inference, and its meta."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from vdit import paths
from vdit.checkpoint.files import META, Warn, absolute_path, check_iterator_state, read_json, say, set_aside, steps_in
from vdit.checkpoint.hosts import Exchange, on_first
from vdit.checkpoint.integrity import damage, is_finalized, my_checksums, write_manifest
from vdit.config import diff
from vdit.errors import CheckpointError, reason
from vdit.finite import nonfinite_names
from vdit.paths import AnyPath
from vdit.reprs import listed
from vdit.types import PyTree

_SHOWN = 4
_PIECE = 256_000_000  # bytes read at a time to see whether they can be read


def read_trees(
    folder: AnyPath, abstract: Mapping[str, PyTree], *, there: Mapping[str, PyTree] | None = None
) -> dict[str, PyTree]:
    """The named trees of a step, laid out as `abstract` says, after a check of the shapes.

    there: what `stored` says of the step, if that was asked already.
    """
    check_shapes(folder, abstract, stored(folder) if there is None else there)
    wanted = {name: _with_shardings(without_keys(tree)) for name, tree in abstract.items()}
    try:
        here = _readable(folder)
        loaded = _in_thread(lambda: _load(here, wanted))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}; take another step") from error
    return {name: _with_keys(loaded[name], tree) for name, tree in abstract.items()}


def _load(folder: AnyPath, wanted: Mapping[str, PyTree]) -> Any:
    """Orbax's reading; what `wanted` leaves out of a tree is not read. `check_shapes` says what must be there."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(folder, wanted)


def stored(folder: AnyPath) -> dict[str, PyTree]:
    """Name -> tree of what the step's files say of their arrays (.shape, .dtype)."""
    names = [name for name in paths.names_in(folder) if paths.is_file(folder / name / "_METADATA")]
    try:
        here = _readable(folder)
        found = _in_thread(lambda: {name: ocp.metadata(here, checkpointable_name=name).metadata for name in names})
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {reason(error)}; take another step") from error
    unread = [name for name, tree in found.items() if tree is None]
    if unread:
        raise CheckpointError(f"{folder}: {unread[0]}/_METADATA cannot be read; take another step")
    return found


def check_shapes(folder: AnyPath, abstract: Mapping[str, PyTree], there_now: Mapping[str, PyTree]) -> None:
    """Refuses trees that the step does not hold, or holds in other shapes, and names the leaves.

    there_now: what `stored` says of the step.
    """
    missing = sorted(set(abstract) - set(there_now))
    if missing:
        raise CheckpointError(f"{folder}: has no {missing}, only {sorted(there_now)}; use its own config")
    wrong: list[str] = []
    for name, tree in abstract.items():
        there, wanted = _shapes(there_now[name]), _shapes(without_keys(tree))
        for key in sorted(set(there) | set(wanted)):
            old, new = there.get(key, "absent"), wanted.get(key, "absent")
            if old != new:
                wrong.append(f"{name}/{key} is {old}, must be {new}")
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        shown = "; ".join(wrong[:_SHOWN])
        raise CheckpointError(f"{folder}: does not fit: {shown}{more}; use the config that wrote it")


def unreadable(folder: AnyPath, index: int = 0, count: int = 1) -> list[str]:
    """What cannot be read of a step that has no sums, a line each: host `index` of `count` reads its share of arrays.

    The parts and as many arrays as Orbax's notes speak of must be there, to the last piece.
    """
    try:
        read_json(folder / "meta" / META)
        check_iterator_state(folder)
        parts = set(read_json(folder / "_CHECKPOINT_METADATA")["item_handlers"]) - {"data", "meta"}
        for name in sorted(parts):
            notes = read_json(folder / name / "_METADATA")["tree_metadata"].values()
            wanted = sum(not leaf["value_metadata"]["skip_deserialize"] for leaf in notes)
            arrays = _arrays(folder / name)
            if len(arrays) != wanted:
                return [f"{name} holds {len(arrays)} of its {wanted} arrays"]
            for array in arrays[index::count]:
                _read_through(array)
    except (CheckpointError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [reason(error).replace(f"{folder}/", "").removesuffix("; take another step")]
    return []


def leaf_types(tree: PyTree) -> dict[str, Any]:
    """Path of a leaf -> its type."""
    return {path_of(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_of(path) -> str:
    """A leaf's path in words that are the same for a dict, a tuple and a dataclass."""
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def without_keys(tree: PyTree) -> PyTree:
    """The tree with typed random keys as the plain integers that can be stored."""

    def plain(leaf):
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
        return jax.random.key_data(leaf)

    return jax.tree.map(plain, tree)


def spans_hosts(abstract: PyTree) -> bool:
    """Whether a tree is to lie on devices of several hosts: then all of them load it at once."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(abstract)]
    return any(sharding is not None and not sharding.is_fully_addressable for sharding in shardings)


def total_bytes(tree: PyTree) -> int:
    """Bytes of all arrays of a tree, over all hosts."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def _in_thread(read: Callable[[], Any]) -> Any:
    """Calls in a thread of its own, which no signal interrupts: Orbax would swallow what a signal raises, and read on
    without what it was just reading. It is raised in this thread, when the reading is over."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(read).result()


def _readable(folder: AnyPath) -> AnyPath:
    """A folder that Orbax and tensorstore read. Orbax 0.12 has no driver for s3://: such a folder is copied here."""
    if isinstance(folder, Path) or str(folder).startswith("gs://"):
        return folder
    return paths.local_folder(folder, error=CheckpointError)


def _arrays(part: AnyPath) -> list[tensorstore.TensorStore]:
    """The arrays in a part of a step, in the order of their names."""
    part = _readable(part)
    base = {"driver": "ocdbt", "base": f"file://{part}/" if isinstance(part, Path) else f"{part}/"}
    keys = [key.decode() for key in tensorstore.KvStore.open(base).result().list().result()]
    paths = sorted(key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json"))
    specs = [{"driver": "zarr3", "kvstore": base | {"path": f"{path}/"}} for path in paths]
    return [tensorstore.open(spec, read=True).result() for spec in specs]


def _read_through(array: tensorstore.TensorStore) -> None:
    size = math.prod(array.shape) * array.dtype.numpy_dtype.itemsize
    if not array.shape or size <= _PIECE:
        array.read().result()
        return
    rows = max(array.shape[0] * _PIECE // size, 1)
    for start in range(0, array.shape[0], rows):
        array[start : min(start + rows, array.shape[0])].read().result()


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _with_shardings(abstract: PyTree) -> PyTree:
    """Shapes without a sharding get the first device: else Orbax takes the one they were saved from."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with_sharding = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=s.sharding or first)  # noqa: E731
    return jax.tree.map(with_sharding, abstract)


def _with_keys(tree: PyTree, abstract: PyTree) -> PyTree:
    def typed(leaf, wanted):
        if not _is_key(wanted):
            return leaf
        impl = []  # a ShapeDtypeStruct does not tell its generator, a traced key does
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), wanted)
        key = jax.random.wrap_key_data(leaf, impl=impl[0])
        return jax.device_put(key, wanted.sharding) if wanted.sharding is not None else key

    return jax.tree.map(typed, tree, abstract)


@functools.cache
def say_once(message: str) -> None:
    """A warning of something that is looked at several times on the way to a model."""
    say(message)


def find_step(
    directory: str | Path, step: int | None = None, *, all_hosts: bool = False, warn: Warn = say_once
) -> AnyPath:
    """The folder of a step whose files are as they were written: the newest such one if None.

    Damaged steps are named by `warn` and passed over, nothing is changed; a step that is asked for and damaged is a
    CheckpointError. all_hosts: all hosts call this at once and share the reading; without it, any host may alone.
    """
    directory = absolute_path(directory)
    if not paths.is_dir(directory):
        raise CheckpointError(f"{directory}: no such checkpoint directory; give the folder that a run wrote")
    if step is not None:
        return _asked_for(directory, step, all_hosts=all_hosts)
    for _ in range(3):  # a run that is under way may delete what was listed
        found, bad = _newest(directory, _listed(directory, all_hosts=all_hosts), all_hosts=all_hosts)
        if found is None and not bad:
            continue
        if found is None:
            raise _none_good(directory, bad)
        speaks = not all_hosts or jax.process_index() == 0
        if bad and speaks:
            warn(f"{directory}: {_named(bad)}; step {found.name} is used instead")
        if not is_finalized(found) and speaks:
            warn(f"{found}: has no sums of its files, as when its save was cut short; it is used as it is")
        return found
    raise CheckpointError(f"{directory}: holds no complete checkpoint; train until the first save")


def repair(directory: AnyPath, warn: Warn) -> AnyPath | None:
    """The newest good step of a run that is to go on, None if it has none; all hosts call it at once.

    Renames damaged newer steps so they are ignored (unfinished ones stay). If no step is intact, renames nothing and
    raises, so a run never silently restarts from scratch.
    """
    found, bad = _newest(directory, _listed(directory, all_hosts=True), all_hosts=True)
    if found is None and bad:
        raise _none_good(directory, bad)
    if bad:
        names = on_first(lambda: [set_aside(directory / str(step)) for step, _ in bad])
        warn(f"{directory}: {_named(bad)}; set aside as {', '.join(names)}; going on from step {found.name}")
    if found is not None and not on_first(lambda: is_finalized(found)):
        finalize(found)
        warn(f"{found}: its save was cut short before the sums of its files were written; all could be read: finalized")
    return found


def finalize(folder: AnyPath) -> None:
    """Writes the sums of a step's files; all hosts call it at once, each reads its share."""
    exchange = Exchange()
    exchange.agree(my_checksums(folder, exchange), lambda found: write_manifest(folder, found))


def _asked_for(directory: AnyPath, step: int, *, all_hosts: bool) -> AnyPath:
    steps = _listed(directory, all_hosts=all_hosts)
    if step not in steps:
        raise CheckpointError(f"{directory}: no step {step}; there are {steps}")
    folder = directory / str(step)
    problem = _problem(folder, all_hosts=all_hosts)
    if problem is not None:
        raise CheckpointError(f"{folder}: {problem}; take another step")
    return folder


def _listed(directory: AnyPath, *, all_hosts: bool) -> list[int]:
    return _first(lambda: steps_in(directory), all_hosts=all_hosts)


def _newest(directory: AnyPath, steps: list[int], *, all_hosts: bool) -> tuple[AnyPath | None, list[tuple[int, str]]]:
    """(the newest good step's folder or None, the damaged ones before it with what is wrong with each)."""
    bad: list[tuple[int, str]] = []
    for step in reversed(steps):
        folder = directory / str(step)
        problem = _problem(folder, all_hosts=all_hosts)
        if problem is None:
            return folder, bad
        if _first(functools.partial(paths.exists, folder), all_hosts=all_hosts):
            bad.append((step, problem))
    return None, bad


def _problem(folder: AnyPath, *, all_hosts: bool) -> str | None:
    if _first(lambda: is_finalized(folder), all_hosts=all_hosts):
        problems = damage(folder, all_hosts=all_hosts)
    else:
        exchange = Exchange(alone=not all_hosts)
        mine = unreadable(folder, exchange.index, exchange.count)
        problems = exchange.agree(mine, lambda found: [line for lines in found for line in lines])
    if not problems:
        return None
    return f"{problems[0]} ({len(problems)} file{'s' if len(problems) > 1 else ''} in all)"


def _first(look: Callable, *, all_hosts: bool):
    """What the first host sees: folders may look different from others for a while."""
    return Exchange(alone=not all_hosts).agree(None, lambda _: look())


def _named(bad: list[tuple[int, str]]) -> str:
    return "; ".join(f"step {step} is damaged: {problem}" for step, problem in bad)


def _none_good(directory: AnyPath, bad: list[tuple[int, str]]) -> CheckpointError:
    return CheckpointError(
        f"{directory}: no step can be used: {_named(bad)}; put back a copy of one, or move them away "
        "to start from scratch"
    )


_SHOWN = 4


def load_params(
    directory: str | Path,
    *,
    ema: bool = True,
    step: int | None = None,
    abstract: PyTree | None = None,
    as_stored: bool = False,
    only: Collection[str] | None = None,
) -> PyTree:
    """The parameters of a run for inference: the averaged ones if wanted and there, else the plain ones.

    directory: a run's checkpoints. step: None takes the newest whose files are as they were written (see find_step).
    abstract: tree of ShapeDtypeStructs with shardings to load onto a mesh; None loads what was stored onto the first
    device. as_stored: keep the types that arrays have on disk, whatever `abstract` says (imported weights may be
    bfloat16). only: the parts to read ("text", "dit", ...), of which `abstract` may hold more; None reads all.

    Raises:
        CheckpointError: there is no such step, it is damaged, does not fit `abstract`, or holds NaN or infinity.
    """
    folder = find_step(directory, step, all_hosts=spans_hosts(abstract))
    name = "ema" if ema and paths.is_dir(folder / "ema") else "params"
    there = stored(folder)
    if only is not None:
        there = there | {name: {part: tree for part, tree in there[name].items() if part in only}}
        abstract = None if abstract is None else {part: tree for part, tree in abstract.items() if part in only}
    if abstract is None:
        struct = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)  # noqa: E731
        abstract = jax.tree.map(struct, there[name])
    elif as_stored:
        check_shapes(folder, {name: abstract}, there)
        types = leaf_types(there[name])
        with_stored_type = lambda path, s: jax.ShapeDtypeStruct(s.shape, types[path_of(path)], sharding=s.sharding)  # noqa: E731
        abstract = jax.tree_util.tree_map_with_path(with_stored_type, abstract)
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
    return read_trees(find_step(directory, step, all_hosts=spans_hosts(abstract)), abstract)


def load_progress(directory: str | Path, *, step: int | None = None) -> PyTree:
    """What a training state's checkpoint counts: "step", "skipped", "skipped_in_a_row"; {} of an imported model's."""
    folder = find_step(directory, step)
    if not paths.is_dir(folder / "progress"):
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
