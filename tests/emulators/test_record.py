"""Emulators that others wrote: recorded, put back, read as clips with actions."""

import json

import numpy as np
import pytest

from vdit.cli.main import main
from vdit.data.config import DataConfig
from vdit.data.data_source import EpisodesSource, open_source
from vdit.data.episodes import EpisodesDataset
from vdit.errors import ConfigError, DataError, OutputError

pytest.importorskip("gymnasium", reason="needs the extra gym")
pytest.importorskip("ale_py", reason="needs the extra gym")

from vdit.emulators import Recording, open_emulator, record

PONG = Recording(env="ALE/Pong-v5", episodes=9, frames=20, skip=40, policies=("random", "follow"), seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("emulators") / "pong"
    record(PONG, path)
    return path


def test_an_emulator_goes_on_from_a_saved_state(folder):
    episode = EpisodesDataset(folder).open(3)
    emulator = open_emulator(PONG.env)
    emulator.reset(0)
    emulator.restore(episode.state(1))
    first = int(episode.state_at[1])
    assert first == PONG.state_every
    np.testing.assert_array_equal(emulator.facts(), episode.facts[first])
    for action, frame in zip(episode.actions[first + 1 :], episode.video[first + 1 :], strict=True):
        np.testing.assert_array_equal(emulator.step(action).frame, frame)
    with pytest.raises(DataError, match="14000"):
        emulator.restore(b"x" * 14_000)


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "InvertedPendulum-v5"])  # with a camera that follows, and without
def test_a_body_goes_on_from_a_saved_state(name, monkeypatch):
    pytest.importorskip("mujoco", reason="bodies need mujoco, which no extra brings")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    body = open_emulator(name, size=(32, 32))
    body.reset(0)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, body.width)).astype(np.float32)
    for action in actions[:4]:
        body.step(action)
    state = body.save()
    frames = [body.step(action).frame for action in actions[4:]]
    facts = body.facts()
    body.restore(state)
    np.testing.assert_array_equal([body.step(action).frame for action in actions[4:]], frames)
    np.testing.assert_array_equal(body.facts(), facts)
    with pytest.raises(DataError, match="3 bytes"):
        body.restore(b"abc")
    other = open_emulator(name, size=(32, 32))
    other.reset(1)
    for action in actions:
        other.step(action)
    other.restore(state)
    np.testing.assert_array_equal([other.step(action).frame for action in actions[4:]], frames)
    other.close()
    if name != "HalfCheetah-v5":
        return  # a pendulum that falls ends
    # gymnasium ends an episode after 1,000 steps; restored again and again, a body plays more of them.
    monkeypatch.setattr(body, "_frame", lambda: frames[0])
    for _ in range(6):
        body.restore(state)
        assert not any(body.step(actions[0]).ended for _ in range(200))


def test_a_scenario_of_doom_goes_on_from_a_saved_state(tmp_path):
    pytest.importorskip("vizdoom", reason="needs the extra doom")
    name = "vizdoom/deadly_corridor"
    record(Recording(env=name, episodes=1, frames=24, skip=5, state_every=8, size=(32, 48), seed=4), tmp_path / "a")
    episode = EpisodesDataset(tmp_path / "a").open(0)
    assert episode.id == "deadly_corridor-00000"
    assert episode.captions == ("Doom, deadly corridor",)
    doom = open_emulator(name, size=(32, 48))
    try:
        assert doom.fps == episode.fps == 8.75
        doom.reset(0)
        doom.step(np.array([1, 0, 0], np.float32))
        doom.restore(episode.state(1))
        np.testing.assert_array_equal(doom.facts(), episode.facts[8])
        for action, frame in zip(episode.actions[9:], episode.video[9:], strict=True):
            np.testing.assert_array_equal(doom.step(action).frame, frame)
        for way in (1, -1):  # Doom counts angles to the left
            doom.reset(1)
            angle = doom.facts()[3]
            for _ in range(3):
                doom.step(np.array([way, 0, 0], np.float32))
            turn = (doom.facts()[3] - angle + 180) % 360 - 180
            assert -90 < way * turn < -2
        for state in (b"abc", episode.state(1)[:-1], episode.state(1)[:4] + b"\x07\x00\x00"):
            with pytest.raises(DataError, match=f"{len(state)} bytes"):
                doom.restore(state)
    finally:
        doom.close()
    with pytest.raises(ConfigError, match="vizdoom/nowhere"):
        open_emulator("vizdoom/nowhere")


def test_an_interrupted_recording_goes_on_and_is_the_same(folder, tmp_path, monkeypatch):
    out = tmp_path / "again"

    def stop(episodes, frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(PONG, out, tell=stop)
    assert not out.exists()
    with pytest.raises(DataError, match="another recording"):
        record(Recording(env=PONG.env, seed=6), out)
    told = []
    record(PONG, out, tell=lambda episodes, frames: told.append(episodes))
    assert told == [8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]
    ours, theirs = EpisodesDataset(out), EpisodesDataset(folder)
    for item in (0, 8):
        for name in ("video", "actions", "rewards", "facts", "states"):
            np.testing.assert_array_equal(getattr(ours.open(item), name), getattr(theirs.open(item), name))
    with pytest.raises(OutputError):
        record(PONG, out)


def test_clips_have_the_actions_of_their_frames(folder):
    config = DataConfig(source=EpisodesSource(path=str(folder)), frames=(5,), fps=(15.0,), frame_multiple=1,
                        pixel_budgets=(64 * 64,), size_multiple=8, actions=3)  # fmt: skip
    source, library = open_source(config, seed=1), EpisodesDataset(folder)
    for index in range(4):
        sample, episode = source[index], library.open(index)
        first = round(sample["start"] * 15 - 0.5)
        places = [at for at in range(16) if np.array_equal(episode.video[at : at + 5], sample["video"])]
        assert any(np.array_equal(episode.actions[at + 1 : at + 5], sample["actions"][1:]) for at in places), first
        assert not sample["actions"][0].any()
    assert np.abs(library.open(1).actions).max() == 1
    with pytest.raises(DataError, match="fps=15"):
        library.open(0).read(start=0, fps=8.0, frames=4, size=(64, 64))


def test_held_out_episodes(folder):
    assert len(EpisodesDataset(folder, exclude=["pong-00002"])) == 8
    assert EpisodesDataset(folder, only=["pong-00002"]).open(0).id == "pong-00002"
    with pytest.raises(DataError, match="pong-00099"):
        EpisodesDataset(folder, exclude=["pong-00099"])


def test_what_is_damaged_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"index\.json"):
        EpisodesDataset(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    for change in ({"format": "vdit-latents-1"}, {"shards": [{"file": "../x", "records": 1, "ids": ["a"]}]}):
        (tmp_path / "index.json").write_text(json.dumps(index | change))
        with pytest.raises(DataError, match=r"index\.json"):
            EpisodesDataset(tmp_path)


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["record", "ALE/Pong-v5", str(tmp_path / "a"), "--policy", "follow+best"]) == 2
    assert "best" in capsys.readouterr().err
    assert main(["record", "ALE/Breakout-v5", str(tmp_path / "b"), "--policy", "follow"]) == 2
    assert "ALE/Breakout-v5" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        open_emulator("ALE/Nope-v5")
