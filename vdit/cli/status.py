"""Progress of a command on stderr: what it found, what it makes, how far it is, and the result.

    with Status("sample") as status:
        status.tell("makes", "2 videos of 17 frames")
        with status.progress("videos", 2, work=...) as display:
            display.update(1, {})
        status.wrote(path)
        status.next = "vdit extend ..."

stdout only gets names of files. How long a command takes is told before the work where this machine has done such work
before, and otherwise as soon as the first part is done; compiling is left out of it (vdit.train.progress).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vdit.outputs import write_whole

if TYPE_CHECKING:
    from rich.console import Console

    from vdit.train.progress import Display

_KEPT = 64  # paces that are remembered
_LABEL = 8
_REMIND = 15.0  # seconds
_WORTH_TELLING = 2.0  # seconds


class Status:
    """Context manager around the work of one command. On several hosts only the first prints.

    console: where lines go; None is stderr. devices: whether the command uses jax's devices; without it they are left
    alone, as `vdit plan` wants them.
    model: what the paces of this command belong to: work of another model says little about them. next: the command
    that may follow, for the last line.
    """

    def __init__(self, command: str, *, console: Console | None = None, devices: bool = True):
        self.command, self.console, self.model, self.next = command, console, "", ""
        self._began, self._loaded, self.devices = time.monotonic(), 0.0, devices
        self._head: list[str] = []
        self._written: list[str] = []
        self._compiling = None
        self._work: Work | None = None

    def __enter__(self) -> Status:
        from vdit.train.progress import Compiling

        self._compiling = Compiling()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._compiling.close()
        if kind is None:
            self.begin()
            self._end()

    def tell(self, label: str, words: str) -> None:
        """A line of the head: what was found, what will be made, and how.

        The head is printed once work begins, so a command that is refused prints the reason alone.
        """
        self._head.append(f"{label:{_LABEL}} {words}")

    def wrote(self, path: str | Path) -> None:
        """A file or folder that the command has written, to be named at the end."""
        self._written.append(str(path))

    def begin(self) -> None:
        """Work begins: what was asked has been checked."""
        while self._head:
            self._print(self._head.pop(0))

    @contextlib.contextmanager
    def loading(self, what: str = "the weights") -> Iterator[None]:
        """Around what is read before the work."""
        self.begin()
        began = time.monotonic()
        self._print(f"loading {what} ...")
        yield
        self._loaded += time.monotonic() - began
        if self._work is not None:
            self._work.begin()

    @contextlib.contextmanager
    def progress(self, name: str, total: int, *, work: float | None = None, canvases: bool = False) -> Iterator[Work]:
        """Around work of `total` parts; shows how much is done and the time left: `update(done, {})`.

        work: how much it is, in units in which other calls of the command count too; seconds for each are remembered
        for the next time. canvases: the parts are frames, `drawn` counts them, and work begins once weights are loaded.
        """
        paces, key = _Paces(), self._key()
        pace = paces.get(key) if work else None
        self._work = Work(self, name, total, None if pace is None else pace * work, counts=canvases)
        if not canvases:
            self._work.begin()
        began, before = time.monotonic(), self._compiling.seconds + self._loaded
        done = self._work
        try:
            yield done
            done.finish()
        finally:
            done.close()
            self._work = None
        if work and done.complete:
            spent = time.monotonic() - began - (self._compiling.seconds + self._loaded - before)
            paces.put(key, max(spent, 1e-3) / work)

    @contextlib.contextmanager
    def phases(self) -> Iterator[Callable[[str], None]]:
        """Around work in phases that cannot be counted: the function that is given says which one begins.

        A phase that has taken long is named again now and then, with its time.
        """
        self.begin()
        name, since, done = "", time.monotonic(), threading.Event()

        def begins(text: str) -> None:
            nonlocal name, since
            name, since = text.removesuffix(" ..."), time.monotonic()
            self._print(text if text.endswith("done") else f"{name} ...")

        def remind() -> None:
            while not done.wait(_REMIND):
                if name:
                    self._print(f"{name} ... {time.monotonic() - since:.0f} s")

        threading.Thread(target=remind, daemon=True).start()
        try:
            yield begins
        finally:
            done.set()

    def drawn(self, frames: int) -> None:
        """A canvas was filled, with so many frames that are new (Generator.drawn); see `progress`."""
        if self._work is not None:
            self._work.drawn(frames)

    def _key(self) -> str:
        import jax

        devices = jax.devices()
        text = json.dumps([self.command, self.model, devices[0].device_kind, len(devices), os.cpu_count()])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _end(self) -> None:
        from vdit.train.progress import clock_face

        spent, compiling = time.monotonic() - self._began, self._compiling.seconds
        parts = [f"{clock_face(spent)} in all"]
        if compiling >= 1:
            parts.append(f"{clock_face(compiling)} of it compiling")
        parts.append(f"{memory(self.devices)} at most")
        count = len(self._written)
        files = "" if not count else f"wrote {self._written[0]}" if count == 1 else f"wrote {count} files"
        self._print("; ".join(filter(None, [files, ", ".join(parts)])))
        if self.next:
            self._print(f"next: {self.next}")

    def speaks(self) -> bool:
        """Whether this host is the one that tells."""
        from vdit.dist.multihost import is_primary_host

        return not self.devices or is_primary_host()

    def _print(self, line: str) -> None:
        if not self.speaks():
            return
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class Work:
    """Parts of work that are done one after the other, and their display, which is opened when they begin."""

    def __init__(self, status: Status, name: str, total: int, expected: float | None, *, counts: bool):
        self._status, self._name, self._total, self._expected = status, name, total, expected
        self._counts, self._done = counts, 0
        self._display: Display | None = None

    def begin(self) -> None:
        """Opens the display, unless another host shows it."""
        from rich.console import Console

        from vdit.train.progress import clock_face, make_display

        if self._display is not None:
            return
        if self._expected is not None and self._expected >= _WORTH_TELLING:
            self._status.tell("takes", f"about {clock_face(self._expected)}, and the time to compile")
        self._status.begin()
        if self._status.speaks():
            # A bar moves lines of stdout above itself, which must not happen where stdout goes to a file.
            more = {"console": self._status.console or Console(stderr=True), "lines": not sys.stdout.isatty()}
            more |= {} if self._status.devices else {"phase": "working ..."}
            self._display = make_display(self._name, self._total, expected=self._expected, **more)

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """After so many parts."""
        self.begin()
        self._done = done
        if self._display is not None:
            self._display.update(done, values)

    def drawn(self, frames: int) -> None:
        if self._counts:
            self.update(min(self._done + frames, self._total), {})

    def finish(self) -> None:
        """The work is over. Frames that were given need no canvas, so `drawn` may not have counted all of them."""
        if self._counts and self._display is not None:
            self._done = self._total
            self._display.update(self._total, {})

    @property
    def complete(self) -> bool:
        """Whether all parts are done: an interrupted command says nothing of the pace."""
        return self._done >= self._total

    def close(self) -> None:
        if self._display is not None:
            self._display.close()


class _Paces:
    """Seconds for a unit of work, of commands that ran before on this machine; beside the programs that jax keeps."""

    def __init__(self):
        import jax

        folder = jax.config.jax_compilation_cache_dir
        use = folder and jax.config.jax_enable_compilation_cache and "://" not in folder
        self._path = Path(folder) / "paces.json" if use else None

    def get(self, key: str) -> float | None:
        return self._read().get(key)

    def put(self, key: str, pace: float) -> None:
        if self._path is None:
            return
        paces = self._read()
        paces.pop(key, None)
        kept = dict(list(paces.items())[1 - _KEPT :]) | {key: pace}
        with contextlib.suppress(OSError):  # a guess at a time is no reason to fail
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, lambda part: part.write_text(json.dumps(kept, indent=1)), replace=True)

    def _read(self) -> dict[str, float]:
        try:
            paces = json.loads(self._path.read_text()) if self._path is not None else {}
            return {key: float(pace) for key, pace in paces.items() if float(pace) > 0}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def memory(devices: bool = True) -> str:
    """Peak memory so far, in words: of this process, and of its devices if they report it."""
    import jax

    from vdit.train.stages import peak_memory

    # A plan compiles in a process of its own. (macOS counts bytes, Linux KiB.)
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    text = f"{max(peak_memory(), others) / 2**30:.1f} GiB of memory"
    stats = [device.memory_stats() or {} for device in jax.local_devices()] if devices else []
    peak = max((each.get("peak_bytes_in_use", 0) for each in stats), default=0)
    return f"{text} and {peak / 2**30:.1f} GiB of a device" if peak else text


def shown_model(folder: str | Path, experiment) -> str:
    """A model in words, for the head of a command."""
    import jax

    dit, devices = experiment.backbone, jax.devices()
    where = f"{len(devices)} x {devices[0].device_kind}" if len(devices) > 1 else devices[0].device_kind
    return f'{folder}: "{experiment.name}", a DiT {dit.width} wide and {dit.depth} deep, on {where}'


def shown_method(method, asked: dict) -> str:
    """How videos are sampled, in words. method: a vdit.sampling.SamplingConfig. asked: options of the command."""
    from vdit.registry import name_of

    parts = [name_of("sampler", method.sampler), counted(method.grid.steps, "step")]
    parts.append(f"guidance {method.guidance.scale:g}" if method.guidance.scale != 1 else "no guidance")
    names = ("context_guidance", "known_level", "reuse", "joins", "negative")
    parts += [f"{name.replace('_', '-')} {asked[name]!r}" for name in names if asked.get(name)]
    return ", ".join(parts)


def counted(number: int, name: str) -> str:
    """"1 frame", "2 frames"."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def following(options: argparse.Namespace, command: str, path: Path, prompt: str, more: str) -> str:
    """The next command, on a file that this one writes."""
    model = ["--model", options.model] if options.model else options.words[:1]
    return f"vdit {command} {shlex.join([*model, str(path), prompt])} {more}"


def numbers(values: list[int]) -> str:
    """"0", "0 to 3", "1, 5, 9"."""
    if len(values) > 2 and values == list(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
