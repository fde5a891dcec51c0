"""The captioner: a caption reads its own clip alone, pooling is a mean over frames, training goes in its stages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdit.data.config import DataConfig
from vdit.data.pipeline import TokenSpec, row_iterator
from vdit.errors import ConfigError
from vdit.experiment.captioning import END, Captioning, next_token_loss
from vdit.experiment.objectives import DiffusionModel
from vdit.models.captioner import Captioner, CaptionerModel, pool_frames
from vdit.models.lm import LMConfig
from vdit.models.network import Network
from vdit.models.text.config import TextConfig

LM = LMConfig(vocab_size=32, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, mlp=32, context=256)
CONFIG = Captioner(in_channels=3, patch=(1, 1, 1), width=16, depth=1, heads=2, pool=2, lm=LM)


class Words:
    max_length = 16

    def encode(self, text):
        return [1, *(3 + len(word) for word in text.split())]


CLIPS = [
    {"latent": np.random.default_rng(i).normal(size=shape).astype(np.float32), "captions": captions}
    for i, (shape, captions) in enumerate(
        [((3, 2, 2, 3), ["a dog", "a brown dog runs"]), ((4, 1, 2, 3), ["cats"]), ((1, 2, 1, 3), ["no video at all"])]
    )
]


class Clips(list):
    """A source: later passes over the data count on."""

    def __getitem__(self, index):
        return super().__getitem__(index % len(self))


def rows(clips):
    config = DataConfig(row_tokens=40, max_text_per_row=40, max_frames_per_row=16, max_clips_per_row=6, buffer_rows=1,
                        streams=1, threads=0, read_ahead=0, prefetch=0)  # fmt: skip
    tokens = TokenSpec(patch=(1, 1, 1), compose=Captioning().compose_text)
    return jax.tree.map(jnp.asarray, next(row_iterator(config, Clips(clips), Words(), tokens, seed=0, batch_rows=1)))


@pytest.fixture(scope="module")
def params():
    made = nn.meta.unbox(jax.jit(lambda key: CONFIG.init(key, None))(jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.2) * rng.normal(size=leaf.shape).astype("f"), made)


@jax.jit
def scores(params, row, blind=False):
    return CaptionerModel(CONFIG).apply({"params": params}, row, blind=blind)


def test_a_caption_reads_its_own_clip_and_earlier_words_alone(params):
    row = rows(CLIPS)
    clips = int(row.segment_ids.max())
    assert clips >= 3
    ids, text_ids = np.asarray(row.segment_ids)[0], np.asarray(row.text_segment_ids)[0]
    of_clip = jnp.asarray(text_ids == np.arange(1, clips + 1)[:, None], jnp.float32)  # [clip m]
    told = lambda values: of_clip @ jnp.abs(scores(params, dataclasses.replace(row, values=values))[0]).sum(-1)  # noqa: E731
    reach = np.abs(np.asarray(jax.jit(jax.jacobian(told))(row.values)))[:, 0].max(-1)  # [clip n]
    for clip in range(1, clips + 1):
        assert (reach[clip - 1][ids == clip] > 0).all()
        assert (reach[clip - 1][ids != clip] == 0).all()
    place = int(np.flatnonzero(text_ids == 1)[1])
    changed = scores(params, dataclasses.replace(row, text=row.text.at[0, place].add(1)))
    differs = np.abs(np.asarray(changed - scores(params, row)))[0].max(-1) > 0
    assert not differs[:place].any()
    assert differs[place]
    assert not differs[text_ids != 1].any()


def test_packed_clips_are_captioned_as_alone(params):
    row = rows(CLIPS)
    text_ids = np.asarray(row.text_segment_ids)[0]
    packed = np.asarray(scores(params, row))[0]
    found = 0
    for clip in CLIPS:
        alone = rows([clip])
        first = np.asarray(alone.text_segment_ids)[0] == 1
        ids = np.asarray(alone.text)[0][first]
        expected = np.asarray(scores(params, alone))[0][first]
        for segment in range(1, text_ids.max() + 1):
            if np.array_equal(np.asarray(row.text)[0][text_ids == segment], ids):
                np.testing.assert_allclose(packed[text_ids == segment], expected, atol=2e-5)
                found += 1
    assert found >= 3


def test_pooling_is_a_mean_over_frames_of_a_place():
    row = rows(CLIPS[:1])
    x = jnp.arange(row.values.shape[1], dtype=jnp.float32)[None, :, None]
    pooled, ids = pool_frames(x, row, 2)
    # 3 frames of 4 tokens: frames 0 and 1 become one, frame 2 stands alone.
    np.testing.assert_allclose(pooled[0, :4, 0], [2, 3, 4, 5])
    np.testing.assert_allclose(pooled[0, 8:12, 0], [8, 9, 10, 11])
    assert np.asarray(ids)[0, :12].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_a_blind_model_sees_nothing(params):
    row = rows(CLIPS)
    words = np.asarray(row.text_segment_ids) > 0
    other = dataclasses.replace(row, values=row.values + 1)
    blind = [np.asarray(scores(params, one, blind=True))[words] for one in (row, other)]
    seeing = [np.asarray(scores(params, one))[words] for one in (row, other)]
    np.testing.assert_array_equal(*blind)
    assert np.abs(seeing[0] - seeing[1]).max() > 1e-3


def test_next_token_loss_counts_each_text_to_its_end():
    text, ids = jnp.array([[1, 5, 6, 1, 7, 0]]), jnp.array([[1, 1, 1, 2, 2, 0]])
    sure = lambda targets: 50.0 * jax.nn.one_hot(jnp.array([targets]), 8)  # noqa: E731
    loss, accuracy = next_token_loss(sure([5, 6, END, 7, END, 3]), text, ids)
    assert (round(float(loss), 5), float(accuracy)) == (0, 1)
    loss, accuracy = next_token_loss(sure([5, 6, 1, 7, END, 3]), text, ids)  # the first text does not end
    assert float(accuracy) == pytest.approx(0.8)
    assert float(loss) == pytest.approx(10, abs=1e-3)
    loss, _ = next_token_loss(jnp.zeros((1, 6, 8)), text, ids)
    assert float(loss) == pytest.approx(np.log(8), abs=1e-5)


def model(backbone=CONFIG, vocab=32):
    return DiffusionModel(network=Network(text=TextConfig(vocab_size=vocab, width=8, heads=2), backbone=backbone))


STAGES = [(0, {"lm"}), (2, {"tower", "connector"}), (5, {"lm", "tower", "connector"})]


def test_each_stage_trains_its_parts(params):
    loss = Captioning(text_steps=2, connector_steps=3).make_loss(model())
    row = rows(CLIPS)
    gradient = jax.jit(jax.grad(lambda p, step: loss({"dit": p}, row, jax.random.key(0), step)[0]))
    for step, moves in STAGES:
        grads = gradient(params, jnp.int32(step))
        norms = {name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)) for name, tree in grads.items()}
        assert {name for name, norm in norms.items() if norm > 0} == moves


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="33"):
        Captioning().make_loss(model(vocab=33))
    with pytest.raises(ConfigError, match="heads"):
        dataclasses.replace(CONFIG, heads=3)
    with pytest.raises(ConfigError, match="captioner"):
        CONFIG.apply({}, rows(CLIPS), jnp.zeros((1, 16)), None)
    with pytest.raises(ConfigError, match="-1"):
        Captioning(text_steps=-1)
    network = model().network
    assert set(jax.eval_shape(network.init, jax.random.key(0))) == {"dit"}
