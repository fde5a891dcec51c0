"""Prints the lowest versions that pyproject.toml declares, as constraints for pip: one NAME==VERSION a line.

    python tools/minima.py > minima.txt && pip install -c minima.txt -e .
    python tools/minima.py --extra data --extra test

A minimum that nobody installs is a guess: .ci/run installs these and runs a smoke test with them.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def minima(extras: list[str]) -> list[str]:
    """NAME==VERSION of each dependency; one without a minimum, or named twice, is an error."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    unknown = set(extras) - set(project["optional-dependencies"])
    if unknown:
        raise SystemExit(f"extra {', '.join(unknown)}: choose from {', '.join(project['optional-dependencies'])}")
    found: dict[str, str] = {}
    for group in [project["dependencies"], *(project["optional-dependencies"][name] for name in extras)]:
        for requirement in group:
            name, low = re.match(r"([\w.-]+)(?:\[[\w,]+\])?(?:[>=]=([\w.]+))?", requirement).groups()
            if low is None and "[" in requirement:  # jax[tpu]: as jax itself
                continue
            if low is None or found.get(name, low) != low:
                raise SystemExit(f"{requirement}: a dependency has one minimum, NAME>=VERSION")
            found[name] = low
        if len(found) < len(project["dependencies"]):
            raise SystemExit("a dependency is named twice in pyproject.toml")
    return [f"{name}=={low}" for name, low in found.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="also of this extra; may be repeated")
    print("\n".join(minima(parser.parse_args().extra)))
