"""Captions to token ids: sentencepiece models, given or trained from captions; and class labels in their place.

    tokenizer = train_tokenizer(captions, "tokenizer.model", vocab_size=4096)
    ids = tokenizer.encode("a red circle")
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import math
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import sentencepiece

from vdit.errors import TextError, VditWarning, reason
from vdit.models.text.config import TextConfig
from vdit.paths import MIB, read_bytes, write_atomic
from vdit.reprs import short_repr

# Unknown, begin, end, and one piece for each byte, so that any text can be encoded.
SPECIAL_PIECES = 3 + 256
MIN_ROOM = 4  # pieces besides these, of which half at most are single characters
MODEL_LIMIT = 8 * MIB  # bytes of a .model file; umT5's has 4.5 MB for 256,000 pieces
MOST_PIECES = 1 << 20


class Tokenizer(Protocol):
    """What the data pipeline and the sampler need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are in [0, vocab_size)."""

    @property
    def max_length(self) -> int:
        """The most ids that `encode` returns."""

    def encode(self, text: str) -> list[int]:
        """Between 1 and max_length ids: what the text encoder sees. That of "" is the empty prompt."""

    def length(self, text: str) -> int:
        """How many ids the whole text has, padding apart; where they are more than max_length, `encode` cuts it."""


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    """A sentencepiece model; plain bytes, so it compares, pickles and goes into a checkpoint.

    Every encoding begins with the model's BOS. A model without BOS (T5's) begins with its control piece of the lowest
    id (T5: the padding piece), and one without any control piece with its unknown piece. No end token is added.

    Attributes:
        model: content of the .model file.
        max_length: the most ids of an encoding. Longer text is cut at its end.

    Raises:
        TextError: the model is none, or max_length is below 1.
    """

    model: bytes = dataclasses.field(repr=False)
    max_length: int = 64

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise TextError(f"max_length {self.max_length} must be at least 1")
        # Before the library sees it, which takes any number of empty pieces.
        if len(parse_model(self.model).pieces) != self._processor.vocab_size():
            raise TextError("not a sentencepiece model: its pieces cannot be counted")

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(self.model)
        except (RuntimeError, OSError):
            raise TextError("not a sentencepiece model: it does not parse as one") from None
        return processor

    @functools.cached_property
    def first(self) -> int:
        """The id that every encoding begins with."""
        processor = self._processor
        if processor.bos_id() >= 0:
            return processor.bos_id()
        controls = (i for i in range(self.vocab_size) if processor.is_control(i))
        return next(controls, processor.unk_id())

    @property
    def vocab_size(self) -> int:
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Text to ids: `first`, then the pieces, at most max_length in all."""
        if not isinstance(text, str):
            raise TextError(f"a caption must be text, got {type(text).__name__}: {text!r:.80}")
        return [self.first, *self._processor.encode(valid_text(text))][: self.max_length]

    def length(self, text: str) -> int:
        """Ids of the whole text, `first` included."""
        return 1 + len(self._processor.encode(valid_text(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, special tokens left out; the inverse of `encode` up to the model's normalisation."""
        return self._processor.decode([int(i) for i in ids])

    def save(self, path: str | Path) -> None:
        """Writes the .model file, whole or not at all."""
        write_model(self.model, path)

    def __getstate__(self) -> dict[str, object]:
        return {"model": self.model, "max_length": self.max_length}


def write_model(model: bytes, path: str | Path) -> None:
    """Write a tokenizer's file, whole or not at all, and create its folder.

    Raises:
        TextError: it cannot be written.
    """
    try:
        write_atomic(path, model)
    except OSError as error:
        raise TextError(f"{path}: cannot write the tokenizer: {reason(error)}") from None


def parse_model(data: bytes):
    """Parse a sentencepiece model.

    Args:
        data: content of a .model file, at most MODEL_LIMIT bytes.

    Returns:
        A ModelProto with the fields of `_PROTO`, of 1 to MOST_PIECES pieces, each of valid text.

    Raises:
        TextError: it does not parse as one.
    """
    from google.protobuf.message import DecodeError

    proto = _model_proto()()
    if len(data) > MODEL_LIMIT:
        raise TextError(f"a sentencepiece model of {len(data)} bytes, at most {MODEL_LIMIT}: give the right file")
    try:
        proto.ParseFromString(data)
        if len(proto.pieces) > MOST_PIECES:
            raise TextError(f"a sentencepiece model of more than {MOST_PIECES} pieces: give the right file")
        if not all(math.isfinite(piece.score) for piece in proto.pieces if piece.piece is not None):
            raise TextError("not a sentencepiece model: the score of a piece is not a number")
    except (DecodeError, UnicodeDecodeError):
        raise TextError("not a sentencepiece model: it does not parse as one") from None
    if not proto.pieces:
        raise TextError("not a sentencepiece model: it has no pieces")
    return proto


# What is read of sentencepiece_model.proto: message -> field -> (number, type, default).
_PROTO = {
    "SentencePiece": {"piece": (1, "string", ""), "score": (2, "float", ""), "type": (3, "int32", "1")},
    "TrainerSpec": {"model_type": (3, "int32", "1")},
    "NormalizerSpec": {"precompiled_charsmap": (2, "bytes", "")},
    "ModelProto": {
        "pieces": (1, "SentencePiece", ""),
        "trainer_spec": (2, "TrainerSpec", ""),
        "normalizer_spec": (3, "NormalizerSpec", ""),
    },
}


@functools.cache
def _model_proto():
    """The class of ModelProto.

    Built here, because the one that the sentencepiece package ships loads only with the newest protobuf.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vdit/sentencepiece_model.proto", package="vdit", syntax="proto2")
    for message, fields in _PROTO.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, default) in fields.items():
            field = described.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
            if kind in _PROTO:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".vdit.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if default:
                field.default_value = default
            if name == "pieces":
                field.label = kinds.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vdit.ModelProto"))


def load_tokenizer(path: str | Path, *, max_length: int = 64) -> SentencePieceTokenizer:
    """Read a sentencepiece .model file of any name.

    Args:
        path: the file.
        max_length: the most ids of an encoding.

    Returns:
        The tokenizer.

    Raises:
        TextError: the file is missing, too large, or no sentencepiece model.
    """
    model = read_bytes(path, limit=MODEL_LIMIT, error=TextError, fix="give the model's sentencepiece file")
    try:
        return SentencePieceTokenizer(model=model, max_length=max_length)
    except TextError as error:
        raise TextError(f"{path}: {error}") from None


def train_tokenizer(
    captions: Iterable[str], path: str | Path | None = None, *, vocab_size: int = 4096, max_length: int = 64
) -> SentencePieceTokenizer:
    """Train byte-pair pieces on captions.

    The same captions in any order give the same bytes. Text is put in Unicode's NFKC form with runs of white space as
    one space.

    Args:
        captions: texts.
        path: where to write the model. None: nowhere.
        vocab_size: the most pieces; a small corpus gives as many as it has.
        max_length: the most ids of an encoding.

    Returns:
        The tokenizer.

    Raises:
        TextError: there is no caption with a letter in it, vocab_size is too small, or the file cannot be written.
    """
    room = vocab_size - SPECIAL_PIECES
    if room < MIN_ROOM:
        least = SPECIAL_PIECES + MIN_ROOM
        rule = f"must be at least {least}: bytes and specials take {SPECIAL_PIECES}"
        raise TextError(f"vocab_size {vocab_size} {rule}")
    lines = list(filter(None, map(_normal, captions)))
    lines = _spell_rare_in_bytes(lines, room // 2)
    if not lines:
        raise TextError("cannot train a tokenizer: there is no caption with a letter in it")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            # A limit that is not hard lets a small corpus give fewer pieces. Byte pairs rather than the
            # library's default model: on few captions they still find whole words.
            hard_vocab_limit=False,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Longer lines would be left out in silence.
            max_sentence_length=max(10, *(4 * len(line) for line in lines)),
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        words = " ".join(str(error).split())
        raise TextError(f"cannot train a tokenizer of {vocab_size} pieces: {words}") from None
    tokenizer = SentencePieceTokenizer(model=model.getvalue(), max_length=max_length)
    if path is not None:
        tokenizer.save(path)
    return tokenizer


def warn_of_cuts(tokenizer: Tokenizer, texts: Iterable[str], *, limit: int, name: str = "prompt") -> None:
    """Give a VditWarning for each text that has more than `limit` ids: the model does not see what follows them.

    Args:
        tokenizer: of the model.
        texts: to check.
        limit: ids that the model reads.
        name: what the texts are, for the message.
    """
    for text in texts:
        if len(text.encode("utf-8", errors="replace")) + 2 <= limit:
            continue  # each id but the first and the last stands for a byte or more
        count = tokenizer.length(text)
        if count > limit:
            kept = kept_text(tokenizer, text, limit=limit)
            where = f"after {kept[-40:]!r}" if kept else "at its beginning"
            warnings.warn(
                f"the {name} {text[:30]!r}... is cut {where}: it has {count} pieces, and this model reads {limit}; "
                f"the last {len(text) - len(kept)} of its {len(text)} characters have no effect",
                VditWarning,
                stacklevel=3,
            )


def kept_text(tokenizer: Tokenizer, text: str, *, limit: int) -> str:
    """The longest beginning of a text that has at most `limit` ids."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokenizer.length(text[:middle]) <= limit else (low, middle - 1)
    return text[:low]


def fit_vocabulary(config: TextConfig, tokenizer: Tokenizer) -> TextConfig:
    """Give a config an embedding table of just the tokenizer's size; a T5's stays as its weights have it.

    Raises:
        TextError: the tokenizer has more ids than the T5's table has rows.
    """
    if config.t5 is not None:
        if tokenizer.vocab_size > config.t5.vocab_size:
            rule = f"more than text.t5.vocab_size={config.t5.vocab_size}: it is another model's"
            raise TextError(f"the tokenizer has {tokenizer.vocab_size} ids, {rule}")
        return config
    return dataclasses.replace(config, vocab_size=tokenizer.vocab_size)


def valid_text(text: str) -> str:
    """Replace half a surrogate pair, which has no UTF-8 form, by "?"."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _normal(caption: str) -> str:
    # Control characters and the library's own mark for a space are no use as pieces.
    text = unicodedata.normalize("NFKC", valid_text(caption)).replace("\u2581", " ")
    text = "".join(char if unicodedata.category(char) != "Cc" else " " for char in text)
    return " ".join(text.split())


def _spell_rare_in_bytes(lines: list[str], kinds: int) -> list[str]:
    """Lines with all but the `kinds` commonest characters as spaces, and without lines that this empties.

    Each character that is trained on takes a piece, and a script can have more of them than there is
    room for; what is left out here is spelled in bytes when it is encoded.
    """
    counts = collections.Counter(char for line in lines for char in line if char != " ")
    if len(counts) <= kinds:
        return lines
    common = {char for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:kinds]}
    kept = (" ".join("".join(c if c in common else " " for c in line).split()) for line in lines)
    return [line for line in kept if line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelTokenizer:
    """Class labels in the place of texts, for models that are conditioned on a class and no caption.

    A prompt is a class: its number, or its name; "" is no class. Its one token is the label, from 1.

    Attributes:
        classes: how many there are.
        first: the number of the first class in prompts (ImageNet's classes count from 0).
        names: of each class, in order; where a name has commas, each part is a name.
        max_length: ids of an encoding.
    """

    classes: int
    first: int = 1
    names: tuple[str, ...] = ()
    max_length: int = 1

    @property
    def vocab_size(self) -> int:
        return self.classes + 1

    def encode(self, text: str) -> list[int]:
        prompt = text.strip()
        if not prompt:
            return [0]
        label = int(prompt) - self.first + 1 if prompt.isdecimal() else self._labels.get(prompt.lower(), 0)
        if not 1 <= label <= self.classes:
            named = "or a class's name, " if self.names else ""
            rule = f'give "{self.first}" to "{self.first + self.classes - 1}", {named}or "" for none'
            raise TextError(f"prompt {text!r}: this model generates from a class, {rule}")
        return [label]

    def length(self, text: str) -> int:
        return len(self.encode(text))

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        parts = [(part.strip().lower(), i + 1) for i, name in enumerate(self.names) for part in name.split(",")]
        # The first class keeps a name that two of them share, so that a name means one class.
        return dict(reversed(parts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoText:
    """For training a model of classes: labels travel beside the captions, which are not read."""

    vocab_size: int = 1
    max_length: int = 1

    def encode(self, text: str) -> list[int]:
        return [0]

    def length(self, text: str) -> int:
        return 1
