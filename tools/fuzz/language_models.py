"""Damaged GGUF files and tokenizers of language models: refused in one line, or read.

    python -m tools.fuzz.language_models --cases 2000
"""

from __future__ import annotations

import functools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzz.common import main
from vdit.models.lm.tokenizer import load_lm_tokenizer, train_lm_tokenizer
from vdit.pretrained.gguf import open_gguf
from vdit.pretrained.lm import gguf_config, gguf_tokenizer

TEXT = "a red <s> ball"
_VALUES = (None, 3, -1, "x", [], {}, True, 1e9, 2**63)


@functools.cache
def tokenizer() -> bytes:
    """A whole tokenizer.json."""
    return train_lm_tokenizer(["a red ball"] * 3, 270, special=["<s>"]).model


def write_gguf(path: Path) -> int:
    """A whole GGUF file of a model; returns where its tensors begin."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("block_count", 1), ("context_length", 64), ("embedding_length", 32), ("head_count", 2),
                        ("feed_forward_length", 32), ("head_count_kv", 1), ("layer_norm_rms_eps", 1e-5),
                        ("rope_freq_base", 1e4)):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    model = json.loads(tokenizer())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    table, kind = np.ones((len(tokens), 32), np.float32), gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("token_embd.weight", table)
    writer.add_tensor("x", gguf.quants.quantize(table, kind), raw_dtype=kind)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return path.stat().st_size - table.nbytes - table.size // 32 * 18


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    rng = random.Random(seed)
    if rng.random() < 0.5:
        path = folder / "model.gguf"
        head = write_gguf(path)
        path.write_bytes(damaged(path.read_bytes(), rng, head))
        return "gguf", lambda: read_gguf(path)
    path = folder / "tokenizer.json"
    whole = tokenizer()
    path.write_bytes(
        damaged(whole, rng, len(whole)) if rng.random() < 0.4 else json.dumps(changed(json.loads(whole), rng)).encode()
    )  # fmt: skip
    return "tokenizer", lambda: read_tokenizer(path)


def damaged(data: bytes, rng: random.Random, head: int) -> bytes:
    """Some bytes changed or lost, most of them before `head`."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(head if rng.random() < 0.9 else len(data))
        kind = rng.random()
        if kind < 0.3:
            data[place : place + 8] = rng.randbytes(8)
        elif kind < 0.4:
            del data[place : place + rng.randint(1, 30)]
        else:
            data[place] = rng.randrange(256)
    return bytes(data)


def changed(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """JSON with one value replaced."""
    if not isinstance(value, dict | list) or not value or (depth and rng.random() < 0.3):
        return rng.choice(_VALUES)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    value[key] = changed(value[key], rng, depth + 1)
    return value


def read_gguf(path: Path) -> None:
    file = open_gguf(path)
    file.tensors.read("x")
    gguf_config(file)
    read = gguf_tokenizer(file)
    read.decode(read.encode(TEXT))


def read_tokenizer(path: Path) -> None:
    read = load_lm_tokenizer(path)
    read.decode(read.encode(TEXT))
    _ = read.vocab_size


if __name__ == "__main__":
    sys.exit(main(make, cases=2000, description=__doc__))
