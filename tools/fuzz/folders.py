"""Folders of public models with one thing wrong: python -m tools.fuzz.folders

Each case is a small folder of a layout that vdit reads, damaged by its seed: a value of the wrong type or size in a
field of a config, index, tokenizer or scheduler file (every field in turn), a JSON file that is none, a pipe or a
device in the place of a file, headers of safetensors, pickles that run code, sentencepiece models. Then all is done
that comes before sampling: the folder is opened and checked, a prompt encoded, every tensor read, and the sampler's
levels computed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from tools.fuzz import public_models
from tools.fuzz.common import Wrong, main
from vdit.diffusion import make_schedule
from vdit.pretrained import original_layouts
from vdit.pretrained.model import PublicModel, open_model
from vdit.samplers.base import discretize
from vdit.samplers.grid import Grid, GridOptions
from vdit.train.workspace import open_tokenizer

TEMPLATES = "VDIT_FUZZ_FOLDERS"  # where the whole folders are, for all worker processes
HUGE = 8 << 30

# What is put in the place of a JSON value; a function is given the old one.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 1.5, 0.0, -0.5, 1e-300, 1e-9, 0.999, 1e308, 10**9, 2**31, 2**63, 2**64,
    -(2**63), 10**30, 10**63, 10**70, math.inf, -math.inf, math.nan, "", "2", "x" * 10**6, "two\nlines \x1b[31m",
    "\u202e", "../../../etc/passwd", "/etc/passwd", "NaN", [], [1], [None], [0, 0, 0], [1, 1, 1], [10**9] * 3,
    ["a"] * 3, [True, True], [1e-30, 1, 1], [[1, 2], [3]], list(range(100_000)), {}, {"a": 1},
    {"height": 10**9, "width": -1},
    str, lambda old: [old], lambda old: {"value": old}, lambda old: _nested(60), lambda old: _nested(70),
    lambda old: _times(old, 1000), lambda old: _times(old, 2), lambda old: _times(old, -1), lambda old: _plus(old, 1),
    lambda old: _plus(old, -1), lambda old: _times(old, 1.0),
)  # fmt: skip


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """See tools.fuzz.common."""
    _prepare()
    random = np.random.default_rng(seed)
    names = sorted(entry.name for entry in _templates().iterdir())
    kinds = {_field: 68, _json_text: 8, _file: 6, _header: 7, _pickle: 6, _pieces: 5}
    damage = random.choice(list(kinds), p=np.array(list(kinds.values())) / 100)
    marker = folder / "ran-code"
    kind = damage(seed, random, names, folder / "model", marker)

    def call() -> str:
        told = _use(folder / "model")
        if marker.exists():
            raise Wrong("the folder ran code")
        return told

    return kind, call


def _use(folder: Path) -> str:
    """All that comes before sampling."""
    model = open_model(folder)
    model.check()
    experiment = model.experiment
    ids = open_tokenizer(experiment, model.tokenizer).encode("a red dog </s> é" if model.tokenizer else "1")
    if experiment.text.t5 is not None and max(ids) >= experiment.text.t5.vocab_size:
        raise Wrong(f"a prompt has the id {max(ids)}, the encoder {experiment.text.t5.vocab_size} rows")
    for part in model.components:
        for name in part.files.info:
            part.files.read(name)
    if not all(np.isfinite(values).all() for values in model.statistics.values()) or model.statistics["std"].min() <= 0:
        raise Wrong("statistics of latents that divide by zero")
    sample = experiment.sample
    grid = Grid(steps=sample.steps, **dataclasses.asdict(sample.grid or GridOptions()))
    discretize(make_schedule(experiment.diffusion), experiment.diffusion.prediction, grid)
    return experiment.name


# Damages: each writes a folder and says what it did.


def _field(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """One value of a JSON file; every field in turn."""
    places = _places()
    name, file, path = places[seed % len(places)]
    _copy(name, folder)
    with contextlib.suppress(ValueError):  # a field of a scheduler that the folder does not have
        scheduler = int(file)
        file = "scheduler/scheduler_config.json"
        (folder / file).write_text(json.dumps(public_models.schedulers()[scheduler]))
    value = json.loads((folder / file).read_text())
    node = value
    for key in path[:-1]:
        node = node[key]
    new = VALUES[int(random.integers(len(VALUES)))]
    act = random.random()
    if act < 0.04:
        del node[path[-1]]
    elif act < 0.08 and isinstance(node, dict):
        node[random.choice(["", "a\nb", "__class__", "x" * 5000, "num_layers", "_class_name"])] = node.pop(path[-1])
    else:
        node[path[-1]] = new(node[path[-1]]) if callable(new) else copy.deepcopy(new)
    (folder / file).write_text(json.dumps(value))
    return f"a JSON field: {file} {'.'.join(map(str, path))}"


def _json_text(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """A JSON file as text."""
    _copy(str(random.choice(names)), folder)
    file = random.choice(sorted(folder.rglob("*.json")))
    text = file.read_bytes()
    at = int(random.integers(len(text)))
    kinds = {
        "cut": text[:at],
        "a byte": text[:at] + bytes([int(random.integers(256))]) + text[at + 1 :],
        "twice": text + text,
        "a key twice": text[:1] + b'"_class_name": "A", ' + text[1:],
        "deep list": b"[" * 100_000,
        "deep object": b'{"a":' * 100_000,
        "a list": b"[" + text + b"]",
        "a number": b"3",
        "null": b"null",
        "empty": b"",
        "long number": text.replace(b": 2", b": " + b"9" * 10_000),
        "UTF-16": text.decode().encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + text,
        "many keys": b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(300_000)) + b"}",
        "many lists": b'{"a": [' + b"[]," * 650_000 + b"[]]}",
        "zeros": bytes(10_000),
        "surrogate": text.replace(b'"', b'"\\ud800', 1),
    }
    kind = str(random.choice(list(kinds)))
    file.write_bytes(kinds[kind])
    return f"a JSON text: {kind}, {file.relative_to(folder)}"


def _file(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """Something else in the place of a file."""
    _copy(str(random.choice(names)), folder)
    file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    kind = str(random.choice(["missing", "pipe", "device", "folder", "8 GB", "itself", "empty", "a web page", "LFS"]))
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to(random.choice(["/dev/zero", "/dev/tty", "/dev/full"]))
    elif kind == "folder":
        file.mkdir()
    elif kind == "8 GB":
        with file.open("wb") as out:
            out.truncate(HUGE)
    elif kind == "itself":
        file.symlink_to(file.name)
    elif kind != "missing":
        words = {"empty": "", "a web page": "<!doctype html><p>Login", "LFS": "version https://git-lfs.github.com/spec"}
        file.write_text(words[kind])
    return f"another file: {kind}, {file.relative_to(folder)}"


def _header(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """The header or the bytes of a safetensors file."""
    _copy(str(random.choice(names)), folder)
    file = random.choice(sorted(folder.rglob("*.safetensors")))
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    kind = str(random.choice(["a bit", "a value", "length", "cut", "NaN", "names"]))
    if kind == "a bit":
        broken = bytearray(whole)
        at = int(random.integers(8 * (8 + length)))
        broken[at // 8] ^= 1 << (at % 8)
    elif kind == "length":
        broken = int(random.choice([0, 1, length - 1, length + 8, 2**40, 2**63])).to_bytes(8, "little") + whole[8:]
    elif kind == "cut":
        broken = whole[: int(random.integers(len(whole)))]
    elif kind == "NaN":
        broken = whole[: 8 + length] + b"\xff" * (len(whole) - 8 - length)
    else:
        header = json.loads(whole[8 : 8 + length])
        entries = [name for name in header if name != "__metadata__"]
        name = str(random.choice(entries))
        new = VALUES[int(random.integers(len(VALUES)))]
        if kind == "names":
            header["x\n" * 100 if seed % 2 else "blocks.99999999999.x"] = header.pop(name)
        else:
            field = str(random.choice(["dtype", "shape", "data_offsets"]))
            header[name][field] = new(header[name][field]) if callable(new) else new
        text = json.dumps(header).encode()
        broken = len(text).to_bytes(8, "little") + text + whole[8 + length :]
    file.unlink()  # a link to the whole one
    file.write_bytes(broken)
    return f"safetensors: {kind}, {file.relative_to(folder)}"


def _pickle(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """A file of torch.save: pickles that run code or grow, archives that lie."""
    own = [name for name in names if name.startswith("own")]
    _copy(own[int(random.integers(len(own)))], folder)
    file = random.choice(sorted([*folder.glob("*.pth"), *folder.glob("*.pt")]))
    whole = file.read_bytes()
    tensors = {"w": np.ones((2, 3), np.float32)}
    runs = pickle.dumps(_Runs(f"open({str(marker)!r}, 'w')"), protocol=2)
    start = b"\x80\x02"
    pickles = {
        "runs code": runs,
        "runs code, later": b"\x80\x02}(X\x01\x00\x00\x00w" + runs[2:-1] + b"u.",
        "many lists": start + b"]" * 60_000_000 + b".",
        "many puts": start + b"".join(b"Nr" + i.to_bytes(4, "little") for i in range(500_000)) + b".",
        "doubling": start + b"]q\x00" + b"h\x00h\x00\x86q\x00" * 5000 + b".",
        "long number": start + b"\x8b" + (2**24).to_bytes(4, "little") + b"\x7f" * 2**24 + b".",
        "deep": start + b"(" * 200_000 + b"t" * 200_000 + b".",
        "itself": start + b"]q\x00h\x00a.",
        "instance": b"(ios\nsystem\n.",
        "object": start + b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        "no end": start + b"]",
    }
    kind = str(random.choice([*pickles, "a byte", "cut", "opcodes", "a byte", "opcodes"]))
    if kind in pickles:
        broken = public_models.torch_file(tensors, pickles[kind])
    elif kind == "opcodes":
        stream = bytearray(public_models.torch_file(tensors))
        begin = stream.index(b"\x80\x02}(")
        for at in random.integers(begin, begin + 150, 3):
            stream[at] = int(random.integers(256))
        broken = bytes(stream)
    else:
        at = int(random.integers(len(whole)))
        at = max(len(whole) - at % 4000 - 1, 0) if seed % 2 else at  # the archive's directory is at its end
        broken = whole[:at] if kind == "cut" else whole[:at] + bytes([int(random.integers(256))]) + whole[at + 1 :]
    file.unlink()
    file.write_bytes(broken)
    return f"torch file: {kind}, {file.name}"


class _Runs:
    """An object whose pickle calls exec."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


