"""Which step of a run to use: the newest that is as it was written."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax

from vdit.checkpoint.agree import Exchange, on_first
from vdit.checkpoint.checksums import damage, is_finalized, my_sums, write_manifest
from vdit.checkpoint.files import Warn, say, set_aside, steps_in
from vdit.checkpoint.trees import unreadable
from vdit.errors import CheckpointError


@functools.cache
def say_once(message: str) -> None:
    """A warning of something that is looked at several times on the way to a model."""
    say(message)


def find_step(
    directory: str | Path, step: int | None = None, *, together: bool = False, warn: Warn = say_once
) -> Path:
    """The folder of a step whose files are as they were written: the newest such one if None.

    Damaged steps are named by `warn` and passed over, nothing is changed; a step that is asked for and damaged is a
    CheckpointError. together: all hosts call this at once and share the reading; without it, any host may alone.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory; give the folder that a run wrote")
    if step is not None:
        return _asked_for(directory, step, together=together)
    for _ in range(3):  # a run that is under way may delete what was listed
        found, bad = _newest(directory, _listed(directory, together=together), together=together)
        if found is None and not bad:
            continue
        if found is None:
            raise _none_good(directory, bad)
        speaks = not together or jax.process_index() == 0
        if bad and speaks:
            warn(f"{directory}: {_named(bad)}; step {found.name} is used instead")
        if not is_finalized(found) and speaks:
            warn(f"{found}: has no sums of its files, as when its save was cut short; it is used as it is")
        return found
    raise CheckpointError(f"{directory}: holds no complete checkpoint; train until the first save")


def repair(directory: Path, warn: Warn) -> Path | None:
    """The newest good step of a run that is to go on, None if it has none; all hosts call it at once.

    Renames damaged newer steps so they are ignored (unfinished ones stay). If no step is intact, renames nothing and
    raises, so a run never silently restarts from scratch.
    """
    found, bad = _newest(directory, _listed(directory, together=True), together=True)
    if found is None and bad:
        raise _none_good(directory, bad)
    if bad:
        names = on_first(lambda: [set_aside(directory / str(step)) for step, _ in bad])
        warn(f"{directory}: {_named(bad)}; set aside as {', '.join(names)}; going on from step {found.name}")
    if found is not None and not on_first(lambda: is_finalized(found)):
        finalize(found)
        warn(f"{found}: its save was cut short before the sums of its files were written; all could be read: sealed")
    return found


def finalize(folder: Path) -> None:
    """Writes the sums of a step's files; all hosts call it at once, each reads its share."""
    exchange = Exchange()
    exchange.agree(my_sums(folder, exchange), lambda found: write_manifest(folder, found))


def _asked_for(directory: Path, step: int, *, together: bool) -> Path:
    steps = _listed(directory, together=together)
    if step not in steps:
        raise CheckpointError(f"{directory}: no step {step}; there are {steps}")
    folder = directory / str(step)
    problem = _problem(folder, together=together)
    if problem is not None:
        raise CheckpointError(f"{folder}: {problem}; take another step")
    return folder


def _listed(directory: Path, *, together: bool) -> list[int]:
    return _first(lambda: steps_in(directory), together=together)


def _newest(directory: Path, steps: list[int], *, together: bool) -> tuple[Path | None, list[tuple[int, str]]]:
    """(the newest good step's folder or None, the damaged ones before it with what is wrong with each)."""
    bad: list[tuple[int, str]] = []
    for step in reversed(steps):
        folder = directory / str(step)
        problem = _problem(folder, together=together)
        if problem is None:
            return folder, bad
        if _first(folder.exists, together=together):
            bad.append((step, problem))
    return None, bad


def _problem(folder: Path, *, together: bool) -> str | None:
    if _first(lambda: is_finalized(folder), together=together):
        problems = damage(folder, together=together)
    else:
        exchange = Exchange(alone=not together)
        mine = unreadable(folder, exchange.index, exchange.count)
        problems = exchange.agree(mine, lambda found: [line for lines in found for line in lines])
    if not problems:
        return None
    return f"{problems[0]} ({len(problems)} file{'s' if len(problems) > 1 else ''} in all)"


def _first(look: Callable, *, together: bool):
    """What the first host sees: folders may look different from others for a while."""
    return Exchange(alone=not together).agree(None, lambda _: look())


def _named(bad: list[tuple[int, str]]) -> str:
    return "; ".join(f"step {step} is damaged: {problem}" for step, problem in bad)


def _none_good(directory: Path, bad: list[tuple[int, str]]) -> CheckpointError:
    return CheckpointError(
        f"{directory}: no step can be used: {_named(bad)}; put back a copy of one, or move them away "
        "to start from scratch"
    )
