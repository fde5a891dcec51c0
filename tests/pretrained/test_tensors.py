"""Files and folders of tensors: what is read, how much memory, and the words for every broken folder."""

import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as reference

from vdit.errors import WeightsError
from vdit.pretrained.open import open_tensors
from vdit.pretrained.tensors import DTYPES, TensorInfo, open_safetensors, read_json, write_safetensors


def numbers(seed=0, shape=(4, 6), dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def sharded(folder, stem="diffusion_pytorch_model", variant=""):
    """Two shards with an index."""
    shards = {f"{stem}{variant}-0000{i}-of-00002.safetensors": {f"{n}.weight": numbers(i)}
              for i, n in ((1, "a"), (2, "b"))}  # fmt: skip
    for name, tensors in shards.items():
        reference.save_file(tensors, folder / name)
    places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = folder / f"{stem}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 192}, "weight_map": places}))
    return index, places


def fails(words, path, **options):
    with pytest.raises(WeightsError, match=words) as error:
        open_tensors(path, **options)
    assert "\n" not in str(error.value)
    assert re.search(r"; [a-z`]", str(error.value)), "no mend"


@pytest.mark.parametrize("kind", list(DTYPES))
def test_every_type_comes_back_bit_for_bit_and_is_written_so(tmp_path, kind):
    array = np.random.default_rng(0).integers(0, 2 if kind == "BOOL" else 256, (3, 5, 8), np.uint8).view(DTYPES[kind])
    file = tmp_path / "x.safetensors"
    written = {"a": array, "b": array[0, 0, :1].reshape(()), "c": array[:0, 0, :2]}
    info = {name: TensorInfo(values.shape, values.dtype) for name, values in written.items()}
    write_safetensors(file, info, written.__getitem__)
    tensors = open_tensors(file)
    assert dict(tensors.info) == info
    assert tensors.largest_file == file.stat().st_size
    for name in info:
        assert tensors.reader(name).dtype == array.dtype
    assert tensors.reader("a").tobytes() == array.tobytes()
    assert tensors.reader("b").tobytes() == array.tobytes()[: array.itemsize]
    if not kind.startswith(("F8", "BF16")):  # the library's numpy side may not know these
        np.testing.assert_array_equal(reference.load_file(file)["a"], array)


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {"a": numbers(), "b.c": numbers(1, (7,), np.float16), "d": numbers(2, (2, 3), jnp.bfloat16)}
    reference.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    opened = open_tensors(tmp_path / "x.safetensors")
    assert set(opened.info) == set(tensors)
    for name, array in tensors.items():
        assert opened.read(name).tobytes() == array.tobytes()
    with pytest.raises(WeightsError, match="has no tensor 'x'"):
        opened.read("x")


def test_a_folder_of_shards_with_an_index(tmp_path):
    index, places = sharded(tmp_path)
    for path in (tmp_path, index):
        opened = open_tensors(path)
        assert set(opened.info) == set(places)
        np.testing.assert_array_equal(opened.read("b.weight"), numbers(2))
        assert opened.largest_file == max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))


