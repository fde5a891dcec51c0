"""What several test files share: one run, trained once by the smallest quickstart there is."""

from __future__ import annotations

import fcntl
import importlib.abc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The smallest VAE and DiT, on the smallest clips; what the command line and the notebook tests train.
TINY = (
    "vae.latent_channels=8", "vae.base_channels=8", "vae.channel_mults=(1,)", "vae.spatial_down=()",
    "vae.temporal_down=()", "vae.patch=8", "vae.patch_frames=4", "vae.blocks_per_level=1", "vae.middle=none",
    "vae.decoder_extra_blocks=0", "vae.block_kernel=(1,1,1)", "vae.edge_kernel=(1,1,1)",
    "vae_clips.frames=5", "vae_clips.size=(32,32)", "vae_train.steps=2", "vae_train.batch_size=2",
    "vae_train.log_every=1", "vae_train.ema_decay=0.9", "vae_train.optimizer.warmup_steps=0",
    "vae_train.optimizer.learning_rate=0.001", "vae_train.optimizer.final_scale=0",
    "data.source.count=12", "latents.samples=12", "data.pixel_budgets=1024", "data.aspects=1.0", "data.frames=(1,5)",
    "data.row_tokens=16", "data.max_frames_per_row=8", "data.max_clips_per_row=4", "data.max_text_per_row=96",
    "data.buffer_rows=4",
    "data.buffer_clips=8", "text.width=16", "text.heads=1", "text.depth=1", "text.max_length=48", "text.vocab_size=300",
    "backbone.in_channels=8", "backbone.patch=(1,2,2)", "backbone.width=16", "backbone.depth=1", "backbone.heads=1",
    "dit_train.steps=2", "dit_train.batch_size=1", "dit_train.optimizer=adamw", "dit_train.optimizer.schedule=cosine",
    "dit_train.log_every=1", "dit_train.sample_every=0", "dit_train.ema_decay=0.9",
    "dit_train.optimizer.warmup_steps=0", "dit_train.optimizer.learning_rate=0.001",
    "dit_train.optimizer.final_scale=0", "dit_train.optimizer.b2=0.99",
    "sample.frames=5", "sample.size=(32,32)", "sample.steps=1", "sample.sampler=euler",
)  # fmt: skip


class _SentencePieceFormat(importlib.abc.MetaPathFinder):
    """Gives transformers its own description of sentencepiece's files, in the place of sentencepiece's.

    That of sentencepiece 0.2.3 refuses protobuf below 7, which Apache Beam needs. (Older sentencepieces end the process
    where a corpus is tiny.) vdit has a description of its own, and needs neither.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "sentencepiece.sentencepiece_model_pb2" or importlib.util.find_spec("transformers") is None:
            return None
        (folder,) = importlib.util.find_spec("transformers").submodule_search_locations
        return importlib.util.spec_from_file_location(name, Path(folder, "utils", "sentencepiece_model_pb2_new.py"))


sys.meta_path.insert(0, _SentencePieceFormat())


def pytest_configure(config) -> None:
    """Lets XLA's CPU backend compile sooner, and make slower code: most of the suite's time is compilation.

    Only the code of single kernels changes, not what the compiler makes of a program's graph. Tests of minutes each
    (`-m slow`, `-m gpu`) run more than they compile, and get the usual code.
    """
    chosen = config.getoption("markexpr")
    if not any(mark in chosen.replace(f"not {mark}", "") for mark in ("slow", "gpu")):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def run_vdit(
    *arguments: str, cache: Path, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """`vdit ...` in its own process; `cache` is where programs that others compiled are found."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "vdit.cli.main", *map(str, arguments)]
    options = {"env": environment, "cwd": cwd, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run(command, check=False, **options)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A folder that all workers of this test run have."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compile_cache(shared_folder) -> Path:
    """A folder in which the processes that tests start, and the workers, share what they compile."""
    return shared_folder / "compiled"


@pytest.fixture(scope="session")
def tiny_quickstart(shared_folder, compile_cache) -> tuple[Path, str]:
    """The folder and the output of `vdit quickstart`, shrunk to a few steps. The first worker makes it for all."""
    folder, output = shared_folder / "quickstart", shared_folder / "quickstart.txt"
    with (shared_folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            overrides = [f"--cfg.{override}" for override in TINY]
            done = run_vdit("quickstart", folder, "--prompts", 4, "--batch", 2, *overrides, cache=compile_cache)
            assert done.returncode == 0, done.stdout + done.stderr
            output.write_text(done.stdout)
    return folder, output.read_text()


@pytest.fixture(scope="session")
def tiny_run(tiny_quickstart) -> Path:
    """The folder of a trained run: 32x32 pixels, 1 or 5 frames. Read it; do not write to it."""
    return tiny_quickstart[0]


def pytest_terminal_summary(terminalreporter) -> None:
    """Tables that tests have filled in, from every worker: parity with the reference, layouts of devices."""
    _print_table(terminalreporter, "parity", "parity with the reference, float32",
                 ("module", "shape", "max abs", "relative", "bound"))  # fmt: skip
    _print_table(terminalreporter, "layout", "layouts of 8 devices against one, float32: relative errors",
                 ("layout", "gradient", "moment", "params", "average", "metrics", "KiB sent by a device"))  # fmt: skip


def _print_table(terminalreporter, name: str, title: str, head: tuple[str, ...]) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    rows = [value.split("|") for report in reports for key, value in report.user_properties if key == name]
    if not rows:
        return
    rows = [head, *sorted(rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    terminalreporter.section(title)
    for row in rows:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
