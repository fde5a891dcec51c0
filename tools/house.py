"""How many rooms the house has: files, lines, long argument lists, and how deep our own calls go.

    python tools/house.py                        # of this checkout
    python tools/house.py --tree ../before --json

Counted are the files of `vdit/`. Two chains of calls are counted in live stack traces, frames whose file is in `vdit/`:
from `vdit sample` to the backbone's `__call__` (in tracing, where Python runs it), and from `vdit train` to a decoded
frame of a video file, with reading threads off. Each command runs in a process of its own with the tree's code, on the
small run in tests/fixtures and on a video made here.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "fixtures" / "run_v1" / "runs.tar.xz"
SHORT, MANY = 60, 8  # lines under which a file is short; arguments above which a function has too many


def measure(tree: Path) -> dict[str, object]:
    """All numbers of a tree, by name."""
    files = sorted((tree / "vdit").rglob("*.py"))
    lines = {file: len(file.read_text().splitlines()) for file in files}
    rooms = [count for file, count in lines.items() if file.name != "__init__.py"]
    many = [f"{file.relative_to(tree)}:{name}({count})" for file in files for name, count in long_signatures(file)]
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "median file": statistics.median(lines.values()),
        f"files under {SHORT} lines, without __init__": sum(count < SHORT for count in rooms),
        f"functions of more than {MANY} arguments": many,
        "frames from vdit sample to the backbone": frames(tree, "sample"),
        "frames from vdit train to a decoded frame": frames(tree, "train"),
    }


def long_signatures(file: Path) -> list[tuple[str, int]]:
    """(name, arguments) of functions with more than MANY, self and cls not counted."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in named)
            if count > MANY:
                found.append((node.name, count))
    return found


def frames(tree: Path, command: str) -> list[str]:
    """Our own frames in the stack when `command` comes to its end point, outermost first: "vdit/file.py:function"."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "JAX_PLATFORMS": "cpu"}
        arguments = [sys.executable, str(Path(__file__).resolve()), "--child", command, "--tree", str(tree.resolve())]
        done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("frames ")]
    if not found:
        raise SystemExit(f"{command} of {tree} did not come to its end point:\n{done.stdout}{done.stderr}")
    return json.loads(found[-1].removeprefix("frames "))


def child(tree: Path, command: str) -> None:
    """Runs one command in the current folder, with a hook at its end point, and prints the deepest stack there."""
    stacks: list[list[str]] = []

    def seen() -> None:
        stacks.append(own_frames(tree))

    hook = {"sample": hook_backbone, "train": hook_decoding}[command]
    prepare = {"sample": prepare_sample, "train": prepare_train}[command]
    arguments = prepare()
    hook(seen)
    from vdit.cli.main import main

    try:
        main(arguments)
    finally:
        print("frames", json.dumps(max(stacks, key=len)), flush=True)
        os._exit(0)  # threads that read ahead would wait for a reader


def own_frames(tree: Path) -> list[str]:
    frame, found = sys._getframe(1), []
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(tree / "vdit"):
            found.append(f"{file.relative_to(tree)}:{frame.f_code.co_qualname}")
        frame = frame.f_back
    return found[::-1]


def prepare_sample() -> list[str]:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(".", filter="data")
    return ["sample", "clips", "a red circle", "--out", "out.mp4"]


def hook_backbone(seen: Callable[[], None]) -> None:
    import vdit

    # Not by trying: an editable install of another checkout would find what is absent in this tree.
    folder = "vdit.models.dit.model" if (Path(vdit.__file__).parent / "models").is_dir() else "vdit.dit.model"
    model = importlib.import_module(folder)
    call = model.DiT.__call__

    def hooked(self, *arguments, **options):
        seen()
        return call(self, *arguments, **options)

    model.DiT.__call__ = hooked


def prepare_train() -> list[str]:
    import numpy as np

    import vdit

    Path("videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)
    vdit.write_video("videos/a.mp4", frames, fps=8)
    Path("videos/a.txt").write_text("noise")
    options = (
        "data.threads=0", "data.read_ahead=0", "data.prefetch=0", "vae_clips.frames=5", "vae_clips.size=(32,32)",
        "data.frames=(5,)", "data.pixel_budgets=1024", "vae_train.steps=1", "vae_train.batch_size=1",
        "vae.base_channels=8",
        "vae.channel_mults=(1,)", "vae.spatial_down=()", "vae.temporal_down=()", "vae.patch=8", "vae.patch_frames=4",
        "vae.blocks_per_level=1", "vae.middle=none", "vae.decoder_extra_blocks=0",
    )  # fmt: skip
    overrides = [f"--cfg.{option}" for option in options]
    return ["train", "--data", "videos", "--workdir", "run", "--stage", "vae", *overrides]


def hook_decoding(seen: Callable[[], None]) -> None:
    """Wherever PyAV is asked for a packet or a frame."""
    import av

    opened = av.open

    class Container:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def __enter__(self):
            self._container.__enter__()
            return self

        def __exit__(self, *error):
            return self._container.__exit__(*error)

        def decode(self, *arguments, **options) -> Iterator:
            for frame in self._container.decode(*arguments, **options):
                seen()
                yield frame

        def demux(self, *arguments, **options) -> Iterator:
            for packet in self._container.demux(*arguments, **options):
                seen()
                yield packet

    av.open = lambda *arguments, **options: Container(opened(*arguments, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout; default: this one")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.tree, options.child)
        return
    measures = measure(options.tree)
    if options.json:
        print(json.dumps(measures, indent=1))
        return
    for name, value in measures.items():
        print(f"{name:45} {len(value) if isinstance(value, list) else value}")
    for name, value in measures.items():
        if isinstance(value, list):
            print(f"\n{name}:", *value, sep="\n  ")


if __name__ == "__main__":
    main()
