"""Memory of an import: makes a folder of shards larger than the bound, imports it, prints what the host needed.

    python tools/import_memory.py --shards 8 --shard-mb 64

Each import runs in a process of its own; "peak" is its largest resident size less that before the import, jax and
all modules loaded. The bound is 1.3 times the largest shard. Afterwards the checkpoint is read back and compared.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vdit.checkpoint import load_params
from vdit.pretrained.open import open_tensors
from vdit.pretrained.tensors import TensorInfo, write_safetensors
from vdit.pretrained.weights import LINEAR, Rule, TreeSource, import_trees, rule

BOUND = 1.3
LAYERS_A_SHARD = 4  # each of one matrix
ROWS = 1024


def make(folder: Path, shards: int, shard_bytes: int, dtype: str) -> None:
    """A sharded set of safetensors with random numbers."""
    kind = np.dtype(dtype)
    columns = shard_bytes // LAYERS_A_SHARD // ROWS // kind.itemsize
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = [f"layers.{shard * LAYERS_A_SHARD + i}.weight" for i in range(LAYERS_A_SHARD)]
        places |= dict.fromkeys(tensors, name)
        info = {tensor: TensorInfo((columns, ROWS), kind) for tensor in tensors}
        write_safetensors(folder / name, info, lambda t, c=columns: values(t, c).astype(kind))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def values(name: str, columns: int) -> np.ndarray:
    """float32 [columns ROWS]: the numbers of a tensor, from its name."""
    seed = int(re.search(r"\d+", name)[0])
    return np.random.default_rng(seed).standard_normal((columns, ROWS), np.float32)


def source(folder: Path) -> TreeSource:
    """All matrices of the folder as one stack of ours."""
    tensors = open_tensors(folder)
    layers = len(tensors.info)
    columns, rows = tensors.info["layers.0.weight"].shape
    rules: list[Rule] = [rule(f"layers.{i}.weight", "stack/kernel", LINEAR, layer=i) for i in range(layers)]
    abstract = {"stack": {"kernel": jax.ShapeDtypeStruct((layers, rows, columns), jnp.float32)}}
    return TreeSource(rules=rules, tensors=tensors, abstract=abstract)


def resident(line: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the most."""
    return 1024 * int(re.search(rf"{line}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(folder: Path, out: Path) -> dict[str, float]:
    """One import, in this process."""
    jax.devices()
    found = source(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    import_trees({"params": found}, out)
    peak = resident("VmHWM") - before
    files = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return {"peak_mb": peak / 1e6, "shard_mb": max(files) / 1e6, "all_mb": sum(files) / 1e6, "ratio": peak / max(files)}


def equal(folder: Path, out: Path) -> bool:
    """Whether the checkpoint holds the bits of the files."""
    tensors = open_tensors(folder)
    stack = load_params(out)["stack"]["kernel"]
    same = lambda i: np.asarray(stack[i]).T.tobytes() == tensors.read(f"layers.{i}.weight").tobytes()  # noqa: E731
    return all(same(i) for i in range(len(tensors.info)))


def main() -> None:
    """Prints one line of JSON a type; fails if a peak is over the bound or the numbers are not the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--shard-mb", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--import", nargs=2, type=Path, metavar=("FOLDER", "OUT"), dest="only", help="measure one")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as scratch:
            folder, out = Path(scratch) / "weights", Path(scratch) / "run"
            folder.mkdir()
            make(folder, options.shards, options.shard_mb * 2**20, dtype)
            command = [sys.executable, __file__, "--import", str(folder), str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            result = {"dtype": dtype, **result, "bound": BOUND, "equal": equal(folder, out)}
            print(json.dumps(result), flush=True)
            if result["ratio"] >= BOUND or not result["equal"]:
                raise SystemExit(f"{dtype}: over the bound, or not the same numbers")


if __name__ == "__main__":
    main()
