"""Properties of the T5 encoder: captions do not see each other, and padding is seen by none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdit.config import apply_overrides, from_json, to_json
from vdit.errors import ConfigError
from vdit.models.text import Encoder, T5Config, T5Encoder, TextConfig, drop_captions, make_encoder, t5_preset, t5_text
from vdit.models.text import t5 as t5_module

CONFIG = T5Config(vocab_size=50, width=32, heads=4, head_dim=8, mlp=48, layers=2, per_layer_bias=True)
LENGTHS = (5, 3, 7)


def pack(captions, length):
    """A row [1 length] of ids, clips and positions; the rest is padding."""
    ids, clip, position = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for i, caption in enumerate(captions, 1):
        end = start + len(caption)
        ids[0, start:end], clip[0, start:end], position[0, start:end] = caption, i, range(len(caption))
        start = end
    return ids, clip, position


@pytest.fixture(scope="module")
def captions():
    """Of ids 2..49, each with an end token and some padding, as a tokenizer that pads gives them."""
    rng = np.random.default_rng(0)
    return [[*rng.integers(2, 50, n), 1, *[0] * (n - 2)] for n in LENGTHS]


@pytest.fixture(scope="module")
def params(captions):
    tree = nn.meta.unbox(T5Encoder(CONFIG).init(jax.random.key(0), *pack(captions, 40))["params"])
    # A table of its initial size would hardly be seen.
    tree["blocks"]["relative_bias"] = tree["blocks"]["relative_bias"] * 10
    return tree


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda *text: T5Encoder(CONFIG).apply({"params": params}, *text))


def test_packed_equals_separate(captions, encode):
    packed = encode(*pack(captions, 40))
    assert packed.shape == (1, 40, CONFIG.width)
    assert packed.dtype == jnp.float32
    start = 0
    for caption in captions:
        alone = encode(*pack([caption], 40))
        end = start + len(caption)
        np.testing.assert_allclose(packed[0, start:end], alone[0, : len(caption)], atol=1e-5)
        start = end


def test_padding_is_zero_and_changes_nothing(captions, encode):
    ids, clip, position = pack(captions, 40)
    full = encode(ids, clip, position)
    padding = ids == 0
    assert np.all(np.asarray(full)[padding] == 0)
    assert np.all(np.abs(np.asarray(full)[~padding]).max(-1) > 0.1)
    bare = encode(ids, np.where(padding, 0, clip), position)
    np.testing.assert_allclose(bare, full, atol=1e-6)


def test_a_padding_piece_within_a_prompt_is_text(encode):
    with_it, clip, position = pack([[5, 0, 7, 1, 0, 0]], 8)
    out = np.asarray(encode(with_it, clip, position))
    assert np.all(np.abs(out[0, :4]).max(-1) > 0.1)
    assert np.all(out[0, 4:] == 0)


def test_a_row_of_nothing_but_padding_is_zero(encode):
    assert not np.any(encode(*(np.zeros((2, 8), np.int32),) * 3))


def test_the_order_of_tokens_matters(captions, encode):
    forward = encode(*pack([captions[0]], 40))
    ids = captions[0][:5][::-1] + captions[0][5:]
    backward = encode(*pack([ids], 40))
    assert np.abs(forward[0, :5] - backward[0, :5][::-1]).max() > 1e-2


def test_long_rows_are_encoded_in_parts_alike(captions, params, encode, monkeypatch):
    text = pack(captions, 40)
    whole = encode(*text)
    monkeypatch.setattr(t5_module, "CHUNK", 16)
    parts = jax.jit(lambda *text: T5Encoder(CONFIG).apply({"params": params}, *text))(*text)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_bfloat16_is_close_and_gradients_are_finite(captions, params, encode):
    text = pack(captions, 40)
    half = T5Encoder(dataclasses.replace(CONFIG, dtype="bfloat16")).apply({"params": params}, *text)
    assert half.dtype == jnp.float32
    assert np.abs(half - encode(*text)).mean() < 0.03
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(T5Encoder(CONFIG).apply({"params": p}, *text) ** 3)))(params)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_dropped_captions_are_the_empty_prompt(captions, encode):
    """With padding the clip keeps its tokens, which the DiT attends to; without, the end token alone."""
    config = t5_text(CONFIG)
    ids, clip, position = pack(captions, 40)
    drop = jnp.array([[False, True, False]])
    text, kept = drop_captions(config, ids, clip, position, drop)
    second = slice(len(captions[0]), len(captions[0]) + len(captions[1]))
    assert text[0, second].tolist() == [1, 0, 0, 0, 0][: len(captions[1])]
    outside = np.ones(40, bool)
    outside[second] = False
    assert np.array_equal(np.asarray(text)[0, outside], ids[0, outside])
    assert np.array_equal(kept, clip)
    assert text.dtype == ids.dtype

    bare = t5_text(dataclasses.replace(CONFIG, pad=False))
    text, kept = drop_captions(bare, ids, clip, position, drop)
    assert np.asarray(kept)[0, second].tolist() == [2, 0, 0, 0, 0][: len(captions[1])]
    empty = encode(*pack([[1, 0, 0]], 40))[0, 0]
    for clips in (clip, kept):
        np.testing.assert_allclose(encode(text, clips, position)[0, second][0], empty, atol=1e-5)


def test_captions_of_the_small_encoder_drop_as_before():
    ids, clip, position = pack([[1, 5, 6], [1, 7]], 6)
    text, kept = drop_captions(TextConfig(), ids, clip, position, jnp.array([[True, False]]))
    assert np.array_equal(text, ids)
    assert kept.tolist() == [[1, 0, 0, 2, 2, 0]]


def test_the_config_says_which_encoder_it_is():
    assert make_encoder(t5_text(CONFIG)) == T5Encoder(CONFIG)
    assert make_encoder(TextConfig()) == Encoder(TextConfig())
    text = t5_text(t5_preset("umt5-xxl"), tokenizer="x/spiece.model")
    assert (text.width, text.max_length) == (4096, 512)
    assert from_json(TextConfig, to_json(text)) == text
    assert from_json(TextConfig, to_json(TextConfig())) == TextConfig()
    assert apply_overrides(text, ["t5.layers=2", "t5.dtype=bfloat16"]).t5.layers == 2
    with pytest.raises(ConfigError, match=r"text\.width=128 and text\.t5\.width=32 must be the same"):
        TextConfig(t5=CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, r"text\.t5\.layers=0 must be at least 1"),
        ({"max_distance": 8}, r"text\.t5\.max_distance=8 must be above buckets/4=8"),
        ({"pad_id": 50}, r"text\.t5\.pad_id=50 must be in 0\.\.49"),
        ({"extra_ids": -1}, r"text\.t5\.extra_ids=-1 must not be negative"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)
