"""The DiT's training step on packed rows of mixed sizes: one compilation, padding without effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.data.config import DataConfig
from vdit.data.latents import LatentStore, write_latents
from vdit.data.pipeline import TokenSpec, row_iterator, useful
from vdit.experiment.experiment import Experiment
from vdit.experiment.objectives import DenoisingLoss
from vdit.experiment.training import TrainConfig
from vdit.models.dit.config import DiTConfig
from vdit.models.text import TextConfig
from vdit.models.vae.config import preset
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.types import Row

EXPERIMENT = Experiment(
    name="mixed",
    data=DataConfig(row_tokens=64, max_text_per_row=40, max_frames_per_row=24, max_clips_per_row=12, threads=0,
                    read_ahead=0, prefetch=0),
    vae=preset("tiny", latent_channels=4),
    text=TextConfig(vocab_size=16, max_length=8, width=16, depth=1, heads=2),
    backbone=DiTConfig(in_channels=4, width=32, depth=2, heads=2),
    dit_train=TrainConfig(steps=8, batch_size=2),
)


class Words:
    """Ids by length of the word; the first is BOS."""

    max_length = 8

    def encode(self, text):
        return [1, *(2 + len(word) for word in text.split())][: self.max_length]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Batches of rows packed from images and clips of three areas and many aspect ratios."""
    rng = np.random.default_rng(0)
    sizes = [(t, h, w) for t in (1, 3, 5) for h, w in ((2, 2), (2, 6), (4, 4), (6, 4), (4, 8))]
    folder = tmp_path_factory.mktemp("mixed") / "latents"
    write_latents(folder, (
        {"latent": rng.normal(size=(*sizes[i % len(sizes)], 4)), "captions": ["one two three"[: i % 13]]}
        for i in range(200)
    ))  # fmt: skip
    data = row_iterator(EXPERIMENT.data, LatentStore(folder), Words(), TokenSpec(patch=(1, 2, 2)), seed=0, batch_rows=2)
    return [next(data) for _ in range(6)]


def test_one_compilation_serves_every_size(rows):
    plan = plan_state(EXPERIMENT.network.init, EXPERIMENT.dit_train)
    step = make_train_step(DenoisingLoss().make_loss(EXPERIMENT.model), plan)
    state = plan.create(jax.random.key(0))
    shapes = set()
    for batch in rows:
        for row, clip in zip(batch.position, batch.segment_ids):
            shapes |= {tuple(row[clip == i].max(0)) for i in range(1, clip.max() + 1)}
        placed = jax.device_put(batch, step.shardings(batch))
        state, metrics = step(state, placed)
        assert np.isfinite(metrics["loss"])
        assert metrics["tokens"] == (batch.segment_ids > 0).sum()
    assert len(shapes) >= 10, "the mix must hold many sizes"
    assert np.mean([useful(batch) for batch in rows]) > 0.98
    assert step.jitted._cache_size() == 1


def test_padding_does_not_count(rows):
    """What stands on padding, and how much padding there is, leaves the loss and its gradient alone."""
    experiment = dataclasses.replace(EXPERIMENT, text_dropout=0.0)
    loss = DenoisingLoss().make_loss(experiment.model)
    row = jax.tree.map(jnp.asarray, rows[0])
    keep = row.segment_ids < row.segment_ids.max(1, keepdims=True)  # the last clip of each row becomes padding
    blank = {
        "segment_ids": jnp.where(keep, row.segment_ids, 0),
        "frame_index": jnp.where(keep, row.frame_index, 0),
        "frame_segment_ids": jnp.where(
            row.frame_segment_ids < row.segment_ids.max(1, keepdims=True), row.frame_segment_ids, 0
        ),
        "text_segment_ids": jnp.where(
            row.text_segment_ids < row.segment_ids.max(1, keepdims=True), row.text_segment_ids, 0
        ),
    }
    params = _rough(experiment)

    @jax.jit
    def value_grad(row: Row):
        return jax.value_and_grad(lambda p: loss(p, row, jax.random.key(1), 0)[0])(params)

    want, want_grad = value_grad(dataclasses.replace(row, **blank))
    junk = jnp.where(keep[..., None], row.values, 1e3)
    got, grad = value_grad(dataclasses.replace(row, **blank, values=junk))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(want_grad)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_dropped_captions_are_not_read(rows):
    """With all captions dropped, other words give the same loss; without, they do not."""
    params = _rough(EXPERIMENT)
    row = jax.tree.map(jnp.asarray, rows[0])
    other = dataclasses.replace(row, text=jnp.where(row.text_position > 0, (row.text + 5) % 16, row.text))
    for share, same in ((1.0, True), (0.0, False)):
        loss = DenoisingLoss().make_loss(dataclasses.replace(EXPERIMENT, text_dropout=share).model)
        a, b = (jax.jit(loss)(params, r, jax.random.key(0), 0)[0] for r in (row, other))
        assert (a == b) == same


def _rough(experiment: Experiment):
    """Parameters away from the start, where gates are zero and hide everything."""
    params = plan_state(experiment.network.init, experiment.dit_train).create(jax.random.key(0)).params
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])
