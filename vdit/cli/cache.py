"""Programs compiled once are kept for the next command."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

from vdit.errors import reason


def keep_compiled() -> None:
    """Turns jax's persistent compilation cache on, in the user's folder if one is set; before anything is compiled.

    jax keeps programs that took a second or more. Commands start many that take less: kept too, they cost a later
    command a few milliseconds each. Where that folder cannot be written (no home, a full disk), a line says so, and the
    command continues without a cache.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    folder = jax.config.jax_compilation_cache_dir
    try:
        folder = cache_folder(jax.__version__) if folder is None else folder
        if "://" not in str(folder):  # a bucket is jax's to write to
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(bytes(4096))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        jax.config.update("jax_enable_compilation_cache", False)
        print(
            f"vdit: warning: compiled programs are not cached for the next command ({reason(error)}): set "
            "JAX_COMPILATION_CACHE_DIR to a folder that can be written",
            file=sys.stderr,
            flush=True,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A disk that fills up later costs the next command time, and is no reason for a warning at each program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


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
