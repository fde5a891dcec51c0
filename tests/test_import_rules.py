"""Who may import whom: read from the source, so that imports inside functions count too."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCANNED = ("vdit", "experiments", "data_pipelines")

BASE = {"types", "finite", "config", "errors", "lazy", "outputs", "paths", "buckets", "hub",
        "pixels", "internals", "registry", "reprs"}
BASE |= {"seeds"}
LAYERS = BASE | {"dist", "nn", "diffusion"}
SAMPLING = LAYERS | {"samplers", "models", "data", "language"}
TRAINING = SAMPLING | {"sampling", "experiment", "checkpoint", "video"}
# What each part of vdit may import of vdit.
MAY_IMPORT = {
    "errors": set(),
    "lazy": set(),
    "reprs": set(),
    "pixels": {"errors", "reprs", "types"},
    "types": {"errors", "reprs"},
    "config": {"errors", "paths", "registry"},
    "paths": {"errors", "buckets", "hub"},
    "buckets": {"errors"},
    "hub": {"errors"},
    "internals": {"errors"},
    "outputs": {"errors", "paths", "buckets"},
    "registry": {"errors"},
    "seeds": {"errors", "types"},
    "finite": {"types"},
    "video": BASE,
    "worlds": BASE,
    "eval": BASE | {"video", "worlds"},
    "checkpoint": BASE,
    "dist": BASE,
    "diffusion": BASE,
    "nn": BASE | {"dist"},
    "samplers": BASE | {"diffusion"},
    "models": LAYERS,
    "language": BASE | {"video", "models"},
    "data": BASE | {"video", "worlds", "models", "language"},
    "emulators": BASE | {"data"},
    "sampling": SAMPLING | {"experiment"},
    "experiment": SAMPLING,
    "train": TRAINING | {"eval"},
    "pretrained": TRAINING | {"train"},
    "generate": TRAINING | {"train", "pretrained", "eval", "worlds", "emulators"},
}
MAY_IMPORT["serve"] = MAY_IMPORT["generate"] | {"generate", "worlds"}
MAY_IMPORT["plan"] = MAY_IMPORT["generate"] - {"pretrained", "checkpoint"} | {"generate", "eval"}
MAY_IMPORT["quickstart"] = set(MAY_IMPORT)
MAY_IMPORT["cli"] = set(MAY_IMPORT)

# The only places (parts of vdit, or files) that may import each outside package.
ONLY_IN = {
    "flax": {"nn", "models", "vdit/train/state.py"},
    "optax": {"train", "vdit/experiment/optimizer.py"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "orbax": {"checkpoint", "internals"},
    "tensorstore": {"checkpoint"},
    "av": {"video"},
    "etils": {"checkpoint", "paths"},
    "fsspec": {"buckets"},
    "gcsfs": {"buckets"},
    "s3fs": {"buckets"},
    "huggingface_hub": {"hub"},
    "cv2": {"eval"},
    "gymnasium": {"emulators"},
    "ale_py": {"emulators"},
    "vizdoom": {"vdit/emulators/doom.py"},
    "jinja2": {"eval", "vdit/models/lm/render.py"},
    "gguf": {"pretrained"},
    "markdown_it": {"eval"},
    "matplotlib": {"eval"},
    "tokenizers": {"models"},
    "sentencepiece": {"models"},
    "fastapi": {"serve", "vdit/cli/serve.py"},
    "starlette": {"serve"},
    "pydantic": {"serve"},
    "python_multipart": {"vdit/cli/serve.py"},
    "sse_starlette": {"serve", "vdit/cli/serve.py"},
    "uvicorn": {"serve", "vdit/cli/serve.py"},
    "torch": set(),
    "tensorflow": set(),
    "experiments": set(),
    "data_pipelines": {"vdit/cli/curate.py"},
    "tests": set(),
    "tools": set(),
}
# Scripts outside vdit see the same rules for outside packages, but for what is theirs.
NOT_IN_SCRIPTS = {
    "experiments": {"flax", "optax", "grain", "tensorflow_datasets", "torch", "tensorflow", "tests", "tools"},
    "data_pipelines": {"flax", "optax", "torch", "tensorflow", "tests", "tools", "experiments"},
}


def imports(source: str, path: str) -> list[tuple[int, str]]:
    """(line, dotted name) of each import; `from a import b` gives a.b, as b may be a module."""
    found = []
    here = list(Path(path).with_suffix("").parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def part(dotted: str) -> str | None:
    """The part of vdit that a dotted name belongs to; None for vdit itself and for other packages."""
    names = dotted.split(".")
    if names[0] != "vdit" or len(names) == 1:
        return None
    return names[1] if names[1] in MAY_IMPORT or is_module(names[1]) else None


def is_module(name: str) -> bool:
    return (ROOT / "vdit" / name).is_dir() or (ROOT / "vdit" / f"{name}.py").exists()


def violations(files: dict[str, str]) -> list[str]:
    """A line for each import against the rules. files: path from the root -> source."""
    wrong = []
    for path, source in sorted(files.items()):
        folder = Path(path).parts[0]
        mine = part(".".join(Path(path).with_suffix("").parts)) if folder == "vdit" else None
        for line, name in imports(source, path):
            outside, theirs = name.split(".")[0], part(name)
            if folder == "vdit":
                if path == "vdit/__init__.py":
                    bad = theirs != "errors" if outside == "vdit" else outside not in sys.stdlib_module_names
                elif mine not in MAY_IMPORT:
                    wrong.append(f"{path}: {mine} has no line in MAY_IMPORT")
                    break
                else:
                    allowed = ONLY_IN.get(outside)
                    bad = theirs is not None and theirs != mine and theirs not in MAY_IMPORT[mine]
                    bad |= allowed is not None and mine not in allowed and path not in allowed
            else:
                bad = outside in NOT_IN_SCRIPTS.get(folder, ())
            if bad:
                wrong.append(f"{path}:{line} imports {name}")
    return wrong


def sources() -> dict[str, str]:
    """The Python files of the repository that the rules speak of."""
    paths = [path for folder in SCANNED for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_imports_keep_the_rules():
    assert violations(sources()) == []


def test_the_rules_hold_no_cycle_but_at_the_top():
    graph = {name: allowed - {"quickstart", "cli", name} for name, allowed in MAY_IMPORT.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_modules_import_each_other_in_no_cycle():
    """At import time: what is imported inside functions is left out."""
    files = {path: text for path, text in sources().items() if path.startswith("vdit/")}
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    graph = {}
    for name, path in modules.items():
        top = ast.Module(body=[n for n in ast.parse(files[path]).body if isinstance(n, ast.Import | ast.ImportFrom)],
                         type_ignores=[])  # fmt: skip
        wanted = [target for _, target in imports(ast.unparse(top), path)]
        found = {t if t in modules else t.rpartition(".")[0] for t in wanted}
        graph[name] = {t for t in found if t in modules} - {name, "vdit"}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vdit/nn/planted.py", "from vdit.models.dit.config import DiTConfig"),
        ("vdit/nn/planted.py", "from vdit import models"),
        ("vdit/diffusion/planted.py", "def late():\n    import vdit.nn.layers"),
        ("vdit/diffusion/planted.py", "from ..samplers import make"),
        ("vdit/train/planted.py", "from vdit.generate import load"),
        ("vdit/experiment/planted.py", "from vdit.sampling.config import SamplingConfig"),
        ("vdit/video/planted.py", "import vdit.data"),
        ("vdit/train/planted.py", "from flax import linen"),
        ("vdit/samplers/planted.py", "import optax"),
        ("vdit/train/planted.py", "import grain.python"),
        ("vdit/data/planted.py", "import tensorflow as tf"),
        ("vdit/eval/planted.py", "import torch.nn"),
        ("vdit/train/planted.py", "import matplotlib"),
        ("vdit/generate/planted.py", "import cv2"),
        ("vdit/cli/planted.py", "from experiments import clips"),
        ("vdit/__init__.py", "import jax"),
        ("vdit/__init__.py", "from vdit import types"),
        ("vdit/unheard_of.py", "import os"),
        ("experiments/planted.py", "import torch"),
        ("data_pipelines/planted.py", "import experiments.clips"),
    ],
)
def test_a_planted_import_is_found(path, source):
    assert violations({path: source}) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vdit/train/state.py", "from flax import linen"),
        ("vdit/data/planted.py", "import grain\nfrom vdit.worlds import make"),
        ("vdit/generate/planted.py", "from vdit.experiment.experiment import Experiment"),
        ("vdit/nn/planted.py", "from vdit.nn.layers import RMSNorm\nfrom . import layers"),
        ("vdit/__init__.py", "import importlib\nfrom vdit import errors"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations({path: source}) == []


def test_import_vdit_is_light():
    """It names nothing that starts an accelerator, and a name that does not exist is an AttributeError."""
    code = (
        "import sys, vdit\n"
        "heavy = {'jax', 'flax', 'numpy', 'av', 'grain', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not hasattr(vdit, 'no_such_name')\n"
        "assert 'load' in dir(vdit)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
