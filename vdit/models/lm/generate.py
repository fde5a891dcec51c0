"""Generation in fixed shapes: one program reads the prompts, one writes the next tokens; greedy, temperature, top-p.

Rows of a batch are independent: each has its own temperature, seed and limit, and its random numbers depend on its
seed and on how many tokens it has written, not on the rows beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdit.errors import ConfigError, ShapeError
from vdit.models.lm.model import KVCache, LanguageModel
from vdit.reprs import short_repr
from vdit.seeds import check_seed
from vdit.types import Array, PyTree

_NO_TOKEN = -1
_MASKED = -1e30


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a batch of texts begins with.

    Attributes:
        inputs: int32 [b n], token ids; or float [b n d], embeddings in their place. Shorter ones are filled up at their
            end with anything.
        length: int32 [b], tokens of each, at least 1.
    """

    inputs: Array
    length: Array


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How each row's next token is chosen.

    Attributes:
        temperature: float32 [b]; 0 takes the most likely token, above it tokens are drawn from softmax(logits / t).
        top_p: float32 [b] in (0, 1]: drawn from the likeliest tokens that together have this probability (Holtzman et
            al., 2020); a token as likely as the last of them belongs to them.
        seed: uint32 [b 2], of each row's random numbers: the upper and the lower half of 64 bits.
        limit: int32 [b], the most tokens that each row may write.
        stop_ids: int32 [k], tokens that end a text and are no part of it.
    """

    temperature: Array
    top_p: Array
    seed: Array
    limit: Array
    stop_ids: Array

    @classmethod
    def make(
        cls,
        rows: int,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> Decoding:
        """The same for every row.

        Raises:
            ConfigError: max_tokens, temperature, top_p or the seed is out of range.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
        if not 0 <= temperature < np.inf:
            raise ConfigError(f"temperature={temperature} must be 0 (the most likely token) or above")
        if not 0 < top_p <= 1:
            raise ConfigError(f"top_p={top_p} must be above 0 and at most 1")
        full = lambda value, dtype: np.full(rows, value, dtype)  # noqa: E731
        return cls(
            temperature=full(temperature, np.float32), top_p=full(top_p, np.float32),
            seed=np.full((rows, 2), divmod(check_seed(seed), 2**32), np.uint32),
            limit=full(max_tokens, np.int32), stop_ids=np.asarray([*stop_ids] or [_NO_TOKEN], np.int32),
        )  # fmt: skip


@jax.tree_util.register_dataclass
@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """What has been written, and what is needed to go on.

    Attributes:
        tokens: int32 [b s], the tokens of each row; after `length` anything.
        length: int32 [b], how many there are, without the token that ended the text.
        done: bool [b], whether the row has ended: by a token of `stop_ids`, at its limit, or by the caller.
        stopped: bool [b], whether such a token ended it.
        logprob: float32 [b], sum of the log-probabilities of its tokens, at temperature 1.
        start: int32 [b], tokens of its prompt. count: int32 [], tokens that unfinished rows have. cache: of the model.
    """

    tokens: Array
    length: Array
    done: Array
    stopped: Array
    logprob: Array
    start: Array
    count: Array
    cache: KVCache


def pad_prompts(ids: Sequence[Sequence[int]], *, rows: int | None = None, tokens: int | None = None) -> Prompts:
    """Token ids of several prompts as one batch of a fixed shape.

    Args:
        ids: of each prompt.
        rows: of the batch; the rows that are left over hold one token. None: as many as there are prompts.
        tokens: of each row. None: as many as the longest has.

    Returns:
        The batch.

    Raises:
        ShapeError: a prompt is empty, or does not fit.
    """
    rows, tokens = rows or len(ids), tokens or max(map(len, ids), default=0)
    if not ids or min(map(len, ids)) < 1 or max(map(len, ids)) > tokens or len(ids) > rows:
        lengths = [len(one) for one in ids]
        raise ShapeError(f"prompts of {lengths} tokens must have 1 to {tokens} each, and be 1 to {rows}")
    inputs, length = np.zeros((rows, tokens), np.int32), np.ones(rows, np.int32)
    for row, one in enumerate(ids):
        inputs[row, : len(one)], length[row] = one, len(one)
    return Prompts(inputs=inputs, length=length)


def generate(
    model: LanguageModel, params: PyTree, prompts: Prompts, decoding: Decoding, *, max_tokens: int
) -> Generated:
    """Goes on with a batch of prompts until every row has ended.

    Pure and compiled once for each shape. The rows of `params`, `prompts` and the cache lie on the mesh in context
    (`jax.set_mesh`) as vdit/dist/rules.py says.

    Args:
        model: the network.
        params: its parameters.
        prompts: what the texts begin with.
        decoding: how tokens are chosen.
        max_tokens: tokens that there is room for; `decoding.limit` may be less.

    Returns:
        The tokens.

    Raises:
        ShapeError: prompt and answer together are longer than the model can count.
    """
    return extend(model, params, start(model, params, prompts, decoding, max_tokens=max_tokens), decoding, max_tokens)