def _pieces(seed: int, random, names: list[str], folder: Path, marker: Path) -> str:
    """A sentencepiece model."""
    _copy(str(random.choice([name for name in names if "dit" not in name])), folder)
    (file,) = folder.rglob("spiece.model")
    whole = public_models.piece_model()
    at = int(random.integers(len(whole)))
    table = (b"\xff\xff\xff\x0f" * 64) + b"abc\0" * 8
    charsmap = b"\x12\x84\x02" + (256).to_bytes(4, "little") + table
    kinds = {
        "a byte": whole[:at] + bytes([int(random.integers(256))]) + whole[at + 1 :],
        "cut": whole[:at],
        "many pieces": whole + b"\x0a\x00" * 16_000_000,
        "long piece": whole + b"\x0a\x80\x80\x80\x08\x0a\xfa\xff\xff\x07" + b"a" * (2**24 - 6),
        "NaN score": whole + b"\x0a\x08\x0a\x01z\x15\x00\x00\xc0\x7f",
        "no text": whole + b"\x0a\x03\x0a\x01\xff",
        "number for a piece": whole + b"\x08\x01",
        "wild normaliser": whole + b"\x1a" + bytes([len(charsmap) & 127 | 128, len(charsmap) >> 7]) + charsmap,
        "long varint": whole + b"\xff" * 100_000 + b"\x01",
        "empty": b"",
    }
    kind = str(random.choice([*kinds, "a byte", "a byte", "a byte"]))
    file.unlink()
    file.write_bytes(kinds[kind])
    return f"sentencepiece: {kind}"