def test_which_files_of_a_folder_are_taken(tmp_path, torch):
    """safetensors before torch's, the plain set before its precision variants, a variant where there is no other."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"args": 1}, tmp_path / "training_args.bin")
    assert open_tensors(tmp_path).info["a"].dtype == np.float32
    sharded(tmp_path, "model", ".fp16")
    assert set(open_tensors(tmp_path).info) == {"a.weight", "b.weight"}
    reference.save_file({"c": numbers()}, tmp_path / "model.safetensors")
    assert set(open_tensors(tmp_path).info) == {"c"}
    reference.save_file({"c": numbers()}, tmp_path / "other.safetensors")
    fails("several sets of weights: model.safetensors, other.safetensors", tmp_path)


def test_sharded_torch_files(tmp_path, torch):
    for i, name in enumerate("ab"):
        torch.save({name: torch.full((2,), float(i))}, tmp_path / f"pytorch_model-0000{i + 1}-of-00002.bin")
    places = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    np.testing.assert_array_equal(open_tensors(tmp_path).read("b"), 1.0)


def test_broken_folders_are_refused_by_name(tmp_path):
    fails("no such file or folder", tmp_path / "nowhere")
    fails("holds no weights", tmp_path)
    index, places = sharded(tmp_path)
    first = tmp_path / places["a.weight"]

    def with_places(new):
        index.write_text(json.dumps({"weight_map": new}))

    with_places(places | {"c.weight": first.name})
    fails(rf"the shards lack tensors that it names: c.weight \(not in {first.name}\)", tmp_path)
    with_places({"a.weight": first.name})
    fails("does not name the shards diffusion_pytorch_model-00002-of-00002.safetensors", tmp_path)
    with_places({name: first.name for name in places})
    fails("does not name the shards", tmp_path)
    fails(r"lack tensors that it names: b.weight", index)
    with_places(places | {"a.weight": places["b.weight"]})
    fails(r"lack tensors that it names: a.weight", index)
    with_places(places | {"c": "../x.safetensors"})
    fails(r"puts c into '../x.safetensors', which is no file of its folder", tmp_path)
    index.write_text("{}")
    fails("has no weight_map", tmp_path)
    index.unlink()
    fails("shards without their index", tmp_path)
    with_places(places)
    reference.save_file({"a.weight": numbers(), "b.weight": numbers()}, first)
    fails(rf"does not name tensors of its shards: b.weight \({first.name}\)", tmp_path)
    first.unlink()
    fails(f"names shards that are not there: {first.name}", tmp_path)
    index.unlink()
    fails("00002-of-00002.safetensors of 2 shards and no index", tmp_path)


def test_files_that_are_no_weights(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    fails("a pointer of Git LFS", file)
    file.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    fails("a web page", file)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    fails("x.gguf: GGUF", tmp_path / "x.gguf")
    (tmp_path / "x.npz").write_bytes(b"PK")
    fails("x.npz: is none of .safetensors", tmp_path / "x.npz")


def write(file, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry()}, b"\0" * 7, "truncated: it has 7 of its 8 bytes"),
        ({"a": entry()}, b"\0" * 9, "1 bytes follow its last tensor"),
        ({"a": entry(4, 12)}, b"\0" * 12, "a starts at byte 4, the tensor before it ends at 0"),
        ({"a": entry(), "b": entry(4, 12)}, b"\0" * 12, "b starts at byte 4, the tensor before it ends at 8"),
        ({"a": entry(shape=(3,))}, b"\0" * 8, "has 8 bytes"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, "entry of 'a'"),
        ({"a": entry(shape=(True, 2))}, b"\0" * 8, "entry of 'a'"),
        ({"a": entry(8, 0)}, b"\0" * 8, r"has -8 bytes|starts at"),
        ({"a": entry(0, 0, (0, 2**63))}, b"", "has the shape"),
        ({"a": entry(dtype="F4")}, b"\0" * 8, "is of type F4"),
        ({"a": 3}, b"", "entry of 'a'"),
        ({"a\nb": entry()}, b"\0" * 8, "no printable line"),
        ({"a" * 2000: entry()}, b"\0" * 8, "no printable line"),
        ([1], b"", "no JSON object"),
        (b'{"a": 1, "a": 2}', b"", "'a' twice"),
        (b"{" * 10, b"", "not JSON"),
        (b"[" * 100_000, b"", "deeper"),
        (b"\xff\xfe", b"", "not JSON"),
    ],
)
def test_headers_that_lie(tmp_path, header, data, words):
    write(tmp_path / "x.safetensors", header, data)
    fails(words, tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0, 2**63, 2**40, 3])
def test_a_header_cannot_be_longer_than_its_file(tmp_path, length):
    write(tmp_path / "x.safetensors", {"a": entry()}, b"\0" * 8, length)
    fails("no whole safetensors file", tmp_path / "x.safetensors")


def test_any_damage_is_an_error_or_leaves_numbers_that_fit(tmp_path):
    """Truncation always shows; a flipped bit of the header shows, or another name, type or shape of equal size."""
    file = tmp_path / "x.safetensors"
    reference.save_file({"a": numbers(), "b": numbers(1, (5,), np.float16)}, file)
    whole = file.read_bytes()
    for size in range(0, len(whole), 3):
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            open_tensors(file)
    random = np.random.default_rng(0)
    begin = 8 + int.from_bytes(whole[:8], "little")
    for bit in random.integers(0, 8 * begin, 400):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(broken)
        try:
            opened = open_tensors(file)
        except WeightsError:
            continue
        assert sum(opened.read(name).nbytes for name in opened.info) == len(whole) - begin


def test_read_json(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    for text, words in (("{", "is not JSON"), ("[1]", "is list, must be a JSON object"), ("[" * 99999, "deeper than")):
        file.write_text(text)
        with pytest.raises(WeightsError, match=words):
            read_json(file)
    file.write_bytes(b"\xff")
    with pytest.raises(WeightsError, match="utf-8"):
        read_json(file)
    with file.open("wb") as handle:
        handle.truncate(2 * 10**8)
    with pytest.raises(WeightsError, match="has 200000000 bytes"):
        read_json(file)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_one_bad_number_is_named(tmp_path, dtype, bad):
    array = np.ones((3, 400_000) if dtype == "float32" else (2, 3), jnp.dtype(dtype))
    write_safetensors(tmp_path / "x.safetensors", {"w": TensorInfo(array.shape, array.dtype)}, lambda name: array)
    assert open_tensors(tmp_path / "x.safetensors").read("w").shape == array.shape
    (tmp_path / "x.safetensors").unlink()
    array[-1, -1] = bad
    write_safetensors(tmp_path / "x.safetensors", {"w": TensorInfo(array.shape, array.dtype)}, lambda name: array)
    with pytest.raises(WeightsError, match="w holds NaN"):
        open_tensors(tmp_path / "x.safetensors").read("w")


def test_only_regular_files_are_opened_for_tensors(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        open_tensors(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="pipe"):
        open_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="pipe"):
        read_json(tmp_path / "x.safetensors")
