"""Generation: rows are independent, seeds decide, the cache changes nothing, top-p is transformers'."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdit.errors import ConfigError, ShapeError
from vdit.models.lm.config import LMConfig, llama3_divisors, lm_preset
from vdit.models.lm.generate import Decoding, extend, generate, nucleus, pad_prompts, start
from vdit.models.lm.model import KVCache, LanguageModel

CONFIG = LMConfig(vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48, context=64)
MODEL = LanguageModel(CONFIG)
PROMPTS = ([3, 7, 11, 4, 9], [5], [1, 2, 3])


@pytest.fixture(scope="module")
def params():
    one = np.ones((1, 1), np.int32)
    params = nn.meta.unbox(MODEL.init(jax.random.key(0), one, one, one)["params"])
    # Lively: logits that differ by a few.
    return jax.tree.map(lambda x: x * 2.5 if x.ndim > 1 else x, params) | {
        "embed": {"embedding": 20 * params["embed"]["embedding"]}
    }


@jax.jit
def run(params, inputs, position, segment_ids):
    hidden = MODEL.apply({"params": params}, inputs, position, segment_ids).hidden
    return MODEL.apply({"params": params}, hidden, method="logits")


def places(shape):
    return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)


def test_no_token_depends_on_a_later_one_or_on_another_text(params):
    """By gradients: the logits of token 4 of the first text, in a row of two texts and padding."""
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 50, (1, 12)))
    segment_ids = np.asarray([[1] * 6 + [2] * 4 + [0] * 2], np.int32)
    position = np.asarray([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0]], np.int32)
    embeddings = MODEL.apply({"params": params}, ids, method="embed_tokens")
    for token, reads in ((3, range(4)), (8, range(6, 9))):
        pull = jax.grad(lambda x, token=token: run(params, x, position, segment_ids)[0, token].sum())(embeddings)
        moved = np.abs(np.asarray(pull[0])).max(-1) > 1e-7
        assert set(np.flatnonzero(moved)) == set(reads)


def test_a_text_gives_the_same_wherever_it_lies(params):
    ids = np.asarray([[9, 8, 7, 3, 4, 5]], np.int32)
    alone = run(params, ids[:, 3:], places((1, 3)), np.ones((1, 3), np.int32))
    packed = run(params, ids, np.asarray([[0, 1, 2, 0, 1, 2]]), np.asarray([[1, 1, 1, 2, 2, 2]]))
    np.testing.assert_allclose(packed[:, 3:], alone, atol=2e-5)


def test_ids_and_their_embeddings_are_one(params):
    ids = np.asarray([[9, 8, 7]], np.int32)
    embeddings = MODEL.apply({"params": params}, ids, method="embed_tokens")
    ones = np.ones((1, 3), np.int32)
    np.testing.assert_array_equal(run(params, ids, places((1, 3)), ones), run(params, embeddings, places((1, 3)), ones))


def test_the_cache_changes_nothing(params):
    """In pieces of any size, with free slots after, a text's hidden states are those of the whole."""
    ids = np.random.default_rng(1).integers(0, 50, (2, 10)).astype(np.int32)
    position, ones = places((2, 10)), np.ones((2, 10), np.int32)
    apply = jax.jit(lambda *row, cache=None: MODEL.apply({"params": params}, *row, cache=cache))
    whole = apply(ids, position, ones).hidden
    cache, found = KVCache.empty(CONFIG, 2, 14), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        out = apply(ids[:, part], position[:, part], ones[:, part], cache=cache)
        cache = out.cache
        found.append(out.hidden)
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=2e-5)
    assert int(cache.used) == 10
    with pytest.raises(ShapeError, match="slots"):
        MODEL.apply({"params": params}, ids, position, ones, cache=KVCache.empty(CONFIG, 2, 9))


