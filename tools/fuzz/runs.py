"""Damages to the files of a run: python -m tools.fuzz.runs

Each case is a copy of a run in which one file is harmed: a bit flipped, cut, grown, emptied, removed, swapped with that
of another run, or with something that is no file. Either loading names it in one line, or all that a sample depends on
(weights, statistics, tokens of a prompt, experiment) is as it was; a tenth of the cases sample and compare the video.

The run is a small public model, imported; VDIT_FUZZ_RUN names another run's folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import vdit
from tools.fuzz import public_models
from tools.fuzz.common import Limits, Wrong, main
from vdit.errors import VditError
from vdit.pretrained.model import import_model

RUN, SHARED = "VDIT_FUZZ_RUN", "VDIT_FUZZ_RUNS"  # a run of the user's; where the runs are, for all worker processes
PROMPT = "a red dog"
UNREAD = ("latents", "logs", "public")  # no sample depends on them; public/ is for an export
KINDS = ("bit", "bit", "bit", "byte", "cut", "grown", "empty", "removed", "other", "others", "pipe", "folder", "step")


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """See tools.fuzz.common."""
    random = np.random.default_rng(seed)
    run, other = _runs()
    broken = folder / "run"
    shutil.copytree(run, broken, ignore=lambda at, names: UNREAD if Path(at) == run else ())
    kind, named = _harm(random, broken, other)
    whole = _whole()

    def call() -> str:
        try:
            generator = vdit.load(broken)
        except VditError as error:
            if not any(name in str(error) for name in named):
                raise Wrong(f"the message names none of {named}: {error}") from None
            raise
        changed = [name for name, digest in _state(generator).items() if digest != whole[name]]
        if changed:
            raise Wrong(f"loaded silently with other {', '.join(changed)}")
        if seed % 10 == 0 and not np.array_equal(_sample(generator), _video()):
            raise Wrong("another video")
        return "the same"

    return kind, call


def _harm(random, run: Path, other: Path) -> tuple[str, list[str]]:
    """Harms one file; returns what was done, and words of which a message must hold one."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    small = [path for path in files if path.parent == run]
    # Half of the cases harm one of the few files beside the checkpoints.
    pool = small if random.random() < 0.5 else files
    file = pool[int(random.integers(len(pool)))]
    name = file.relative_to(run)
    kind, named = str(random.choice(KINDS)), []
    data = bytearray(file.read_bytes())
    at = int(random.integers(max(len(data), 1)))
    if kind in ("bit", "byte") and data:
        data[at] = data[at] ^ (1 << int(random.integers(8))) if kind == "bit" else int(random.integers(256))
        file.write_bytes(data)
    elif kind == "cut":
        file.write_bytes(data[:at])
    elif kind == "grown":
        file.write_bytes(data + b"\0" * 10)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "other":  # a file of the same run
        second = pool[int(random.integers(len(pool)))]
        file.write_bytes(second.read_bytes())
    elif kind == "others" and (other / name).is_file():  # the same file of another run
        shutil.copyfile(other / name, file)
    elif kind == "step":
        network = str(random.choice(["vae", "dit"]))
        name = Path(network)  # what it does not go with may be named as well
        named = [network, "experiment.json", "statistics.json"]
        shutil.rmtree(run / network)
        if random.random() < 0.8:
            shutil.copytree(other / network, run / network)
    else:
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
    return f"{kind if kind != 'step' else 'a network of another run'}: {name}", named or [name.parts[0], file.name]


# The whole runs, and what they are.


@functools.cache
def _runs() -> tuple[Path, Path]:
    """The run that is harmed, and another one of the same form; made once, by the first process that needs them."""
    root = Path(os.environ.get(SHARED) or tempfile.mkdtemp(prefix="fuzz-runs"))
    run, other = Path(os.environ.get(RUN) or root / "run"), root / "other"
    for seed, target in enumerate((run, other)):
        if not target.exists():
            source = root / str(seed) / "public"
            public_models.write_wan(source, seed=20 * seed)
            import_model(source, target)
    return run, other


@functools.cache
def _whole() -> dict[str, str]:
    return _state(_generator())


@functools.cache
def _generator() -> vdit.Generator:
    return vdit.load(_runs()[0])


@functools.cache
def _video() -> np.ndarray:
    return _sample(_generator())


def _sample(generator: vdit.Generator) -> np.ndarray:
    size = generator.experiment.vae.spatial_stride * generator.experiment.backbone.patch[1] * 4
    return generator(PROMPT, frames=1, size=(size, size), steps=2, seed=3)


def _state(generator: vdit.Generator) -> dict[str, str]:
    """All that a sample depends on, each as a digest."""
    statistics = generator.vae.statistics
    return {
        "weights": _digest(jax.tree.leaves(generator.params)),
        "autoencoder": _digest(jax.tree.leaves(generator.vae.params)),
        "statistics": _digest([statistics["mean"], statistics["std"]]),
        "tokens": str(generator.tokenizer.encode(PROMPT)),
        "experiment": str(dataclasses.asdict(generator.experiment)),
    }


def _digest(arrays: list) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fuzz-runs") as shared:
        os.environ[SHARED] = shared
        _runs()
        sys.exit(main(make, cases=300, description=__doc__, limits=Limits(seconds=30)))
