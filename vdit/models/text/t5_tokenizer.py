"""The tokenizer of T5 and umT5, from the model's own sentencepiece file."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vdit.errors import TextError
from vdit.models.text.clean import clean_prompt
from vdit.models.text.config import TextConfig
from vdit.models.text.spiece import (
    CONTROL,
    UNIGRAM,
    USER_DEFINED,
    Charsmap,
    PieceModel,
    read_model_file,
    read_piece_model,
)
from vdit.models.text.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer, valid_text, write_model
from vdit.paths import MIB, read_json
from vdit.reprs import short_repr

MODEL_NAMES = ("spiece.model", "tokenizer.model")
EXTRA_IDS, MOST_EXTRA_IDS = 100, 4096
CONFIG_LIMIT = 4 * MIB  # of tokenizer_config.json, which may describe each of thousands of added tokens
_SPACE = "\u2581"  # how sentencepiece writes the space before a word
# What Unicode calls white space; Python's \s has four control characters more.
_WORDS = re.compile("[^\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_UNKNOWN_PENALTY = 10.0
_UNKNOWN = 2


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Tokenizer:
    """A prompt's ids as `transformers` gives them: its pieces, the end token, and padding up to max_length.

    model: bytes of the .model file; plain data, so a tokenizer compares, pickles and goes into a checkpoint.
    max_length: of the encoding, the end token included; longer prompts are cut before it.
    pad: whether every encoding is padded to max_length, as in Wan. "" is the end token, and padding.
    clean: whether prompts are cleaned as Wan does it (vdit.models.text.clean).
    extra_ids: how many sentinels "<extra_id_0>", ... have ids after the model's own pieces (umT5: 300).

    Where transformers and the sentencepiece library disagree, this follows transformers, whose ids Wan is run
    with: special tokens that a prompt spells out ("</s>") are those tokens; white space is dropped before
    anything is looked up; the normaliser is applied by grapheme clusters (see spiece.Charsmap); a run of unknown
    characters is one id, 2, even where the model could spell them in bytes or calls another piece unknown.
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
        SentencePieceTokenizer(model=self.model)  # refuses what is no model
        model = self._model
        if model.algorithm != UNIGRAM:
            raise TextError("not the model of a T5: its pieces are not of sentencepiece's unigram kind")
        missing = [piece for piece in ("<pad>", "</s>", "<unk>") if piece not in model.pieces]
        if missing:
            raise TextError(f"not the model of a T5: it has no piece {', '.join(missing)}")
        if self.extra_ids and any(piece.startswith("<extra_id_") for piece in model.pieces):
            raise TextError(f"extra_ids {self.extra_ids} must be 0: the model has sentinel pieces of its own")

    @functools.cached_property
    def _model(self) -> PieceModel:
        return read_piece_model(self.model)

    @functools.cached_property
    def _vocabulary(self) -> dict[str, tuple[int, float]]:
        """piece -> (id, score)."""
        entries = {piece: (i, score) for i, (piece, score) in enumerate(zip(self._model.pieces, self._model.scores))}
        last = len(self._model.pieces) + self.extra_ids - 1
        return entries | {f"<extra_id_{i}>": (last - i, 0.0) for i in range(self.extra_ids)}

    @functools.cached_property
    def _specials(self) -> re.Pattern:
        """Matches the pieces that are never text; of several at one place the longest."""
        typed = (piece for piece, kind in zip(self._model.pieces, self._model.types) if kind in (CONTROL, USER_DEFINED))
        extra = (f"<extra_id_{i}>" for i in range(self.extra_ids))
        names = sorted({"<pad>", "</s>", "<unk>", *typed, *extra}, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})")

    @functools.cached_property
    def _normalise(self) -> Callable[[str], str]:
        return Charsmap(self._model.charsmap) if self._model.charsmap else str

    @functools.cached_property
    def _segment(self) -> Callable[[str], tuple[int, ...]]:
        """ids of a word with its space; words come again, so the last ones are kept."""
        vocabulary = self._vocabulary
        longest = max(map(len, vocabulary))
        unknown = min(score for _, score in vocabulary.values()) - _UNKNOWN_PENALTY
        return functools.lru_cache(1 << 16)(lambda word: best_pieces(word, vocabulary, longest, unknown))

    @property
    def vocab_size(self) -> int:
        """Ids are below it: the model's own pieces, and the sentinels."""
        return len(self._model.pieces) + self.extra_ids

    @property
    def eos_id(self) -> int:
        return self._vocabulary["</s>"][0]

    @property
    def pad_id(self) -> int:
        return self._vocabulary["<pad>"][0]

    def encode(self, text: str) -> list[int]:
        """Text to ids: max_length of them if they are padded, else between 1 and max_length."""
        if not isinstance(text, str):
            raise TextError(f"a caption must be text, got {type(text).__name__}: {text!r:.80}")
        ids = self._pieces(clean_prompt(text) if self.clean else valid_text(text))
        ids = [*ids[: self.max_length - 1], self.eos_id]
        return ids + [self.pad_id] * (self.max_length - len(ids)) if self.pad else ids

    def length(self, text: str) -> int:
        """Ids of the whole text, the end token included."""
        return 1 + len(self._pieces(clean_prompt(text) if self.clean else valid_text(text)))

    def _pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._specials.split(text)):
            if i % 2:
                ids.append(self._vocabulary[part][0])
                continue
            for word in _WORDS.findall(self._normalise(part)):
                # Each word begins with a space, and so does what follows a space that was spelled out.
                spelled = word if word.startswith(_SPACE) else _SPACE + word
                for piece in re.findall(f"{_SPACE}[^{_SPACE}]*", spelled):
                    ids += self._segment(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, without special tokens and padding."""
        pieces = self._model.pieces
        known = (int(i) for i in ids)
        kept = (pieces[i] for i in known if i < len(pieces) and not self._specials.fullmatch(pieces[i]))
        return "".join(kept).replace(_SPACE, " ").strip()

    def save(self, path: str | Path) -> None:
        """Writes the .model file, whole or not at all."""
        write_model(self.model, path)

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def best_pieces(word: str, vocabulary: dict[str, tuple[int, float]], longest: int, unknown: float) -> tuple[int, ...]:
    """Ids of the pieces of `word` with the greatest sum of scores (Kudo, 2018), in float64.

    vocabulary: piece -> (id, score); longest: characters of the longest piece; unknown: score of a character
    that is no piece. A run of these gives one id. Ties go to the earlier start, as in the `tokenizers` library.
    """
    n = len(word)
    best: list[float | None] = [0.0] + [None] * n
    start, token = [0] * (n + 1), [_UNKNOWN] * (n + 1)
    for i in range(n):
        here = best[i]
        alone = False
        for j in range(i + 1, min(n, i + longest) + 1):
            entry = vocabulary.get(word[i:j])
            if entry is None:
                continue
            alone |= j == i + 1
            score = here + entry[1]
            if best[j] is None or score > best[j]:
                best[j], start[j], token[j] = score, i, entry[0]
        if not alone and (best[i + 1] is None or here + unknown > best[i + 1]):
            best[i + 1], start[i + 1], token[i + 1] = here + unknown, i, _UNKNOWN
    ids: list[int] = []
    while n:
        if not (token[n] == _UNKNOWN and ids and ids[-1] == _UNKNOWN):
            ids.append(token[n])
        n = start[n]
    return tuple(reversed(ids))


def load_t5_tokenizer(
    path: str | Path, *, max_length: int = 512, pad: bool = True, clean: bool = True, extra_ids: int | None = None
) -> T5Tokenizer:
    """Reads a T5's tokenizer from its .model file, or from the folder of it (spiece.model or tokenizer.model).

    extra_ids: None for what tokenizer_config.json beside the file says, or 100.
    """
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in MODEL_NAMES if (file / name).is_file()), None)
        if file is None:
            there = "tokenizer.json, but no " if (Path(path) / "tokenizer.json").is_file() else "neither "
            raise TextError(f"{path}: holds {there}{' nor '.join(MODEL_NAMES)}: add the model's sentencepiece file")
    model = read_model_file(file)
    if extra_ids is None:
        extra_ids = _extra_ids(file.with_name("tokenizer_config.json"))
    try:
        return T5Tokenizer(model=model, max_length=max_length, pad=pad, clean=clean, extra_ids=extra_ids)
    except TextError as error:
        raise TextError(f"{file}: {error}") from None


def make_tokenizer(config: TextConfig, path: str | Path) -> Tokenizer:
    """The tokenizer of a text config, from its .model file (a T5's also from its folder)."""
    if config.t5 is None:
        return load_tokenizer(path, max_length=config.max_length)
    return load_t5_tokenizer(path, max_length=config.max_length, pad=config.t5.pad, extra_ids=config.t5.extra_ids)


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
