"""Tokenizers of language models: byte-pair ones, by the `tokenizers` library, from a tokenizer.json or from texts.

    tokenizer = load_lm_tokenizer("SmolLM2-135M-Instruct")
    ids = tokenizer.encode("A red ball rolls.")

A tokenizer.json from outside is checked part by part: only kinds of parts that public language models have, and only
their regular expressions, reach the library.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdit import paths
from vdit.errors import TextError
from vdit.models.text.t5_tokenizer import library_errors
from vdit.models.text.tokenizer import MOST_PIECES, valid_text
from vdit.paths import MIB, parse_json, read_bytes
from vdit.reprs import cut, short_repr

FILE = "tokenizer.json"
FILE_LIMIT = 64 * MIB  # Qwen's has 11 MB, Llama 3's 17 MB
# How texts are cut into words before pairs are merged. Only these reach the library: a regular expression from outside
# could take for ever.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2, LLAMA3 = _WORDS % "", _WORDS % "{1,3}"
_PATTERNS = (QWEN2, LLAMA3)
# Kinds of parts of a tokenizer.json, with the fields that each may have.
_PARTS = {
    "normalizer": {"Sequence", "NFC", "Prepend", "Replace"},
    "pre_tokenizer": {"Sequence", "ByteLevel", "Digits", "Split", "Metaspace"},
    "decoder": {"Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"},
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing"},
}
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class LMTokenizer:
    """A byte-pair tokenizer; plain bytes, so it compares, pickles and goes into a checkpoint.

    Special tokens that a text spells out ("<|im_end|>") are those tokens.

    Attributes:
        model: content of a tokenizer.json.

    Raises:
        TextError: the file is no tokenizer of a language model known here, or is damaged.
    """

    model: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        _ = self._backend

    @functools.cached_property
    def _backend(self):
        from tokenizers import Tokenizer as Backend

        checked = _checked(parse_json(self.model, name=FILE, error=TextError, fix="download the file again"))
        with library_errors():
            return Backend.from_buffer(json.dumps(checked).encode())

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Text to ids.

        Args:
            text: any text.
            special: whether the model's own first token is put before it (Llama); a chat template writes it itself.
        """
        with library_errors():
            return self._backend.encode(valid_text(text), add_special_tokens=special).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, without special tokens."""
        with library_errors():
            return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its text; None where there is none."""
        return self._backend.token_to_id(token)

    def token_of(self, i: int) -> str | None:
        """Text of a token as the vocabulary has it; None where there is none."""
        return self._backend.id_to_token(i)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json, whole or not at all."""
        paths.write_atomic(path, self.model)

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model}


def load_lm_tokenizer(path: str | Path) -> LMTokenizer:
    """Read the tokenizer of a language model.

    Args:
        path: a tokenizer.json, or the folder of one.

    Returns:
        The tokenizer.

    Raises:
        TextError: the file is missing, too large, damaged, or of a kind that is not known here.
    """
    file = paths.local_weights(path, error=TextError)
    file = file / FILE if file.is_dir() else file
    model = read_bytes(file, limit=FILE_LIMIT, error=TextError, fix=f"give the model's {FILE}")
    try:
        return LMTokenizer(model=model)
    except TextError as error:
        raise TextError(f"{file}: {error}") from None


def train_lm_tokenizer(texts: Iterable[str], vocab_size: int, *, special: Sequence[str] = ()) -> LMTokenizer:
    """Learn a byte-pair tokenizer (Sennrich et al., 2016) of bytes, so that it writes any text.

    Args:
        texts: what it is for, such as captions.
        vocab_size: most tokens; at least 256 and the special ones. Few texts give fewer.
        special: tokens that no text is split into, such as "<|im_end|>"; they get the first ids, in their order.

    Returns:
        The tokenizer.

    Raises:
        TextError: there is too little room for every byte.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    least = 256 + len(special)
    if not least <= vocab_size <= MOST_PIECES:
        rule = f"must be from {least} (every byte, and special tokens) to {MOST_PIECES}"
        raise TextError(f"vocab_size={vocab_size} {rule}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*special], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    with library_errors():
        backend.train_from_iterator(map(valid_text, texts), trainer)
        return LMTokenizer(model=backend.to_str().encode())


def bpe_json(
    tokens: Sequence[str], merges: Sequence[str], *, words: str, special: Sequence[int], added: Sequence[int]
) -> bytes:
    """The tokenizer.json of a byte-pair vocabulary as GGUF files hold it.

    Args:
        tokens: text of each id. merges: "a b" each, in order.
        words: how texts are cut into words: "gpt2", "digits" (gpt2, each digit apart), "qwen2" or "llama3".
        special: ids of tokens that are never text. added: ids of others that are not made by merges.

    Returns:
        The file's content.

    Raises:
        TextError: `words` is unknown, or an id or a merge is no such thing.
    """
    if words not in ("gpt2", "digits", "qwen2", "llama3"):
        raise TextError(f"words={words!r} must be gpt2, digits, qwen2 or llama3")
    pre: list[dict[str, Any]] = [_BYTE_LEVEL | {"use_regex": words in ("gpt2", "digits")}]
    if words == "digits":
        pre.insert(0, {"type": "Digits", "individual_digits": True})
    elif words != "gpt2":
        pattern = {"Regex": QWEN2 if words == "qwen2" else LLAMA3}
        pre.insert(0, {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise TextError("a merge of the tokenizer is no pair of tokens: download the file again")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = [*((i, True) for i in special), *((i, False) for i in added)]
    if not all(0 <= i < len(tokens) for i, _ in kinds):
        raise TextError(f"a special token of the tokenizer is not below {len(tokens)}: download the file again")
    return json.dumps(
        {
            "added_tokens": [{"id": i, "content": tokens[i], "special": s, **flags} for i, s in sorted(kinds)],
            "normalizer": {"type": "NFC"} if words == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
            "decoder": _BYTE_LEVEL,
            "model": {
                "type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": pairs,
                "ignore_merges": words == "llama3",
            },
        }
    ).encode()  # fmt: skip


def _checked(found: Any) -> dict[str, Any]:
    """The parts of a tokenizer.json that say what it computes, each known; padding and cutting are left out."""
    model = found.get("model") if isinstance(found, Mapping) else None
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, Mapping) else model
        raise TextError(f"a model of kind {cut(str(kind))} must be BPE: give the tokenizer of a language model")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, Mapping) or not isinstance(merges, list) or len(vocab) > MOST_PIECES:
        raise TextError("its model has no vocab and merges as a byte-pair tokenizer's: download the file again")
    if not all(type(i) is int and 0 <= i <= MOST_PIECES for i in vocab.values()) or len(merges) > 2 * MOST_PIECES:
        raise TextError("its vocab has an id that is no whole number, or too large: download the file again")
    added = found.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MOST_PIECES:
        raise TextError("its added_tokens are no list: download the file again")
    for name, kinds in _PARTS.items():
        _check_part(name, found.get(name), kinds)
    kept = {name: found.get(name) for name in _PARTS}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "model": model, **kept}


def _check_part(name: str, part: Any, kinds: set[str]) -> None:
    if part is None:
        return
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise TextError(f"its {name} of kind {cut(str(kind))} is not known here: it must be {', '.join(sorted(kinds))}")
    pattern = part.get("pattern")
    if isinstance(pattern, Mapping) and "Regex" in pattern and pattern["Regex"] not in _PATTERNS:
        found = cut(str(pattern["Regex"]))
        raise TextError(f"its {name} cuts words by {found}: only Qwen's and Llama 3's expressions are known here")
    for inner in _LISTS:
        parts = part.get(inner) or []
        if not isinstance(parts, list):
            raise TextError(f"its {name} has {inner} that are no list: download the file again")
        for one in parts:
            _check_part(name, one, kinds)
