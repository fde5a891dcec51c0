"""A small language model that expands prompts, trained on the short and detailed captions of a run.

It reads a prompt and writes a caption as the run's captions are. So that it understands what users type, and not only
the run's own short captions, half of its prompts are key words of a short caption, in order or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdit.errors import DataError
from vdit.experiment.optimizer import Muon
from vdit.experiment.training import TrainConfig
from vdit.language.words import important_words
from vdit.models.lm.config import LMConfig
from vdit.models.lm.model import LanguageModel
from vdit.models.lm.tokenizer import LMTokenizer, train_lm_tokenizer
from vdit.reprs import short_repr
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.types import Array, PyTree

SPECIAL = ("<|user|>", "<|answer|>", "<|end|>")
_ROWS, _LENGTHS = 16, (48, 96, 192, 384)  # texts of a batch; each length is compiled once


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpanderConfig:
    """Size and training of the language model.

    Attributes:
        width: of the model.
        layers: of the model.
        vocab_size: most tokens of its tokenizer.
        steps: optimizer steps of 16 pairs.
        learning_rate: the largest; it falls along a cosine.
        seed: of weights, order and key words.
    """

    width: int = 128
    layers: int = 3
    vocab_size: int = 512
    steps: int = 250
    learning_rate: float = 3e-3
    seed: int = 0

    def model(self, vocab_size: int) -> LMConfig:
        """The model for a tokenizer of so many tokens."""
        heads = max(1, self.width // 32)
        return LMConfig(
            vocab_size=vocab_size, width=self.width, layers=self.layers, heads=heads, kv_heads=heads, head_dim=32,
            mlp=3 * self.width, context=1024,
        )  # fmt: skip


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedExpander:
    """What training gives.

    Attributes:
        config: of the model.
        params: of the model.
        tokenizer: of its texts.
        losses: of each step.
        cut: pairs that were too long, and left out.
    """

    config: LMConfig
    params: PyTree
    tokenizer: LMTokenizer
    losses: list[float]
    cut: int


def caption_pairs(captions: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """(short, detailed) of every clip that has both; each pair once.

    Args:
        captions: of each clip, the short one first.
    """
    pairs = ((texts[0], long) for texts in captions for long in texts[1:] if texts[0] and long and long != texts[0])
    return list(dict.fromkeys(pairs))


def train_expander(
    pairs: Sequence[tuple[str, str]], config: ExpanderConfig, *, progress: Callable[[int, float], None] | None = None
) -> TrainedExpander:
    """Trains a tokenizer and a language model on pairs of captions.

    Args:
        pairs: (short, detailed).
        config: size and steps.
        progress: called with (steps done, loss).

    Returns:
        The model.

    Raises:
        DataError: there are fewer than 8 pairs, or all are too long.
    """
    if len(pairs) < 8:
        raise DataError(
            f"{len(pairs)} pairs of a short and a detailed caption are too few to learn from, 8 are needed: write "
            "detailed captions (vdit caption, or a column \"detailed\"), or expand with --lm or --endpoint"
        )
    tokenizer = train_lm_tokenizer((text for pair in pairs for text in pair), config.vocab_size, special=SPECIAL)
    encoded = [(short, tokenizer.encode(long)) for short, long in pairs]
    room = _LENGTHS[-1] // 4
    fitting = [(short, ids) for short, ids in encoded if len(ids) + 3 + room <= _LENGTHS[-1] + room
               and len(tokenizer.encode(short)) + len(ids) + 3 <= _LENGTHS[-1]]  # fmt: skip
    if not fitting:
        raise DataError(f"all {len(pairs)} pairs have more than {_LENGTHS[-1]} tokens: give shorter captions")
    model = LanguageModel(config.model(tokenizer.vocab_size))
    one = np.ones((1, 1), np.int32)
    warmup = min(20, config.steps // 2)
    optimizer = Muon(
        learning_rate=config.learning_rate, warmup_steps=warmup, schedule="cosine", final_scale=0.05, b2=0.98
    )
    settings = TrainConfig(steps=config.steps, batch_size=_ROWS, ema_decay=None, optimizer=optimizer)
    plan = plan_state(lambda key: model.init(key, one, one, one)["params"], settings, mesh=None)
    step = make_train_step(next_token_loss(model), plan)
    state, losses = plan.create(jax.random.key(config.seed)), []
    for number, batch in zip(range(config.steps), _batches(fitting, tokenizer, config.seed)):
        state, metrics = step(state, batch)
        if progress is not None and (number % 20 == 19 or number + 1 == config.steps):
            progress(number + 1, float(metrics["loss"]))
        losses.append(metrics["loss"])
    losses = [float(loss) for loss in losses]
    params = jax.tree.map(np.asarray, state.params)
    return TrainedExpander(config=model.config, params=params, tokenizer=tokenizer, losses=losses,
                           cut=len(encoded) - len(fitting))  # fmt: skip


def next_token_loss(model: LanguageModel):
    """The mean cross entropy of tokens that `weight` marks, each from those before it (batches of `_batches`)."""

    def loss(params: PyTree, batch: dict[str, Array], key: Array, step: Array):
        ids = batch["ids"]
        place = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        real = (place < batch["length"][:, None]).astype(jnp.int32)
        hidden = model.apply({"params": params}, ids, place * real, real).hidden
        logits = model.apply({"params": params}, hidden[:, :-1], method="logits")
        each = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
        weight = batch["weight"][:, 1:]
        total = jnp.maximum(weight.sum(), 1.0)
        return (each * weight).sum() / total, {"weight": total, "tokens": total}

    return loss


def _batches(
    pairs: Sequence[tuple[str, list[int]]], tokenizer: LMTokenizer, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches {"ids" [b n], "length" [b], "weight" [b n]}; weight marks the answer and its end."""
    rng = np.random.default_rng(seed)
    begin, answer, end = (tokenizer.id_of(token) for token in SPECIAL)
    while True:
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=_ROWS)]
        texts = [[begin, *tokenizer.encode(as_typed(short, rng)), answer] for short, _ in chosen]
        whole = [[*head, *ids, end] for head, (_, ids) in zip(texts, chosen)]
        longest = min(max(map(len, whole)), _LENGTHS[-1])
        n = next(length for length in _LENGTHS if length >= longest)
        ids, weight = np.zeros((_ROWS, n), np.int32), np.zeros((_ROWS, n), np.float32)
        length = np.array([min(len(one), n) for one in whole], np.int32)
        for row, (head, one) in enumerate(zip(texts, whole)):
            ids[row, : length[row]] = one[:n]
            weight[row, len(head) : length[row]] = 1
        yield {"ids": ids, "length": length, "weight": weight}


def as_typed(short: str, rng: np.random.Generator) -> str:
    """A short caption as a user may type it: as it is, or its key words, in their order or another."""
    kind = rng.random()
    if kind < 0.5:
        return short
    words = list(important_words(short)) or [short]
    if kind < 0.75:
        rng.shuffle(words)
    return " ".join(words)
