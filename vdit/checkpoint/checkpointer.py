"""Saving the steps of a run in the background, going on from them, and keeping the best of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from orbax.checkpoint import v1 as ocp

from vdit import buckets, internals, paths
from vdit.checkpoint.files import (
    COMMITTED,
    META,
    File,
    IteratorState,
    Warn,
    absolute_path,
    clear_left_overs,
    no_room,
    prepare,
    quiet_orbax,
    read_iterator_state,
    remove_failed,
    remove_step,
    say,
    steps_in,
)
from vdit.checkpoint.hosts import PATIENCE, Exchange, on_first, this_host
from vdit.checkpoint.integrity import is_finalized, my_checksums, write_manifest
from vdit.checkpoint.restore import find_step, read_trees, repair, total_bytes, without_keys
from vdit.errors import CheckpointError, HostsError, reason
from vdit.paths import AnyPath
from vdit.types import PyTree


class DataIterator(Protocol):
    """What a checkpoint needs of a data iterator (Grain's iterators have it)."""

    def get_state(self) -> dict[str, Any] | bytes:
        """The place: what the next element depends on."""

    def set_state(self, state: dict[str, Any] | bytes) -> None:
        """Continues from a place."""


class Checkpointer:
    """Saves and restores the steps of one run. Close it, or use it as a context manager.

    directory: made if absent; one Checkpointer at a time (see RunLock). keep: how many steps are kept: an old one goes
    only after a new one is complete and finalized. meta: plain JSON values stored with each step, by custom {"config":
    ..., "stage": ...}. Left-overs of a save that was killed are removed.

    A save that fails, as on a full disk, is no reason to stop: `warn` gets a line, what it left is removed, and the
    next save tries again. The failures that end a run are `attempts` in a row, raised by `save`, and the last save's,
    raised by `wait` and `close`; and a lost host (HostsError), by any method. All hosts come to the same verdict, and
    call all methods in the same order.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 2,
        meta: Mapping[str, Any] | None = None,
        warn: Warn = say,
        attempts: int = 3,
    ):
        self.directory = absolute_path(directory)
        if str(self.directory).startswith("s3://") and jax.process_count() > 1:
            raise CheckpointError(
                f"{self.directory}: {jax.process_count()} hosts cannot save to s3://, since Orbax cannot, and "
                "what each saves on its own disk is a part only: use gs://, or a folder that all hosts share"
            )
        self._meta, self._keep, self._attempts = dict(meta or {}), keep, attempts
        self._warn, self._quiet, self._ending = warn, False, False
        self._saving: _Save | None = None
        self.protected: frozenset[int] = frozenset()  # steps that are kept however old
        quiet_orbax()
        self._failures: list[str] = []  # of the saves since the last one that succeeded
        on_first(self._open)

    def save(self, step: int, trees: Mapping[str, PyTree], *, iterator_state: dict | bytes | None = None) -> None:
        """Saves a step in the background; waits for the save before it, if that is not done yet.

        trees: name -> tree of arrays (typed random keys allowed). They are copied before this returns,
        so the caller may donate them to the next step. iterator_state: the data iterator's `get_state()`.
        CheckpointError if the last `attempts` saves have failed.
        """
        self._settle()
        if len(self._failures) >= self._attempts:
            failures, self._failures = self._failures, []
            raise CheckpointError(f"{len(failures)} saves in a row have failed: {failures[-1]}")
        plain: dict[str, Any] = {name: without_keys(tree) for name, tree in trees.items()}
        self._saving = _Save(self.directory / str(step), plain, self._meta, iterator_state, keep=self._keep,
                             protected=self.protected, failed=self._failed)  # fmt: skip

    def restore(
        self, abstract: Mapping[str, PyTree], *, step: int | None = None, data: DataIterator | None = None
    ) -> dict[str, PyTree]:
        """The trees of a step, laid out as `abstract` says; moves `data` to its place.

        abstract: name -> tree of ShapeDtypeStructs, with their shardings where they matter. step: None takes the
        newest whose files are as they were written; damaged ones that are newer are named, and set aside.
        """
        self._settle()
        if step is None:
            folder = repair(self.directory, self._warn_first)
        else:
            folder = find_step(self.directory, step, all_hosts=True)
        if folder is None:
            raise CheckpointError(f"{self.directory}: holds no complete checkpoint; train until the first save")
        trees, failure = None, None
        try:
            trees = read_trees(folder, abstract)
            if data is not None:
                data.set_state(read_iterator_state(folder))
        except Exception as error:
            failure = error
        Exchange().agree(None if failure is None else reason(failure), _same_everywhere(failure))
        return trees

    def latest_step(self) -> int | None:
        """The newest step whose files are as they were written, or None before the first; see `restore`."""
        self._settle()
        folder = repair(self.directory, self._warn_first)
        return None if folder is None else int(folder.name)

    def wait(self) -> None:
        """Returns when the save under way, if any, is complete; CheckpointError if the last save has failed."""
        self._quiet = True  # it is raised here, that is enough
        self._settle()
        self._quiet = False
        if self._failures:
            failure = self._failures[-1]
            self._failures = []
            raise CheckpointError(failure)

    def close(self) -> None:
        """Waits for the last save, as `wait` does."""
        self.wait()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        """As `close`; an error that is on its way is not hidden by that of a save."""
        if kind is None:
            self.close()
            return
        self._ending = True
        with contextlib.suppress(CheckpointError, HostsError):
            self._settle()  # a save that fails is told by a warning

    def _open(self) -> None:
        if isinstance(self.directory, Path):
            self.directory.mkdir(parents=True, exist_ok=True)
        elif stage_of(self.directory) is not None:
            paths.remove_folder(stage_of(self.directory))
        clear_left_overs(self.directory)

    def _settle(self) -> None:
        """Waits for the save under way, and notes how it went."""
        if self._saving is None:
            return
        save, self._saving = self._saving, None
        save.thread.join()
        if save.lost is not None:
            raise save.lost
        self._failures = [*self._failures, save.failure] if save.failure is not None else []

    def _failed(self, failure: str) -> None:
        """Called by the save's thread at once: the next save may be hours away."""
        if not self._quiet:
            self._warn_first(failure if self._ending else f"{failure}; training goes on, the next save tries again")

    def _warn_first(self, message: str) -> None:
        if jax.process_index() == 0:
            self._warn(message)


class _Save:
    """One save under way. Once its thread has ended, failure: what went wrong, in the same words on all hosts; lost:
    that a host did not answer."""

    def __init__(self, folder: AnyPath, trees: dict[str, PyTree], meta: dict, iterator_state, *, keep: int,
                 protected: frozenset[int], failed: Warn):  # fmt: skip
        self._folder, self._keep, self._protected, self._failed = folder, keep, protected, failed
        stage = stage_of(folder.parent)
        self._written_to = folder if stage is None else stage / folder.name
        self._bytes = total_bytes(trees)
        self._exchange = Exchange()  # here, in the main thread: hosts number them alike
        self.failure: str | None = None
        self.lost: HostsError | None = None
        self._response, self._error, self._barriers = None, None, ()
        parts = trees | {"data": IteratorState(iterator_state, self._exchange), "meta": File(META, meta)}
        try:
            on_first(lambda: prepare(folder))
            with _context():
                self._response = ocp.save_checkpointables_async(self._written_to, parts)
            self._barriers = internals.orbax_barriers(trees)
        except Exception as error:
            self._error = error
        self.thread = threading.Thread(target=self._finish, daemon=True)
        self.thread.start()

    def _finish(self) -> None:
        try:
            error, found = self._written(), None
            if error is None:
                try:
                    found = my_checksums(self._folder, self._exchange)
                except OSError as failure:
                    error = self._words(failure)
            self._exchange.agree({"error": error, "sums": found}, self._finalize)
        except HostsError as lost:
            self.lost = lost
        except Exception as failure:
            self.failure = f"{self._folder}: not saved: {reason(failure)}"
            self._failed(self.failure)

    def _written(self) -> str | None:
        """Waits until Orbax has committed the step; returns what went wrong here, or that it did elsewhere."""
        error = self._error or _outcome(self._response) or self._sent()
        if error is None:
            return None
        if self._exchange.seen("failed"):
            return "given up, as another host's part failed"
        words = self._words(error)
        self._exchange.put("failed", words)
        self._exchange.spoil(self._barriers)  # where the others would wait for this host for minutes
        return words

    def _sent(self) -> Exception | None:
        """Uploads a step that was written here; returns what went wrong."""
        if self._written_to is self._folder:
            return None
        try:
            with buckets.failures(str(self._folder), OSError):
                buckets.send_folder(self._written_to, str(self._folder), last=(COMMITTED,))
        except Exception as error:
            return error
        finally:
            paths.remove_folder(self._written_to)
        return None

    def _words(self, error: BaseException) -> str:
        words = no_room(error, self._folder.parent, self._bytes) or reason(error)
        return words if self._exchange.count == 1 else f"{this_host()}: {words}"

    def _finalize(self, hosts: list[dict]) -> None:
        """On the first host, which alone writes from here on: finalizes the step, or removes what is there of it."""
        try:
            errors = [*self._exchange.seen("failed").values(), *(host["error"] for host in hosts if host["error"])]
            if errors:
                raise CheckpointError(errors[0])
            try:
                write_manifest(self._folder, [host["sums"] for host in hosts])
            except OSError as failure:
                raise CheckpointError(self._words(failure)) from failure
        except BaseException:
            remove_failed(self._folder, begun=self._response is not None)
            raise
        self._retire()

    def _retire(self) -> None:
        """Deletes what is older than the newest `keep` finalized steps, and not protected."""
        directory = self._folder.parent
        steps = steps_in(directory)
        finalized = [step for step in steps if is_finalized(directory / str(step))]
        for step in steps[: steps.index(finalized[-self._keep])] if len(finalized) > self._keep else ():
            if step in self._protected:
                continue
            try:
                remove_step(directory / str(step))
            except OSError as failure:
                say(f"{directory}: step {step} is old and could not be deleted: {reason(failure)}")


def stage_of(directory: AnyPath) -> Path | None:
    """The local folder where steps are written before they are uploaded; None where Orbax writes them in their place.

    Orbax 0.12 writes to disks and to gs://; it has no driver for s3://.
    """
    if not str(directory).startswith("s3://"):
        return None
    return buckets.home() / "saving" / hashlib.sha256(f"{os.getpid()} {directory}".encode()).hexdigest()[:16]


def _context() -> ocp.Context:
    context = ocp.Context()
    context.asynchronous.timeout_secs = PATIENCE
    # Else a failed start leaves threads behind that wait for the folders for minutes, and the process for them.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _outcome(response) -> BaseException | None:
    try:
        response.result()
    except BaseException as error:
        return error
    return None


def _same_everywhere(failure: Exception | None):
    """For Exchange.agree: what went wrong on any host is raised on all of them."""

    def merge(reasons: list[str | None]) -> None:
        if failure is not None:
            raise failure
        for host, words in enumerate(reasons):
            if words is not None:
                raise CheckpointError(f"host {host}: {words}")

    return merge


BEST = "best.json"  # beside the steps: {"metric": name, "values": {step: value}, "best": step}


class BestStep:
    """Protects the best of the saved steps from being deleted (`Checkpointer.protected`).

    The values of steps that are on disk are kept in best.json. A run that is killed while its best step is being saved
    goes on with the one that was best before.

    Args:
        checkpointer: of the run.
        metric: the figure.
        lowest: whether the lowest value is the best, else the highest.
        warn: takes a line when best.json cannot be written; the run goes on.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, *, lowest: bool = True, warn: Warn):
        self._checkpointer, self._metric, self._lowest, self._warn = checkpointer, metric, lowest, warn
        self._file = checkpointer.directory / BEST
        self._warned = False
        values = on_first(lambda: _read_best(self._file, metric))
        self._values = {int(step): value for step, value in values.items()}
        self._protect()

    def take(self, step: int, figures: Mapping[str, float]) -> bool:
        """Takes what was measured after `step` steps; returns whether that is the best so far, to be saved now.

        Raises:
            CheckpointError: the metric is not among the figures.
        """
        if self._metric not in figures:
            known = ", ".join(figures) or "none"
            raise CheckpointError(f"best_metric={self._metric!r}: is not measured; name one of: {known}")
        value = float(figures[self._metric])
        if not math.isfinite(value):
            return False
        on_disk = on_first(self._saved)
        self._values = {s: v for s, v in self._values.items() if s in on_disk or s in self._checkpointer.protected}
        self._values[step] = value
        best = self._protect()
        on_first(lambda: self._write(best))
        return best == step

    def _saved(self) -> list[int]:
        folder = self._checkpointer.directory
        return [step for step in steps_in(folder) if is_finalized(folder / str(step))]

    def _protect(self) -> int | None:
        """The best step, which is protected from here on."""
        order = min if self._lowest else max
        best = order(self._values, key=lambda step: (self._values[step], step if self._lowest else -step), default=None)
        self._checkpointer.protected = frozenset(() if best is None else (best,))
        return best

    def _write(self, best: int | None) -> None:
        text = json.dumps({"metric": self._metric, "values": self._values, "best": best}, indent=1)
        try:
            paths.write_atomic(self._file, text + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self._file}: not written: {reason(error)}; training goes on")


def best_step(directory: AnyPath) -> int | None:
    """The best step that is still on disk, by the metric that its run was told; None if none was measured."""
    if not paths.is_file(directory / BEST):
        return None
    step = paths.read_json(directory / BEST, limit=paths.MIB, error=CheckpointError).get("best")
    return step if isinstance(step, int) and is_finalized(directory / str(step)) else None


def _read_best(file: AnyPath, metric: str) -> dict[str, float]:
    """step -> value of complete steps, in the words of JSON; nothing if the file is of another metric."""
    if not paths.is_file(file):
        return {}
    found = paths.read_json(file, limit=paths.MIB, error=CheckpointError, fix="remove it")
    if not isinstance(found, dict) or found.get("metric") != metric or not isinstance(found.get("values"), dict):
        return {}
    return {
        step: float(value)
        for step, value in found["values"].items()
        if step.isdecimal() and isinstance(value, int | float) and is_finalized(file.parent / step)
    }
