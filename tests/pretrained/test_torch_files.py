"""torch.save's files without torch: the same numbers, nothing executed, no crash on any damage."""

import argparse
import collections
import io
import os
import pickle
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.data_paths import DATA
from vdit.errors import WeightsError
from vdit.pretrained.open import open_tensors

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
]  # fmt: skip


def same(ours: np.ndarray, theirs) -> None:
    """Bit for bit: numpy lacks some of torch's types."""
    assert ours.shape == tuple(theirs.shape)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    contiguous = theirs.detach().contiguous().reshape(-1)
    assert ours.tobytes() == contiguous.view(__import__("torch").uint8).numpy().tobytes()


def fails(words, path, **options):
    with pytest.raises(WeightsError, match=words) as error:
        open_tensors(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_view_and_shared_storage(tmp_path, torch, dtype, protocol):
    base = torch.arange(48).remainder(2 if dtype == "bool" else 100).to(getattr(torch, dtype)).reshape(6, 8)
    state = {"whole": base, "view": base[1:4, 2:7:2], "turned": base.t(), "scalar": base[2, 3], "empty": base[:0],
             "parameter": torch.nn.Parameter(base[2:], requires_grad=base.is_floating_point())}  # fmt: skip
    torch.save(state, tmp_path / "x.pt", pickle_protocol=protocol)
    opened = open_tensors(tmp_path / "x.pt")
    assert set(opened.info) == set(state)
    for name, tensor in state.items():
        same(opened.read(name), tensor)
        assert opened.info[name] == (tuple(tensor.shape), opened.read(name).dtype)


def test_a_module_and_its_nested_forms(tmp_path, torch):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state, file = module.state_dict(), tmp_path / "x.pth"
    forms = [state, {"state_dict": state, "epoch": 3, "name": "x"}, {"a": {"model": dict(state)}, "lr": [1e-3, None]}]
    for form in forms:
        torch.save(form, file)
        opened = open_tensors(file)
        assert set(opened.info) == set(state)
        for name, tensor in state.items():
            same(opened.read(name), tensor)
    optimizer = torch.optim.AdamW(module.parameters())
    torch.save({"model": state, "ema": state, "opt": optimizer.state_dict()}, file)
    fails("several dicts of tensors; save one of them alone, or from Python name it by key: ema, model", file)
    assert set(open_tensors(file, key="ema").info) == set(state)
    fails("has no 'emma'; there is model, ema, opt", file, key="emma")
    torch.save([state], file)
    fails("no dict of names to tensors, but list", file)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_real_files(torch, part):
    file = DATA / f"weights/taef2/taef2_{part}.pth"
    if not file.exists():
        pytest.skip(f"no {file}: set VDIT_TEST_DATA")
    theirs, opened = torch.load(file, weights_only=True), open_tensors(file)
    assert set(opened.info) == set(theirs)
    for name, tensor in theirs.items():
        same(opened.read(name), tensor)


def test_what_training_scripts_leave_is_refused_by_name(tmp_path, torch):
    file = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.zeros(2)}, "args": argparse.Namespace(lr=1)}, file)
    assert "save the state_dict alone" in fails("holds 'argparse.Namespace', which is no tensor", file)
    torch.save(torch.nn.Linear(2, 2), file)
    fails("holds 'torch.nn.modules.linear.Linear'", file)
    torch.save({"a": torch.zeros(2), "b": {"c": torch.zeros(2)}}, file)
    fails("b is neither tensor nor number", file)
    torch.save({"a": torch.zeros(1).expand(1000)}, file)
    fails("a is an expanded view", file)
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, file)
    fails("holds 'torch.ComplexFloatStorage'", file)


