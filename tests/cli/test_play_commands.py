"""vdit rollout and vdit simulate: files written as they are made, prompts and actions as users write them."""

import io
import json
import signal

import numpy as np
import pytest

import vdit
from tests import tiny
from tests.data_paths import shared_data
from vdit.cli import output, simulate
from vdit.cli.main import main
from vdit.cli.output import Target
from vdit.cli.parser import UsageError
from vdit.cli.status import Status
from vdit.errors import DataError
from vdit.generate.simulator import world_keys
from vdit.video.read import probe


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(stride=2, window=9, actions=2)


@pytest.fixture
def loaded(monkeypatch, generator):
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, mesh, **options: generator)
    return generator


@pytest.fixture
def noise(monkeypatch):
    """In the place of networks, in rollouts: noise by the prompt and the window's known latents."""

    def draw(task, mesh, parameters, prompts, key, noise, given):
        canvas = given.canvas
        rng = np.random.default_rng([*prompts[0].ids.reshape(-1), int(1000 * np.abs(canvas.latents).sum())])
        return np.where(canvas.level[..., None] == 0, canvas.latents, rng.normal(size=canvas.latents.shape))

    monkeypatch.setattr("vdit.generate.generator.sample", draw)


def run(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


def test_rollout_writes_what_the_function_makes(loaded, noise, tmp_path, capsys):
    out = tmp_path / "new" / "long.mkv"
    script = tmp_path / "story.txt"
    script.write_text("16 b\n\n3.5s c d\n")
    common = ["--seconds", 5, "--context", 4, "--seed", 2, "--out", out]
    run("rollout", "RUN", "a", *common, "--prompt-at", "1s", "bb", "--script", script)
    prompts = [(0.0, "a"), (1.0, "bb"), (2.0, "b"), (3.5, "c d")]
    made = np.concatenate(list(vdit.rollout(loaded, prompts, seconds=5, context=4, seed=2)))
    clip = vdit.read_video(out)
    assert clip.fps == 8
    np.testing.assert_array_equal(clip.frames, np.round((made + 1) * 127.5).clip(0, 255))
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "prompt   'a': 40 frames, 5 s at 8 fps\n" in said.err
    assert "40/40" in said.err
    vdit.write_video(tmp_path / "a.mkv", np.repeat(clip.frames[:9], 2, axis=0), fps=16)
    run("rollout", "RUN", tmp_path / "a.mkv", "a", "--frames", 20, "--out", tmp_path / "b.mkv")
    longer = vdit.read_video(tmp_path / "b.mkv")
    assert (len(longer.frames), longer.fps) == (20, 8)  # the model's rate, not the input's
    np.testing.assert_array_equal(longer.frames[:9], clip.frames[:9])


def test_rollout_says_what_is_wrong_in_one_line(loaded, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_text("10s ok\nten no\n")
    for arguments, message in [
        (["a"], "give --seconds S or --frames TIME"),
        (["a", "--seconds", 1, "--frames", 8], "give --seconds S or --frames TIME"),
        (["a", "--frames", 8, "--prompt-at", "x", "b"], "--prompt-at x: the time 'x' must be a number of frames"),
        (["a", "--frames", 8, "--prompt-at", "0s", "b"], "the prompt at 0 is the command's own"),
        (["a", "--frames", 8, "--script", bad], f"{bad}, line 2: the time 'ten' must be"),
        (["a", "--frames", 8, "--script", "none.txt"], "none.txt: cannot be read"),
        (["a", "--frames", 30, "--window", 3], "window=3: "),
    ]:
        run("rollout", "RUN", *arguments, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_simulate_by_keys_by_file_and_by_hand_are_the_same(loaded, tmp_path, monkeypatch, capsys):
    keys = "w=0,-1 d=1,0"
    videos = []
    rows = [[1, 0]] * 4 + [[0, -1]] * 2 + [[0, 0]] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for asked in (["--keys", "dd w."], ["--actions", tmp_path / "a.jsonl"], ["--interactive", "--show"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("dd\nx\nw\n\n"))
        run("simulate", "RUN", "a", *asked, "--key-map", keys, "--out", tmp_path / "p.mkv")
        videos.append(vdit.read_video(tmp_path / "p.mkv").frames)
    said = capsys.readouterr()
    assert said.err.count("--key-map has no effect") == 1
    assert "key 'x' means nothing here (keys: . w d)" in said.err
    assert "\u2580" in said.err
    assert said.out == f"{tmp_path / 'p.mkv'}\n" * 3
    simulator = vdit.Simulator(loaded, "a")
    made = np.concatenate([simulator.frames, *(simulator.step(row) for row in rows[::2])])
    for video in videos:
        np.testing.assert_array_equal(video, np.round((made + 1) * 127.5).clip(0, 255))
    run("simulate", "RUN", tmp_path / "p.mkv", "a", "--actions", tmp_path / "a.jsonl", "--out", tmp_path / "q.mkv")
    np.testing.assert_array_equal(vdit.read_video(tmp_path / "q.mkv").frames[:9], videos[0])


def test_simulate_reads_a_long_video_piece_by_piece_and_keeps_its_frames_and_sound(loaded, tmp_path):
    film = shared_data("clips", "moviepy_sintel_snow.mp4")
    given = vdit.read_video(film, size=(16, 16), fps=8).frames
    (tmp_path / "a.jsonl").write_text("[1, 0]\n" * 4)
    actions = ["--actions", tmp_path / "a.jsonl", "--size", "16x16"]
    run("simulate", "RUN", film, "a", *actions, "--out", tmp_path / "p.mkv")
    clip = vdit.read_video(tmp_path / "p.mkv")
    assert probe(tmp_path / "p.mkv").sound
    np.testing.assert_array_equal(clip.frames[: len(given)], given)
    simulator = vdit.Simulator(loaded, "a", start=given)
    made = np.concatenate([simulator.step((1, 0)), simulator.step((1, 0))])
    np.testing.assert_array_equal(clip.frames[len(given) :], np.round((made + 1) * 127.5).clip(0, 255))


def test_simulate_says_what_is_wrong_in_one_line(loaded, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("x,y,z\n1,2,3\n")
    for arguments, message in [
        (["a"], "nothing to do: give one of --keys"),
        (["a", "--keys", "w", "--interactive"], "--keys and --interactive: give one"),
        (["a", "--interactive", "--count", 2], "--interactive plays one world"),
        (["a", "--keys", "w"], "key 'w' means nothing here (keys: .); give --key-map"),
        (["a", "--keys", "w", "--key-map", "w=1"], "--key-map 'w=1': has 1 numbers, this model is told 2"),
        (["a", "--keys", "w", "--key-map", "w:1,2"], "write KEY=NUMBER,NUMBER"),
        (["a", "--keys", " "], "holds no key"),
        (["a", "--actions", tmp_path / "a.csv"], "a.csv, line 2: has 3 numbers, this model is told 2"),
    ]:
        run("simulate", "RUN", *arguments, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_keys_of_worlds_are_their_actions():
    steer = world_keys("steer", 2, 8.0)
    assert simulate.of_keys("wa sd.", steer) == [(0, -1), (-1, 0), (0, 1), (1, 0), (0, 0)]
    assert steer["q"] == (-1, -1)
    orbit = world_keys("orbit", 1, 8.0)
    assert orbit["d"] == (30 / 8 / 10,)  # as vdit.worlds.orbit: degrees that the camera turns in a frame, / 10
    assert orbit["a"] == (-orbit["d"][0],)
    assert list(world_keys("bounce", 3, 8.0)) == ["."]


def test_actions_are_read_from_files_that_hold_numbers_alone(tmp_path):
    rows = [(1.0, 0.5), (0.0, -1.0)]
    (tmp_path / "a.csv").write_text("right,down\n1,0.5\n\n0,-1\n")
    (tmp_path / "b.csv").write_text("1,0.5\n0,-1\n")
    (tmp_path / "a.jsonl").write_text("[1, 0.5]\n\n[0, -1]\n")
    np.save(tmp_path / "a.npy", np.array(rows))
    for name in ("a.csv", "b.csv", "a.jsonl", "a.npy"):
        assert simulate.read_actions(tmp_path / name, 2) == rows
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(3))
    (tmp_path / "archive.npy").write_bytes(b"PK\x03\x04 no archive")
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    (tmp_path / "words.csv").write_text("1,2\nx,y\n")
    (tmp_path / "first.csv").write_text("1,oops\n1,2\n")
    (tmp_path / "dict.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "bad.jsonl").write_text("[1, 2\n")
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "a.txt").write_text("1,2")
    for name, message in [
        ("pickled.npy", "is no array of numbers"),
        ("archive.npy", "is no array of numbers"),
        ("flat.npy", r"holds \(3,\), give numbers \[t a\]"),
        ("nan.npy", "row 0: .* must be finite numbers"),
        ("words.csv", r"line 2: \['x', 'y'\] must be finite numbers"),
        ("first.csv", r"line 1: \['1', 'oops'\] must be finite numbers"),
        ("dict.jsonl", "line 1: .* must be finite numbers"),
        ("bad.jsonl", "line 1: is not JSON"),
        ("empty.csv", "holds none"),
        ("a.txt", r"ends in '.txt': write .csv, .jsonl or .npy"),
        ("none.csv", "cannot be read .No such file"),
    ]:
        with pytest.raises(DataError, match=message):
            simulate.read_actions(tmp_path / name, 2)


def pieces(interrupt_after=()):
    for k in range(5):
        for _ in range(interrupt_after.count(k)):
            signal.raise_signal(signal.SIGINT)
        yield np.full((3, 16, 16, 3), 50 * k, np.uint8)


def test_ctrl_c_leaves_a_file_of_what_was_made(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "folder" / "a.mkv"
    target = Target(path=out, replace=True)
    assert output.stream(target, pieces(), 8, Status("rollout"))
    assert len(vdit.read_video(out).frames) == 15
    assert not output.stream(target, pieces((2,)), 8, Status("rollout"))
    assert len(vdit.read_video(out).frames) == 9, "the piece that was being made is in it"
    assert "stops once the frames in work are made" in capsys.readouterr().err
    out.unlink()
    with pytest.raises(KeyboardInterrupt):
        output.stream(target, pieces((2, 2)), 8, Status("rollout"))
    assert not list(out.parent.iterdir())
    assert signal.getsignal(signal.SIGINT) is before
    with output.Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.at_once():
        signal.raise_signal(signal.SIGINT)
    assert not interrupts.asked


def test_a_picture_is_two_pixels_a_character():
    frame = np.zeros((4, 3, 3), np.uint8)
    frame[1, 2] = (1, 2, 3)
    lines = simulate.terminal_image(frame, columns=80)
    assert len(lines) == 2
    assert lines[0].count("\u2580") == 3
    assert lines[0].endswith("\x1b[38;2;0;0;0;48;2;1;2;3m\u2580\x1b[0m")
    lines = simulate.terminal_image(np.zeros((40, 60, 3), np.uint8), columns=30)
    assert [line.count("\u2580") for line in lines] == [30] * 10


def test_no_key_is_a_usage_error():
    with pytest.raises(UsageError, match="means nothing here"):
        simulate.of_keys("k", {".": (0.0,)})