def start(model: LanguageModel, params: PyTree, prompts: Prompts, decoding: Decoding, *, max_tokens: int) -> Generated:
    """Reads the prompts and chooses the first token of each row.

    Args:
        model, params, prompts, decoding, max_tokens: see `generate`.

    Returns:
        One token a row.

    Raises:
        ShapeError: see `generate`.
    """
    total = prompts.inputs.shape[1] + max_tokens
    if total > model.config.longest:
        rule = f"must be at most {model.config.longest}, what the model reads at once"
        raise ShapeError(f"prompts of {prompts.inputs.shape[1]} and answers of {max_tokens} tokens: {rule}")
    return _start(model, max_tokens, params, prompts, decoding)


def extend(model: LanguageModel, params: PyTree, state: Generated, decoding: Decoding, steps: int | Array) -> Generated:
    """Writes more tokens; ends early where every row has ended.

    Args:
        model, params, decoding: see `generate`.
        state: what there is; its memory is used again, so it is gone afterwards.
        steps: int32 [], how many more tokens at most.

    Returns:
        What there is then.
    """
    return _extend(model, params, state, decoding, jnp.int32(steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(model: LanguageModel, room: int, params: PyTree, prompts: Prompts, decoding: Decoding) -> Generated:
    rows, tokens = prompts.inputs.shape[:2]
    place = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (rows, tokens))
    real = (place < prompts.length[:, None]).astype(jnp.int32)
    cache = KVCache.empty(model.config, rows, tokens + room)
    out = model.apply({"params": params}, prompts.inputs, place * real, real, cache=cache)
    last = jnp.take_along_axis(out.hidden, prompts.length[:, None, None] - 1, axis=1)[:, 0]
    none = jnp.zeros(rows, jnp.int32)
    state = Generated(
        tokens=jnp.zeros((rows, room), jnp.int32), length=none, done=none > 0, stopped=none > 0,
        logprob=jnp.zeros(rows, jnp.float32), start=prompts.length.astype(jnp.int32), count=jnp.int32(0),
        cache=out.cache,
    )  # fmt: skip
    return _choose(state, decoding, model.apply({"params": params}, last, method="logits"))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _extend(model: LanguageModel, params: PyTree, state: Generated, decoding: Decoding, steps: Array) -> Generated:
    end = jnp.minimum(state.count + steps, state.tokens.shape[1])

    def go_on(state: Generated) -> Array:
        return (state.count < end) & ~jnp.all(state.done)

    def step(state: Generated) -> Generated:
        token = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, axis=1)
        place = (state.start + state.count - 1)[:, None]
        out = model.apply({"params": params}, token, place, jnp.ones_like(place), cache=state.cache)
        logits = model.apply({"params": params}, out.hidden[:, 0], method="logits")
        return _choose(dataclasses.replace(state, cache=out.cache), decoding, logits)

    return jax.lax.while_loop(go_on, step, state)


def _choose(state: Generated, decoding: Decoding, logits: Array) -> Generated:
    """The next token of each row from its logits [b v]."""
    token = sample_token(logits, decoding, state.count)
    ends = jnp.any(token[:, None] == decoding.stop_ids, -1)
    counts = ~state.done & ~ends
    length = state.length + counts
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
    return dataclasses.replace(
        state,
        tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.count)),
        length=length,
        done=state.done | ends | (length >= decoding.limit),
        stopped=state.stopped | (ends & ~state.done),
        logprob=state.logprob + jnp.where(state.done, 0.0, logprob),
        count=state.count + 1,
    )


def sample_token(logits: Array, decoding: Decoding, count: Any) -> Array:
    """Chooses a token for each row.

    Args:
        logits: float32 [b v].
        decoding: how.
        count: int [], how many tokens the rows have already.

    Returns:
        int32 [b].
    """
    likeliest = jnp.argmax(logits, -1).astype(jnp.int32)

    def draw() -> Array:
        scaled = logits / jnp.maximum(decoding.temperature, 1e-6)[:, None]
        scaled = jnp.where(nucleus(scaled, decoding.top_p), scaled, _MASKED)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.wrap_key_data(seed), count))(decoding.seed)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        drawn = jnp.argmax(scaled + noise, -1).astype(jnp.int32)
        return jnp.where(decoding.temperature > 0, drawn, likeliest)

    return jax.lax.cond(jnp.any(decoding.temperature > 0), draw, lambda: likeliest)


def nucleus(logits: Array, top_p: Array) -> Array:
    """Which tokens are the likeliest that together have a probability of at least top_p (Holtzman et al., 2020).

    The least probability among them is found by bisection over the bits of a float: positive floats are ordered as
    their bits are. That is exact, and needs no sorted vocabulary.

    Args:
        logits: float32 [b v].
        top_p: float32 [b]; from 1 on, all tokens.

    Returns:
        bool [b v].
    """
    p = jax.nn.softmax(logits, -1)
    bits = jax.lax.bitcast_convert_type(p, jnp.int32)

    def halve(_, ends):
        low, high = ends  # enough is as likely as `low`, too little as `high`
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle[:, None], p, 0.0), -1) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32)
    ends = jnp.zeros(p.shape[:1], jnp.int32), jnp.full(p.shape[:1], one + 1)
    least, _ = jax.lax.fori_loop(0, 31, halve, ends)
    return (bits >= least[:, None]) | (top_p >= 1)[:, None]