def test_other_formats_are_told_apart(tmp_path, torch):
    file = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    fails(r"from before 1.6; convert it once, with torch: torch.save\(torch.load", file)
    file.write_bytes(b"not a zip")
    fails("no zip archive", file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/constants.pkl", b"")
    fails("TorchScript", file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/other", b"")
    fails("no data.pkl", file)
    archived(file, pickle.dumps({}, 2), compression=zipfile.ZIP_DEFLATED)
    fails("is compressed", file)


def archived(file, stream, compression=zipfile.ZIP_STORED, storage=b"\0" * 64):
    """A file like torch's around a pickle of one's own."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x/data.pkl", stream)
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/data/0", storage)
        archive.writestr("x/version", b"3\n")


class Attack:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Slots:
    __slots__ = ()


def attacks(target) -> dict[str, bytes]:
    """Pickles that make the file `target` when they are run, by each way there is to run something."""
    make = f"open({str(target)!r}, 'w').close()"
    text, system = make.encode(), f"touch {target}".encode()
    short = lambda value: b"\x8c" + bytes([len(value)]) + value  # noqa: E731
    found = {
        "system": pickle.dumps(Attack(os.system, f"touch {target}"), 2),
        "exec in a dict": pickle.dumps({"a": Attack(exec, make)}, 2),
        "stack global": pickle.dumps(Attack(exec, make), 4),
        "framed": pickle.dumps({"a": [Attack(eval, make)]}, 5),
        "ordered dict's item": pickle.dumps(collections.OrderedDict(a=Attack(exec, make)), 2),
        "inst": b"(S'" + system + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + system + b"'\no.",
        "newobj": b"\x80\x02cos\nsystem\nS'" + system + b"'\n\x85\x81.",
        "newobj_ex": b"\x80\x04" + b"cos\nsystem\n" + short(system) + b"\x85}\x92.",
        "extension": b"\x80\x02\x82\x01.",
        "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent": b"Pos.system\n.",
        "getattr": b"cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'" + system + b"'\ntR.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R(cbuiltins\nexec\nX"
        + len(text).to_bytes(4, "little") + text + b"\x86Rb.",
        "setstate": b"\x80\x02ccollections\nOrderedDict\n}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsbX"
        + len(system).to_bytes(4, "little") + system + b"b.",
        "call a storage": b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.",
        "call a string": b"\x80\x02X\x02\x00\x00\x00osX\x02\x00\x00\x00os\x85R.",
        "global by attribute": b"\x80\x04" + short(b"torch._utils")
        + short(b"_rebuild_tensor_v2.__globals__") + b"\x93.",
        "torch's own loader": b"ctorch\nload\n(S'x'\ntR.",
        "numpy": pickle.dumps(np.zeros(2), 2),
        "slots": pickle.dumps(Slots(), 2),
    }  # fmt: skip
    return found


@pytest.mark.parametrize("name", list(attacks("x")))
def test_malicious_pickles_are_refused_and_do_not_run(tmp_path, name):
    target, file = tmp_path / "run", tmp_path / "x.pt"
    archived(file, attacks(target)[name])
    message = fails("its pickle|which is no tensor and might run code", file)
    assert "state_dict" in message
    assert not target.exists()


@pytest.mark.parametrize("name", ["system", "exec in a dict", "stack global", "framed", "inst", "obj"])
def test_the_attacks_are_real(tmp_path, name):
    """Python's own unpickler runs them: what is refused above is not refused for being malformed."""
    target = tmp_path / "run"
    pickle.loads(attacks(target)[name])
    assert target.exists()


def tensor_pickle(shape=(2, 2), stride=(2, 1), offset=0, count=16, key="0", storage="FloatStorage", root=None):
    """A state dict of one float tensor, by hand."""
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value[1] if isinstance(value, tuple) and value and value[0] == "storage!" else None

    class Rebuild:
        def __reduce__(self):
            import torch

            of = getattr(torch, storage)
            held = ("storage!", ("storage", of, key, "cpu", count))
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (held, offset, shape, stride, False, hooks)

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Rebuild()} if root is None else root)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"shape": (5, 4), "stride": (4, 1)}, "outside its storage"),
        ({"offset": 14}, "outside its storage"),
        ({"offset": -1}, "a size that is none"),
        ({"stride": (-1, 1)}, "a size that is none"),
        ({"shape": (10**9, 10**9), "stride": (0, 0)}, "outside its storage|expanded view"),
        ({"shape": (2**40,), "stride": (0,)}, "expanded view"),
        ({"shape": (2,)}, "more sizes than strides"),
        ({"count": 17}, "truncated: a needs 68 bytes, there are 64"),
        ({"count": 2**61}, "truncated"),
        ({"key": "../0"}, "the bytes of a are missing"),
    ],
)
def test_tensors_that_lie(tmp_path, torch, values, words):
    file = tmp_path / "x.pt"
    archived(file, tensor_pickle())
    assert open_tensors(file).read("a").shape == (2, 2)
    archived(file, tensor_pickle(**values))
    fails(words, file)


def test_dicts_that_unfold_without_end(tmp_path):
    """Shared and cyclic references: a small pickle whose tree is huge."""
    nest: dict = {}
    for _ in range(60):
        nest = {"a": nest, "b": nest}
    cycle: dict = {}
    cycle["a"] = cycle
    for value in (nest, cycle):
        archived(tmp_path / "x.pt", pickle.dumps(value, 2))
        fails("deep", tmp_path / "x.pt")


@pytest.mark.parametrize("key", ["a\nb", "a" * 2000, 10**6000, b"a"], ids=["lines", "long", "digits", "bytes"])
def test_names_fit_a_line(tmp_path, key):
    archived(tmp_path / "x.pt", pickle.dumps({key: 1}, 2))
    fails("keys are neither names nor numbers|_codecs.encode", tmp_path / "x.pt")


def test_any_damage_is_an_error_or_the_right_numbers(tmp_path, torch):
    """Every tensor that fills its storage has a checksum; nothing else is raised, and no large memory is asked for."""
    file = tmp_path / "x.pt"
    base = torch.randn(4, 6)
    state = {"a": base, "b": torch.arange(5), "c": torch.randn(7).half()[2:], "d": base.t()}
    torch.save(state, file)
    whole = file.read_bytes()
    cases = [whole[:size] for size in range(0, len(whole), 53)]
    random = np.random.default_rng(0)
    for place in [*random.integers(0, len(whole), 500), *range(len(whole) - 300, len(whole))]:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(random.integers(8))
        cases.append(bytes(broken))
    stream = re.search(rb"\x80\x02}", whole).start()  # most bytes are padding: some cases in the pickle itself
    for place in random.integers(stream, stream + 400, 300):
        broken = bytearray(whole)
        broken[place] = int(random.integers(256))
        cases.append(bytes(broken))
    wrong = 0
    tracemalloc.start()
    for case in cases:
        file.write_bytes(case)
        try:
            opened = open_tensors(file)
            for name in opened.info:
                opened.read(name)
        except WeightsError:
            wrong += 1
            continue
        for name in set(opened.info) & set(state):
            assert opened.info[name].shape == tuple(state[name].shape)
            same(opened.read(name), state[name])
    assert wrong > 100
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