# The whole folders.


def _prepare() -> None:
    """Makes this process ready: a small VAE for Wan's own layout, and shapes that are traced once for a model."""
    original_layouts.vae_preset = public_models.small_vae
    if not hasattr(PublicModel.abstract, "cache"):
        abstract, cache = PublicModel.abstract, {}

        def remembered(model: PublicModel, mesh):
            if model.experiment not in cache:
                cache[model.experiment] = abstract(model, mesh)
            return cache[model.experiment]

        remembered.cache = cache
        PublicModel.abstract = remembered


@functools.cache
def _templates() -> Path:
    """The whole folders: made once, by the first process that needs them."""
    root = Path(os.environ.get(TEMPLATES) or tempfile.mkdtemp(prefix="fuzz-folders"))
    if not any(root.iterdir()):
        public_models.write_all(root)
    return root


@functools.cache
def _places() -> list[tuple[str, str, tuple]]:
    """(folder, file, path of a value in it) of every value in every JSON file; a number for file is a scheduler's."""
    found = []
    for name in sorted(entry.name for entry in _templates().iterdir()):
        for file in sorted((_templates() / name).rglob("*.json")):
            paths = list(_paths(json.loads(file.read_text())))
            # Of the thousand lines of an index a few stand for all.
            paths = paths[:6] if file.name.endswith("index.json") else paths
            found += [(name, str(file.relative_to(_templates() / name)), path) for path in paths]
    for i, scheduler in enumerate(public_models.schedulers()):
        name = "dit" if scheduler["_class_name"].startswith("DD") else "wan"
        found += [(name, str(i), path) for path in _paths(scheduler)]
    return found


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _copy(name: str, folder: Path) -> None:
    """A folder whose small files are copies, and whose tensors are links."""
    source = _templates() / name
    for file in sorted(source.rglob("*")):
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                shutil.copyfile(file, target)
            else:
                target.symlink_to(file)


def _edit(file: Path, key: str, value: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _times(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, int | float) else "2"


def _plus(value: Any, more: int) -> Any:
    return value + more if isinstance(value, int | float) else more


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fuzz-folders") as shared:
        os.environ[TEMPLATES] = shared
        _prepare()
        _templates()
        sys.exit(main(make, cases=2000, description=__doc__))
