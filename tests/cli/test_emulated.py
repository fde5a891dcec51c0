"""World models beside an emulator, measured and played."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny
from tests.emulators import stub
from vdit.cli.main import main
from vdit.data.data_source import EpisodesSource
from vdit.data.episodes import EpisodesDataset
from vdit.emulators import Recording, record, replays
from vdit.errors import EX_USAGE
from vdit.eval.games import read_play
from vdit.video.read import read_video

SIZE = (32, 32)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """A folder of 3 episodes of the stub."""
    path = tmp_path_factory.mktemp("stub") / "pong"
    with pytest.MonkeyPatch.context() as patch:
        stub.install(patch)
        record(Recording(env=stub.NAME, episodes=3, frames=40, skip=9, state_every=8, size=SIZE, seed=1), path)
    return path


@pytest.fixture(scope="module")
def generator(episodes):
    made = tiny.generator(stride=1, window=9, actions=3)
    source = EpisodesSource(path=str(episodes))
    data = dataclasses.replace(made.experiment.data, source=source, fps=(8.0,))
    return dataclasses.replace(made, experiment=dataclasses.replace(made.experiment, data=data))


@pytest.fixture
def run(monkeypatch, generator, tmp_path):
    """The folder of a run, which opens as that generator."""
    stub.install(monkeypatch)
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, *rest, **options: generator)
    (tmp_path / "stubbed").mkdir()
    (tmp_path / "stubbed" / "experiment.json").write_text("{}")
    return tmp_path / "stubbed"


def test_a_model_beside_its_emulator(run, episodes, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["eval", str(run), "--emulator", str(episodes), "--out", str(out), "--frames", "20", "--given", "4",
               "--videos", "5", "--show", "2", "--predictor-steps", "30"]  # fmt: skip
    assert main(command) == 0
    data = json.loads((out / "evaluation.json").read_text())
    sets = {one["name"]: one["figures"] for one in data["sets"]}
    assert list(sets) == ["stubbed", "predictor", "last frame"]
    for found in sets.values():
        assert found["psnr"]["n"] == 5
        assert len(found["ball_in_place"]["curve"]) == 16
    assert sets["last frame"]["left_paddle_error"]["value"] == 0
    assert sets["last frame"]["event_recall"]["value"] == 0
    assert sets["predictor"]["psnr"]["value"] > sets["stubbed"]["psnr"]["value"]
    assert f"--emulator {episodes}" in data["about"]["command"]
    clip = read_video(out / "beside.mp4")
    assert len(clip.frames) == 40
    first = next(replays(episodes, count=1, given=4, horizon=16))
    shown = clip.frames[:20, 20:276, :256][:, 4::8, 4::8].astype(int)
    assert np.abs(shown - np.concatenate([first.before, first.after])).mean() < 4
    assert "predictor" in capsys.readouterr().err
    kept = (out / "predictor.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "predictor.safetensors").stat().st_mtime_ns == kept
    assert json.loads((out / "evaluation.json").read_text())["sets"] == data["sets"]


def test_replays_are_the_recording_again(episodes, monkeypatch):
    stub.install(monkeypatch)
    dataset = EpisodesDataset(episodes)
    every = {dataset.name(i): dataset.open(i) for i in range(3)}
    chosen = list(replays(episodes, count=99, given=4, horizon=16))
    assert len(chosen) == 3 * 2  # at frames 8 and 16; at 0 too few are before, at 24 and 32 too few follow
    for replay in chosen:
        name, _, frame = replay.name.rpartition("-")
        frame = int(frame)
        np.testing.assert_array_equal(replay.before, every[name].video[frame - 3 : frame + 1])
        np.testing.assert_array_equal(replay.after, every[name].video[frame + 1 : frame + 17])


@pytest.mark.parametrize(
    "more", [["--real", "x"], ["--seeds", "2"], ["--size", "32x32"], ["--frames", "4", "--given", "4"]]
)
def test_what_does_not_go_with_it(run, episodes, more, capsys):
    assert main(["eval", str(run), "--emulator", str(episodes), *more]) == EX_USAGE
    assert more[0] in capsys.readouterr().err


def test_states_that_are_too_few(run, episodes, tmp_path, capsys):
    assert main(["eval", str(run), "--emulator", str(episodes), "--frames", "60", "--out", str(tmp_path / "o")]) != 0
    assert "52" in capsys.readouterr().err


def test_keys_play_model_and_emulator_from_the_same_moment(run, episodes, tmp_path, capsys):
    out = tmp_path / "played.mkv"
    command = ["simulate", str(run), "a game", "--keys", "dddd aa..", "--beside", str(episodes), "--out", str(out)]
    assert main([*command, "--moment", "1", "--steps", "2"]) == 0
    assert "from frame" in capsys.readouterr().err
    clip = read_video(out)
    assert clip.frames.shape == (16, 276, 2 * 256 + 8, 3)
    left, right = (clip.frames[:, 20:, at : at + 256][:, 4::8, 4::8].astype(int) for at in (0, 264))
    np.testing.assert_array_equal(left[:8], right[:8])
    assert np.abs(left[8:] - right[8:]).mean() > 10  # a model of random weights
    paddle = read_play("Pong", left.astype(np.uint8)).things["right_paddle"][:, 1] * 160
    np.testing.assert_allclose(np.diff(paddle[7:]), [-8] * 4 + [8] * 2 + [0] * 2, atol=1)


@pytest.mark.parametrize(
    "more", [["--moment", "99"], ["--size", "32x32"], ["--interactive"], ["--context", "4"], ["--seeds", "0,1"]]
)
def test_what_does_not_go_with_playing_beside(run, episodes, more, capsys):
    keys = [] if more == ["--interactive"] else ["--keys", "dd"]
    command = ["simulate", str(run), "a game", *keys, "--beside", str(episodes), *more]
    assert main(command) == EX_USAGE
    said = capsys.readouterr().err
    assert more[0] in said or "--beside" in said
