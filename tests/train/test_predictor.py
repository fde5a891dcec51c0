"""The small predictor that world models are compared with."""

import numpy as np
import pytest

from vdit.data.episodes import Episode, write_episodes
from vdit.errors import ConfigError, DataError, ShapeError
from vdit.train.predictor import PredictorConfig, load_predictor, train_predictor

CONFIG = PredictorConfig(frames=2, width=8, blocks=1, steps=60, batch_size=8, learning_rate=1e-2)


def steered(seed, t=24):
    """A square that the action moves left or right by a cell."""
    random = np.random.default_rng(seed)
    actions = random.choice([-1.0, 1.0], (t, 1)).astype(np.float32)
    video, x = np.zeros((t, 16, 16, 3), np.uint8), 8
    for frame in range(t):
        x = int(np.clip(x + 4 * actions[frame, 0], 0, 12)) if frame else x
        video[frame, 4:12, x : x + 4] = 255
    return Episode(
        id=f"steered-{seed}", captions=("a square",), fps=8.0, seed=seed, policy="random", video=video, actions=actions,
        rewards=np.zeros(t, np.float32), facts=np.zeros((t, 1)), states=np.zeros(1, np.uint8),
        state_ends=np.array([1]), state_at=np.zeros(1, np.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import json

    path = tmp_path_factory.mktemp("steered")
    shard = write_episodes(path / "episodes-00000.arrayrecord", (steered(seed) for seed in range(8)))
    index = {"format": "vdit-episodes-1", "env": "steered", "size": [16, 16], "fps": 8.0, "actions": 1,
             "shards": [shard]}  # fmt: skip
    (path / "index.json").write_text(json.dumps(index))
    return path


def test_it_learns_what_actions_do_and_is_kept(folder, tmp_path):
    told = []
    predictor = train_predictor(folder, CONFIG, tell=lambda step, loss: told.append((step, loss)))
    assert [step for step, _ in told] == [25, 50, 60]
    new = steered(99)
    made = predictor.predict(new.video[:4], new.actions[:4], new.actions[4:10])
    assert made.shape == (6, 16, 16, 3)
    error = np.square(made[:1] / 255 - new.video[4:5] / 255).mean()
    still = np.square(new.video[3:4] / 255 - new.video[4:5] / 255).mean()
    assert error < 0.3 * still
    other = predictor.predict(new.video[:4], new.actions[:4], -new.actions[4:10])
    assert np.abs(other[0].astype(int) - made[0]).max() > 100
    note = {"of": "steered", "sizes": (1, 2)}
    predictor.save(tmp_path / "a.safetensors", note)
    again = load_predictor(tmp_path / "a.safetensors", CONFIG, note)
    assert again.size == predictor.size
    np.testing.assert_array_equal(again.predict(new.video[:4], new.actions[:4], new.actions[4:10]), made)
    np.testing.assert_array_equal(predictor.predict(new.video[2:4], new.actions[2:4], new.actions[4:10]), made)
    assert load_predictor(tmp_path / "a.safetensors", CONFIG, {"of": "else"}) is None
    assert load_predictor(tmp_path / "b.safetensors", CONFIG, note) is None
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.safetensors"):
        load_predictor(tmp_path / "a.safetensors", CONFIG, note)
    with pytest.raises(ShapeError, match="1"):
        predictor.predict(new.video[:4], new.actions[:4], np.zeros((3, 2), np.float32))


def test_what_it_refuses(tmp_path):
    with pytest.raises(ConfigError, match="width=0"):
        PredictorConfig(width=0)
    with pytest.raises(DataError):
        train_predictor(tmp_path, CONFIG)
