"""The tokenizer of T5 and umT5, by the `tokenizers` library, from a sentencepiece file or a tokenizer.json.

    tokenizer = load_t5_tokenizer("Wan2.1-T2V-1.3B-Diffusers/tokenizer")
    ids = tokenizer.encode("a cat")        # 512 ids, padded

A file from outside is never run as it is. Its pieces, scores, special tokens and table of normalisation are read, and
the same pipeline is built of them that transformers builds for a T5.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import functools
import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ftfy

from vdit import paths
from vdit.errors import TextError
from vdit.models.text.config import TextConfig
from vdit.models.text.tokenizer import MOST_PIECES, Tokenizer, load_tokenizer, parse_model, valid_text, write_model
from vdit.paths import MIB, parse_json, read_bytes, read_json
from vdit.reprs import short_repr

MODEL_NAMES = ("spiece.model", "tokenizer.model", "tokenizer.json")
EXTRA_IDS, MOST_EXTRA_IDS = 100, 4096
CONFIG_LIMIT = 4 * MIB  # of tokenizer_config.json, which may describe each of thousands of added tokens
FILE_LIMIT = 32 * MIB  # of a tokenizer.json; umT5's has 17 MB
_SPACE = "\u2581"  # how sentencepiece writes the space before a word
_REQUIRED = ("<pad>", "</s>", "<unk>")
_UNKNOWN = 2  # transformers gives this id whatever piece a file calls unknown
_UNIGRAM = 1  # of TrainerSpec.ModelType in sentencepiece_model.proto
_CONTROL, _USER_DEFINED = 3, 4  # of ModelProto.SentencePiece.Type


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
    """What a tokenizer's file holds: piece and log-probability of each id, tokens that are never text, normaliser."""

    scored: Sequence[tuple[str, float]]
    special: Sequence[str]
    charsmap: bytes = b""


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Tokenizer:
    """A prompt's ids as `transformers` gives them: its pieces, the end token, and padding up to max_length.

    Plain data, so a tokenizer compares, pickles and goes into a checkpoint. Special tokens that a prompt spells out
    ("</s>") are those tokens. A run of unknown characters is one id, 2, even where the model could spell them in bytes.

    Attributes:
        model: content of the tokenizer's file: a sentencepiece model, or a tokenizer.json.
        max_length: ids of an encoding, the end token included. Longer prompts are cut before it.
        pad: whether every encoding is padded to max_length, as in Wan. "" is the end token, and padding.
        clean: whether prompts are cleaned as Wan does it (`clean_prompt`).
        extra_ids: how many sentinels "<extra_id_0>", ... have ids after the pieces of a sentencepiece model (umT5:
            300). 0 for a tokenizer.json, which lists its sentinels.

    Raises:
        TextError: the file is no tokenizer of a T5, or a number is out of range.
    """

    model: bytes = dataclasses.field(repr=False)
    max_length: int = 512
    pad: bool = True
    clean: bool = True
    extra_ids: int = EXTRA_IDS

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise TextError(f"max_length {self.max_length} must be at least 1")
        if not 0 <= self.extra_ids <= MOST_EXTRA_IDS:
            raise TextError(f"extra_ids {self.extra_ids} must be from 0 to {MOST_EXTRA_IDS}")
        ids = self._ids
        missing = [piece for piece in _REQUIRED if piece not in ids]
        if missing:
            raise TextError(f"not the model of a T5: it has no piece {', '.join(missing)}")
        if self.extra_ids and any(piece.startswith("<extra_id_") for piece in ids):
            raise TextError(f"extra_ids {self.extra_ids} must be 0: the model has sentinel pieces of its own")

    @functools.cached_property
    def _pieces(self) -> _Pieces:
        return _from_json(self.model) if is_json(self.model) else _from_sentencepiece(self.model)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """Pieces of the file -> id."""
        return {piece: i for i, (piece, _) in enumerate(self._pieces.scored)}

    @functools.cached_property
    def _backend(self):
        """The `tokenizers.Tokenizer`, with the pipeline of transformers' T5Tokenizer."""
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        pieces = self._pieces
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(self.extra_ids))]
        with library_errors():
            vocabulary = [*pieces.scored, *((name, 0.0) for name in sentinels)]
            backend = Backend(models.Unigram(vocabulary, unk_id=_UNKNOWN, byte_fallback=False))
            special = dict.fromkeys([*_REQUIRED, *pieces.special, *sentinels])
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
            if pieces.charsmap:
                backend.normalizer = normalizers.Precompiled(pieces.charsmap)
            metaspace = {"replacement": _SPACE, "prepend_scheme": "always", "split": True}
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
            )
            backend.decoder = decoders.Metaspace(**metaspace)
        return backend

    @property
    def vocab_size(self) -> int:
        """Ids are below it: the model's own pieces, and the sentinels."""
        return len(self._pieces.scored) + self.extra_ids

    @property
    def eos_id(self) -> int:
        """Id of the end token."""
        return self._ids["</s>"]

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self._ids["<pad>"]

    def encode(self, text: str) -> list[int]:
        """Text to ids: max_length of them if they are padded, else between 1 and max_length."""
        if not isinstance(text, str):
            raise TextError(f"a caption must be text, got {type(text).__name__}: {text!r:.80}")
        ids = [*self._encode(text)[: self.max_length - 1], self.eos_id]
        return ids + [self.pad_id] * (self.max_length - len(ids)) if self.pad else ids

    def length(self, text: str) -> int:
        """Ids of the whole text, the end token included."""
        return 1 + len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        text = clean_prompt(text) if self.clean else text
        with library_errors():
            return self._backend.encode(valid_text(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, without special tokens and padding."""
        with library_errors():
            return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer's file, whole or not at all."""
        write_model(self.model, path)

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def clean_prompt(text: str) -> str:
    """Fix mis-decoded text, resolve HTML entities (twice: "&amp;lt;" is "<"), and make white space single.

    The order and the library (ftfy) are those of Wan's pipelines, so that ids come out the same.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip()


def load_t5_tokenizer(
    path: str | Path, *, max_length: int = 512, pad: bool = True, clean: bool = True, extra_ids: int | None = None
) -> T5Tokenizer:
    """Read a T5's tokenizer.

    Args:
        path: its file, or the folder of it: spiece.model or tokenizer.model (sentencepiece), else tokenizer.json.
        max_length, pad, clean: see T5Tokenizer.
        extra_ids: sentinels after the pieces of a sentencepiece file. None: what tokenizer_config.json beside it says,
            or 100. A tokenizer.json lists its own.

    Raises:
        TextError: the file is missing, too large, damaged, or no tokenizer of a T5.
    """
    file = paths.local_weights(path, error=TextError)
    if file.is_dir():
        file = next((file / name for name in MODEL_NAMES if (file / name).is_file()), None)
        if file is None:
            raise TextError(f"{path}: holds none of {', '.join(MODEL_NAMES)}: add the model's tokenizer")
    model = read_bytes(file, limit=FILE_LIMIT, error=TextError, fix="give the model's tokenizer")
    if is_json(model):
        extra_ids = 0
    elif extra_ids is None:
        extra_ids = _extra_ids(file.with_name("tokenizer_config.json"))
    try:
        return T5Tokenizer(model=model, max_length=max_length, pad=pad, clean=clean, extra_ids=extra_ids)
    except TextError as error:
        raise TextError(f"{file}: {error}") from None


def make_tokenizer(config: TextConfig, path: str | Path) -> Tokenizer:
    """Read the tokenizer of a text config from its file (a T5's also from its folder)."""
    if config.t5 is None:
        return load_tokenizer(path, max_length=config.max_length)
    return load_t5_tokenizer(path, max_length=config.max_length, pad=config.t5.pad, extra_ids=config.t5.extra_ids)


def is_json(model: bytes) -> bool:
    """Whether a tokenizer's file is a tokenizer.json. A sentencepiece model begins with a field's number instead."""
    return model[:1] == b"{"


def _from_sentencepiece(data: bytes) -> _Pieces:
    proto = parse_model(data)
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise TextError("not the model of a T5: its pieces are not of sentencepiece's unigram kind")
    return _Pieces(
        scored=_scored((piece.piece, piece.score) for piece in proto.pieces),
        special=[piece.piece for piece in proto.pieces if piece.type in (_CONTROL, _USER_DEFINED)],
        charsmap=proto.normalizer_spec.precompiled_charsmap,
    )


def _from_json(data: bytes) -> _Pieces:
    """What transformers takes of a T5's tokenizer.json; its other parts are those of every T5."""
    json = parse_json(data, name="tokenizer.json", error=TextError, fix="download the file again")
    try:
        model, normalizer = json["model"], json.get("normalizer") or {}
        if model.get("type", "Unigram") != "Unigram":
            raise TextError(f"not the model of a T5: its type is {model['type']!r:.40}, must be 'Unigram'")
        scored = _scored((piece, score) for piece, score in model["vocab"])
        known, special = {piece for piece, _ in scored}, []
        for token in sorted(json.get("added_tokens") or (), key=lambda token: token["id"]):
            special.append(token["content"])
            if token["content"] in known:
                continue
            if token["id"] != len(scored):
                raise TextError(f"added token {token['content']!r:.40} has id {token['id']}, must be {len(scored)}")
            scored.append((token["content"], 0.0))
        found = [normalizer, *normalizer.get("normalizers", ())]
        charsmaps = [part["precompiled_charsmap"] for part in found if part.get("type") == "Precompiled"]
        charsmap = base64.b64decode(charsmaps[0]) if charsmaps else b""
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        raise TextError("tokenizer.json has no model, vocab or normalizer as a T5's: download the file again") from None
    if not all(isinstance(token, str) for token in special):
        raise TextError("tokenizer.json has an added token that is no text: download the file again")
    return _Pieces(scored=scored, special=special, charsmap=charsmap)


def _scored(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[str, float]]:
    scored = []
    for piece, score in pairs:
        if not isinstance(piece, str) or isinstance(score, bool) or not math.isfinite(score):
            raise TextError("not a tokenizer: a piece is no text, or its score is no number")
        scored.append((piece, float(score)))
        if len(scored) > MOST_PIECES:
            raise TextError(f"a tokenizer of more than {MOST_PIECES} pieces: give the right file")
    return scored


@contextlib.contextmanager
def library_errors() -> Iterator[None]:
    """What the Rust library raises on a broken file, as a TextError; its panics derive from BaseException."""
    try:
        yield
    except TextError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TextError(f"the tokenizer's file is damaged ({reason}): download it again") from None


def _extra_ids(config: Path) -> int:
    if not config.is_file():
        return EXTRA_IDS
    values = read_json(config, limit=CONFIG_LIMIT, error=TextError, fix="restore the file")
    if not isinstance(values, dict):
        raise TextError(f"{config}: is not a JSON object: restore the file")
    value = values.get("extra_ids", EXTRA_IDS)
    if type(value) is not int or not 0 <= value <= MOST_EXTRA_IDS:
        raise TextError(f"{config}: extra_ids {value!r:.80} must be a whole number from 0 to {MOST_EXTRA_IDS}")
    return value