def greedy(params, prompt, count):
    """Without a cache, one whole row after the other."""
    ids = list(prompt)
    for _ in range(count):
        row = np.zeros((1, 24), np.int32)
        row[0, : len(ids)] = ids
        real = (np.arange(24) < len(ids)).astype(np.int32)[None]
        ids.append(int(np.argmax(run(params, row, places((1, 24)), real)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_greedy_rows_are_what_whole_rows_say(params):
    made = generate(MODEL, params, pad_prompts(PROMPTS, tokens=8), Decoding.make(3, max_tokens=12), max_tokens=12)
    for row, prompt in enumerate(PROMPTS):
        assert np.asarray(made.tokens)[row].tolist() == greedy(params, prompt, 12)
    assert np.asarray(made.length).tolist() == [12] * 3
    assert not np.asarray(made.stopped).any()


def test_a_row_does_not_depend_on_the_rows_beside_it(params):
    decoding = Decoding.make(3, max_tokens=12, temperature=1.0, seed=5)
    decoding = dataclasses.replace(decoding, seed=np.asarray([[0, 5], [0, 6], [0, 7]], np.uint32))
    together = np.asarray(generate(MODEL, params, pad_prompts(PROMPTS, tokens=8), decoding, max_tokens=12).tokens)
    for row, prompt in enumerate(PROMPTS):
        one = Decoding.make(1, max_tokens=12, temperature=1.0, seed=5 + row)
        alone = generate(MODEL, params, pad_prompts([prompt], tokens=8), one, max_tokens=12)
        assert np.asarray(alone.tokens)[0].tolist() == together[row].tolist()


def test_seeds_decide_both_halves_of_them(params):
    def tokens(seed):
        decoding = Decoding.make(1, max_tokens=12, temperature=1.5, seed=seed)
        return np.asarray(generate(MODEL, params, pad_prompts([[3, 4]], tokens=8), decoding, max_tokens=12).tokens)

    assert tokens(1).tolist() == tokens(1).tolist()
    assert len({str(tokens(seed)) for seed in (0, 1, 2, 2**32, 2**32 + 1)}) == 5


def test_stop_tokens_limits_and_pieces(params):
    prompts = pad_prompts(PROMPTS, tokens=8)
    free = np.asarray(generate(MODEL, params, prompts, Decoding.make(3, max_tokens=12), max_tokens=12).tokens)
    stop = int(free[0, 4])
    decoding = Decoding.make(3, max_tokens=9, stop_ids=[stop])
    made = generate(MODEL, params, prompts, decoding, max_tokens=12)
    ends = [list(row).index(stop) if stop in list(row[:9]) else 9 for row in free]
    assert np.asarray(made.length).tolist() == ends
    assert np.asarray(made.stopped).tolist() == [end < 9 for end in ends]
    state = start(MODEL, params, prompts, Decoding.make(3, max_tokens=12), max_tokens=12)
    for steps in (1, 5, 2, 9):
        state = extend(MODEL, params, state, Decoding.make(3, max_tokens=12), steps)
    np.testing.assert_array_equal(state.tokens, free)


def test_probabilities_are_those_of_the_tokens(params):
    made = generate(MODEL, params, pad_prompts([[3, 4]], tokens=4), Decoding.make(1, max_tokens=3), max_tokens=3)
    ids = [3, 4, *np.asarray(made.tokens)[0].tolist()]
    logits = run(params, np.asarray([ids], np.int32), places((1, 5)), np.ones((1, 5), np.int32))
    want = sum(jax.nn.log_softmax(logits[0, i])[ids[i + 1]] for i in (1, 2, 3))
    assert float(made.logprob[0]) == pytest.approx(float(want), abs=1e-4)


def test_samples_follow_the_probabilities():
    """20,000 draws at temperature 2 against softmax(logits / 2)."""
    from vdit.models.lm.generate import sample_token

    logits = np.broadcast_to(np.asarray([0.0, 1.0, 2.0, -1.0], np.float32), (20_000, 4))
    decoding = Decoding.make(20_000, max_tokens=1, temperature=2.0)
    decoding = dataclasses.replace(decoding, seed=np.stack([np.zeros(20_000), np.arange(20_000)], 1).astype(np.uint32))
    counts = np.bincount(np.asarray(sample_token(jnp.asarray(logits), decoding, 0)), minlength=4) / 20_000
    np.testing.assert_allclose(counts, jax.nn.softmax(logits[0] / 2), atol=0.015)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_what_transformers_keeps(top_p):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(8, 500)).astype(np.float32) * 3
    kept = np.asarray(nucleus(jnp.asarray(logits), jnp.full(8, top_p)))
    want = transformers.TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy() > -np.inf
    if top_p == 1.0:
        assert kept.all()
    else:
        np.testing.assert_array_equal(kept, want)


def test_tokens_that_are_as_likely_are_all_kept():
    kept = np.asarray(nucleus(jnp.zeros((1, 7)), jnp.full(1, 0.1)))
    assert kept.all()


def test_llama3_divisors_keep_fast_turns_and_slow_the_others():
    divisors = llama3_divisors(64, 5e5, factor=32)
    assert divisors[0] == 1.0
    assert divisors[-1] == pytest.approx(32)
    assert list(divisors) == sorted(divisors)


@pytest.mark.parametrize(
    "change",
    [{"heads": 3}, {"head_dim": 7}, {"layers": 0}, {"rope_divisors": (1.0,)}, {"rope_theta": 0.0}, {"vocab_size": 0}],
)
def test_bad_configs_are_named(change):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(CONFIG, **change)
    assert next(iter(change)) in str(error.value)


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"seed": -1}])
def test_bad_options_are_named(wrong):
    with pytest.raises(ConfigError) as error:
        Decoding.make(1, **{"max_tokens": 4} | wrong)
    assert next(iter(wrong)) in str(error.value)


def test_what_is_too_long_is_refused_before_it_runs(params):
    with pytest.raises(ShapeError, match="64"):
        generate(MODEL, params, pad_prompts([[1]], tokens=40), Decoding.make(1, max_tokens=30), max_tokens=30)
    with pytest.raises(ShapeError):
        pad_prompts([[]])


def test_presets_are_public_models():
    sizes = {"llama-3.2-1b": 1235.8, "qwen2.5-0.5b": 494.0, "qwen3-0.6b": 596.0}
    for name, millions in sizes.items():
        model, one = LanguageModel(lm_preset(name)), np.ones((1, 1), np.int32)
        shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), one, one, one))
        assert sum(x.size for x in shapes) / 1e6 == pytest.approx(millions, abs=0.1), name
    with pytest.raises(ConfigError, match="gpt-5"):
        lm_preset("gpt-5")
