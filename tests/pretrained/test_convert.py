"""Import to a checkpoint and export back: the same bits, whole or not at all, in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as reference

from tests.pretrained.load import fill
from tests.pretrained.toy_weights import abstract, rules, state
from vdit.checkpoint import Checkpointer, StreamedLeaf, load_meta, load_params, load_trees, save_streamed
from vdit.errors import CheckpointError, WeightsError
from vdit.pretrained.export import save_tensors
from vdit.pretrained.open import open_tensors
from vdit.pretrained.weights import TreeSource, import_trees, load

ROOT = Path(__file__).resolve().parents[2]


def source(folder, dtype=np.float32, **changes):
    folder.mkdir(exist_ok=True)
    reference.save_file(state(dtype=dtype) | changes, folder / "model.safetensors")
    return TreeSource(rules=rules(), tensors=open_tensors(folder), abstract=abstract())


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_an_import_is_a_checkpoint_like_any_other(tmp_path, dtype):
    found = source(tmp_path / "weights", dtype)
    import_trees({"params": {"dit": found}, "vae": found}, tmp_path / "run", meta={"config": {"a": 1}})
    wanted = fill(rules(), state(dtype=dtype))
    assert_same(load_params(tmp_path / "run"), {"dit": wanted})
    shapes = {"vae": jax.eval_shape(lambda: wanted)}
    assert_same(load_trees(tmp_path / "run", shapes)["vae"], wanted)
    assert load_meta(tmp_path / "run") == {"config": {"a": 1}}
    with Checkpointer(tmp_path / "run") as checkpointer:  # and a run can go on from it
        assert checkpointer.latest_step() == 0
        checkpointer.save(1, checkpointer.restore(shapes))
        assert_same(checkpointer.restore(shapes)["vae"], wanted)


def test_it_says_of_itself_what_the_ordinary_save_says(tmp_path):
    """Orbax's own notes are the same but for how the arrays lay on devices: so the same code reads both."""
    found = source(tmp_path / "weights")
    import_trees({"params": found}, tmp_path / "ours")
    with Checkpointer(tmp_path / "theirs") as checkpointer:
        checkpointer.save(0, {"params": load(found.rules, found.tensors, found.abstract)})

    def notes(run):
        tree = json.loads((run / "0/params/_METADATA").read_text())
        for leaf in tree["tree_metadata"].values():
            leaf["value_metadata"].pop("write_shape", None)
        return tree, json.loads((run / "0/_CHECKPOINT_METADATA").read_text())["item_handlers"]

    assert notes(tmp_path / "ours") == notes(tmp_path / "theirs")
    names = [{file.name for file in (tmp_path / run / "0").iterdir()} for run in ("ours", "theirs")]
    assert names[0] == names[1]


def test_a_flipped_bit_of_an_import_is_noticed(tmp_path):
    import_trees({"params": source(tmp_path / "weights")}, tmp_path / "run")
    file = max((f for f in (tmp_path / "run/0/params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_params(tmp_path / "run")


def test_an_import_that_fails_leaves_nothing(tmp_path):
    wrong = source(tmp_path / "weights", **{"tied.weight": np.zeros((8, 4), np.float32)})
    with pytest.raises(WeightsError, match=r"tied.weight must equal embed.weight"):
        import_trees({"params": wrong}, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    found = source(tmp_path / "weights")
    import_trees({"params": found}, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has step 0 already"):
        import_trees({"params": found}, tmp_path / "run")


@pytest.mark.parametrize("piece", [16, 200, 10**6])
def test_any_size_of_pieces_writes_the_same(tmp_path, piece):
    """Chunks smaller than a row, uneven ends, scalars, empty arrays, layers in any order."""
    random = np.random.default_rng(0)
    shapes = {"a": (3, 7, 5), "s": (), "e": (0, 4), "w": (9,)}
    values = {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()}
    tree = {n: StreamedLeaf(shape=v.shape, dtype=v.dtype, stacked=n == "a") for n, v in values.items()}

    def feed(put):
        for layer in (2, 0, 1):
            put("in/a", layer, values["a"][layer].T.copy().T)
        for name in ("s", "e", "w"):
            put(f"in/{name}", None, values[name])

    save_streamed(tmp_path, {"params": {"in": tree}}, {"params": feed}, step=4, piece_bytes=piece)
    assert_same(load_params(tmp_path, step=4), {"in": values})


def test_what_was_promised_must_come(tmp_path):
    tree = {"a": StreamedLeaf(shape=(2, 3), dtype=np.dtype(np.float32), stacked=True)}
    with pytest.raises(ValueError, match="a: 3 of its numbers did not come"):
        save_streamed(tmp_path, {"params": tree}, {"params": lambda put: put("a", 0, np.zeros(3, np.float32))})
    with pytest.raises(ValueError, match="a: float64 was to be float32"):
        save_streamed(tmp_path, {"params": tree}, {"params": lambda put: put("a", 0, np.zeros(3))})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_shard", [5e9, 300])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_there_and_back_is_bit_exact(tmp_path, dtype, max_shard):
    """Files, parameters, files; and files, checkpoint, parameters, files."""
    found = source(tmp_path / "weights", dtype)
    import_trees({"params": found}, tmp_path / "run")
    direct = load(found.rules, found.tensors, found.abstract)
    for name, params in (("direct", direct), ("run", load_params(tmp_path / "run"))):
        out = tmp_path / f"out_{name}"
        entrance = save_tensors(rules(), params, out, max_shard=max_shard)
        files = sorted(file.name for file in out.glob("*.safetensors"))
        if max_shard > 1000:
            assert files == [entrance.name] == ["diffusion_pytorch_model.safetensors"]
        else:
            assert entrance.name == "diffusion_pytorch_model.safetensors.index.json"
            assert files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05}.safetensors"
            assert len(files) > 2
        back = open_tensors(out)
        assert set(back.info) == set(state())
        for tensor, values in state(dtype=dtype).items():
            assert back.read(tensor).dtype == values.dtype
            assert back.read(tensor).tobytes() == values.tobytes()
        for file in files:  # the library reads what we write
            assert set(reference.load_file(out / file)) <= set(state())


def test_an_export_casts_refuses_and_leaves_nothing_half(tmp_path, monkeypatch):
    params = fill(rules(), state())
    save_tensors(rules(), params, tmp_path / "a", stem="model", dtype="bfloat16")
    assert {str(info.dtype) for info in open_tensors(tmp_path / "a").info.values()} == {"bfloat16"}
    with pytest.raises(WeightsError, match=r"holds model.safetensors already; give a new folder"):
        save_tensors(rules(), params, tmp_path / "a", stem="model")
    with pytest.raises(WeightsError, match="parameters and map do not go together: extra"):
        save_tensors(rules(), params | {"extra": np.zeros(2)}, tmp_path / "b")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vdit.pretrained.export._shard_index", full)
    with pytest.raises(WeightsError, match="c: cannot be written: the disk is full"):
        save_tensors(rules(), params, tmp_path / "c", max_shard=300)
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_an_import_stays_under_the_bound(tmp_path):
    """Six shards of 48 MB, so that the bound is well above what a process needs for itself."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tools/import_memory.py"), "--shards", "6", "--shard-mb", "48"]
    command += ["--dtypes", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    result = json.loads(done.stdout)
    assert result["equal"]
    assert result["all_mb"] >= 5 * result["shard_mb"]
    assert result["ratio"] < result["bound"] == 1.3
