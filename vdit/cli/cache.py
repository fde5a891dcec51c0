"""Programs compiled once are kept for the next command."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def keep_compiled() -> None:
    """Turns jax's persistent compilation cache on, unless the user has set one; before anything is compiled."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(jax.__version__)))


def cache_folder(version: str) -> Path:
    """A folder for this jax and this kind of CPU: code compiled for one CPU may not run on another."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vdit" / f"jax-{version}-{_cpu()}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    except OSError:
        kind = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:8]
