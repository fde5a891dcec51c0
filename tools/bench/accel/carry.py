"""What travels to a machine without a network: the tree itself, wheels that it lacks, and a run to train on.

.carry/wheels/   of Python 3.12 on Linux x86-64, at the versions of constraints.txt
.carry/run/      a run of vdit with a trained VAE, latents, tokenizer: its DiT is what is left to train
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

LIMIT = 64 * 10**6
# What an image with JAX, torch, transformers and the usual packages still lacks; without av, which is 35 MB: there
# accel.entry.stand_in takes its place.
WHEELS = (
    "grain",
    "array-record",
    "ftfy",
    "wcwidth",
    "tensorboardx",
    "orbax-checkpoint",
    "flax",
    "optax",
    "diffusers",
    "importlib-metadata",
)
PYTHON = (3, 12)
PLATFORMS = tuple(f"manylinux_2_{n}_x86_64" for n in (17, 24, 26, 27, 28, 31, 34)) + ("manylinux2014_x86_64",)
LATENTS = 2600  # clips that are encoded


def check_size(root: Path, carried: Path) -> int:
    """Prints the size of what travels, and of its largest parts; 1 if it is above the limit, else 0."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=root, capture_output=True, check=True)
    files = [root / name for name in done.stdout.decode().split("\0") if name]
    parts = {"tree": [file for file in files if file.is_file()]}
    for folder in sorted(carried.iterdir()) if carried.is_dir() else ():
        inside = folder.rglob("*") if folder.is_dir() else [folder]
        parts[f"{carried.name}/{folder.name}"] = [file for file in inside if file.is_file()]
    sizes = {name: sum(file.stat().st_size for file in files) for name, files in parts.items()}
    for name, size in sizes.items():
        print(f"{name:24} {size / 1e6:8.2f} MB")
    total = sum(sizes.values())
    verdict = "fits" if total < LIMIT else f"too much: {(total - LIMIT) / 1e6:.2f} MB above"
    print(f"{'in all':24} {total / 1e6:8.2f} MB, {verdict} ({LIMIT / 1e6:.0f} MB)")
    return int(total >= LIMIT)


def prepare(root: Path, carried: Path, *, dry: bool = False) -> int:
    """Downloads the wheels and trains the run's VAE; what is there already stays."""
    carried.mkdir(parents=True, exist_ok=True)
    if not dry:
        wheels(root, carried / "wheels")
    sys.path.insert(0, str(root))
    from accel.model import prepare_run

    prepare_run(carried / "run", dry=dry, clips=24 if dry else LATENTS)
    return check_size(root, carried)


def wheels(root: Path, folder: Path) -> None:
    """One wheel of each package, by pip."""
    pinned = pins((root / "constraints.txt").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in WHEELS:
        stem = name.replace("-", "[-_]")
        if any(re.match(rf"{stem}-", file.name, re.I) for file in folder.glob("*.whl")):
            continue
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
            "--python-version",
            ".".join(map(str, PYTHON)),
            "--implementation",
            "cp",
            *(f"--platform={platform}" for platform in PLATFORMS),
            f"{name}=={pinned[name]}",
        ]
        subprocess.run(command, check=True)


def pins(text: str) -> dict[str, str]:
    """Package -> version in constraints.txt, for the Python of the machine."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==([^ ;]+)\s*(?:;\s*python_full_version (<|>=) '([\d.]+)')?", line)
        if match is None:
            continue
        name, version, sign, bound = match.groups()
        other = tuple(map(int, bound.split("."))) if bound else None
        if other is None or (other > PYTHON) == (sign == "<"):
            found[name.lower()] = version
    return found


def install(carried: Path, site: Path) -> tuple[Path | None, str | None]:
    """(the folder where the carried wheels are unpacked, None without wheels; what went wrong, or None).

    Only for the Python that they are for; each time anew, as they take seconds and may have changed.
    """
    files = sorted((carried / "wheels").glob("*.whl"))
    if not files or sys.version_info[:2] != PYTHON:
        return None, None
    shutil.rmtree(site, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(site),
        *map(str, files),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
    except subprocess.TimeoutExpired:
        return site, "pip took more than 60 s"
    return site, done.stderr[-500:] if done.returncode else None
