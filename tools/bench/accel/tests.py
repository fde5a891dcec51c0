"""Stage 4: the tests marked gpu, as pytest runs them; the lines of those that failed are kept."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from accel.record import Probe

ROOT = Path(__file__).resolve().parents[3]
OUTCOME = re.compile(r"^(\S+::\S+.*?) (PASSED|FAILED|ERROR|SKIPPED)", re.M)


def probes(dry: bool, out: Path, until: float) -> list[Probe]:
    del dry, out
    return [
        Probe(
            name=file.stem,
            what=f"{file.relative_to(ROOT)}, tests marked gpu",
            needs=5,
            run=lambda file=file: run(file, until),
        )
        for file in files()
    ]


def files() -> list[Path]:
    """Those that mark a test gpu, so that nothing else need be imported."""
    return [
        file
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"^\s*(@|pytestmark\s*=.*)pytest\.mark\.gpu", file.read_text(), re.M)
    ]


def run(file: Path, until: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", str(file), "-m", "gpu", "-v", "--tb=long", "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+") as log:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=max(until - time.time(), 1)
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        log.seek(0)
        text = log.read()
    found = dict(OUTCOME.findall(text))
    count = {word: sum(value == word for value in found.values()) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    if code is None or code not in (0, 1, 5) or not found:
        raise RuntimeError(f"pytest {'was cut off' if code is None else f'ended with {code}'}: {count}\n{text[-8000:]}")
    failed = count["FAILED"] + count["ERROR"]
    return {
        "passed": count["PASSED"],
        "failed": failed,
        "skipped": count["SKIPPED"],
        "tests": found,
        "note": f"{count['PASSED']} passed, {count['SKIPPED']} skipped",
        **({"traceback": text[-20_000:]} if failed else {}),
    }
