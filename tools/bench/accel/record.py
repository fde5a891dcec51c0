"""What was measured, kept in one JSON file that is whole after every measurement; and how measurements are run.

{"run": {...}, "stages": {"kernels": {"status", "seconds", "probes": {"matmul-bf16": {"status": "ok", ...figures}}}}}

A measurement's status: "ok"; "failed", with its traceback; "cut off", where its process died or the time was up, with
the end of what it wrote; "running"; "no time", where it was not begun. Nothing but the standard library: whatever
is wrong with the machine, this works.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import platform
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

AGAIN = 75  # exit code: start this process again for what is left
TAIL = 6000  # characters of output that are kept of a process that died
RUN = "VDIT_ACCELERATOR_RUN"  # names a run to its processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """One measurement.

    run: gives its figures: name -> number, text, or a table of these. "seconds" is held against the roofline,
        "error" against `bound`; one above the bound is wrong, however fast.
    flops, bytes: the least that the work takes. kind: which rate it works at: "bf16", "fp8" or "f32".
    share: of the roofline that good code is known to reach; expected seconds are the roofline's by this.
    needs: seconds below which it is not begun. always: it is made again by every run.
    after: the measurement of the stage whose result this one uses.
    """

    name: str
    what: str
    run: Callable[[], dict[str, Any]]
    flops: float = 0.0
    bytes: float = 0.0
    kind: str = "bf16"
    share: float = 0.6
    bound: float | None = None
    needs: float = 0.5
    always: bool = False
    after: str = ""


class Record:
    """The JSON file; every change is written at once, whole."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"run": {}, "stages": {}}
        return json.loads(self.path.read_text())

    def begin(self, **about: Any) -> None:
        """A new run goes on with the file; a dry one does not go on with a real one, nor the other way round."""
        found = self.read()
        if found["run"] and found["run"].get("dry") != about.get("dry"):
            sys.exit(
                f"accelerator: {self.path} is of a {'dry' if found['run']['dry'] else 'real'} run: give another --out"
            )
        os.environ[RUN] = uuid.uuid4().hex[:8]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        runs = found["run"].get("runs", 0) + 1
        found["run"] |= {
            **about,
            "runs": runs,
            "began": time.strftime("%Y-%m-%d %H:%M"),
            "python": sys.version.split()[0],
            "system": platform.platform(),
        }
        self._write(found)

    def stage(self, name: str, **values: Any) -> None:
        found = self.read()
        found["stages"].setdefault(name, {"probes": {}}).update(values)
        self._write(found)

    def probe(self, stage: str, name: str, values: dict[str, Any]) -> None:
        found = self.read()
        probes = found["stages"].setdefault(stage, {"probes": {}})["probes"]
        probes[name] = values | {"run": os.environ.get(RUN, "")}
        self._write(found)

    def running(self, stage: str) -> list[str]:
        """The measurements that have begun and not ended."""
        probes = self.read()["stages"].get(stage, {}).get("probes", {})
        return [name for name, values in probes.items() if values["status"] == "running"]

    def cut(self, stage: str, why: str, tail: str) -> None:
        for name in self.running(stage):
            values = self.read()["stages"][stage]["probes"][name]
            self.probe(stage, name, values | {"status": "cut off", "why": why, "traceback": tail[-TAIL:]})

    def counts(self, stage: str) -> dict[str, int]:
        probes = self.read()["stages"].get(stage, {}).get("probes", {})
        return dict(Counter(values["status"] for values in probes.values()))

    def figures(self, stage: str, name: str) -> dict[str, Any]:
        """What a measurement gave; {} where it did not end well."""
        values = self.read()["stages"].get(stage, {}).get("probes", {}).get(name, {})
        return values if values.get("status") == "ok" else {}

    def _write(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(values, indent=1, default=str) + "\n")
        os.replace(part, self.path)


def work(
    book: Record,
    stage: str,
    probes: Iterable[Probe],
    *,
    until: float,
    healthy: Callable[[], bool],
    reached: Callable[[Record, Probe, dict], dict] | None = None,
) -> int:
    """Runs what is missing of a stage; returns 0, or AGAIN where the process is of no more use.

    until: the time after which no measurement begins. healthy: whether the device still answers; asked after a failure.
    reached: adds to figures what they are held against.
    """
    probes = list(probes)
    known = book.read()["stages"].get(stage, {}).get("probes", {})
    this = os.environ.get(RUN, "")
    states = {p.name: known.get(p.name, {}).get("status", "no time") for p in probes}
    old = {name for name, values in known.items() if values.get("run") != this}
    missing = [p for p in probes if states[p.name] == "no time" or (p.always and p.name in old)]
    again = [p for p in probes if states[p.name] not in ("no time", "ok") and p.name in old and p not in missing]
    used = {p.after for p in missing}
    before = [p for p in again if p.name in used]
    for probe in before + missing + [p for p in again if p not in before]:
        about = {
            "what": probe.what,
            "flops": probe.flops,
            "bytes": probe.bytes,
            "kind": probe.kind,
            "share": probe.share,
            "bound": probe.bound,
        }
        if until - time.time() < probe.needs:
            book.probe(stage, probe.name, about | {"status": "no time"})
            continue
        book.probe(stage, probe.name, about | {"status": "running"})
        began = time.time()
        try:
            figures = probe.run()
            if reached is not None:
                figures = reached(book, probe, figures)
            book.probe(stage, probe.name, about | figures | {"status": "ok", "took": round(time.time() - began, 1)})
        except (Exception, SystemExit) as error:
            text = traceback.format_exc()
            memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
            why = "out of memory" if memory else f"{type(error).__name__}: {error}"[:300]
            book.probe(stage, probe.name, about | {"status": "failed", "why": why, "traceback": text})
            print(text, flush=True)
            del error
            gc.collect()
            if not healthy():
                return AGAIN
        gc.collect()
    return 0


def table(found: dict[str, Any]) -> str:
    """What was measured beside what was expected, a line each, wrong and slow ones marked."""
    lines = ["", f"{'measurement':34} {'measured':>12} {'expected':>12} {'roofline':>12}  verdict"]
    for stage, values in found["stages"].items():
        lines.append(f"{stage}: {values.get('status', '?')}, {values.get('seconds', 0)} s")
        for name, probe in values["probes"].items():
            measured, expected, floor = (_seconds(probe.get(key)) for key in ("seconds", "expected", "roofline"))
            lines.append(f"  {name:32} {measured:>12} {expected:>12} {floor:>12}  {verdict(probe)}")
    return "\n".join(lines)


def verdict(probe: dict[str, Any]) -> str:
    """In a word or two, what is to be thought of a measurement."""
    if probe["status"] != "ok":
        return f"{probe['status'].upper()}: {probe['why']}"[:120] if probe.get("why") else probe["status"]
    if probe.get("bound") is not None and not probe.get("error", float("inf")) <= probe["bound"]:
        return f"WRONG: error {probe.get('error')}, at most {probe['bound']} expected"
    if probe.get("failed"):
        return f"{probe['failed']} FAILED"
    if probe.get("expected") and probe.get("seconds"):
        ratio = probe["seconds"] / probe["expected"]
        word = (
            "SLOW"
            if ratio > 2
            else "slower"
            if ratio > 1.2
            else "faster than possible?"
            if (probe["seconds"] < 0.9 * probe["roofline"])
            else "as expected"
        )
        return f"{word} ({ratio:.2f}x the expected time)"
    return probe.get("note", "ok")


def _seconds(value: float | None) -> str:
    if not value:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"
