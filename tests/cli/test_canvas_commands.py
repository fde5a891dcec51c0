"""The commands on a canvas: one grammar, the user's frames kept in the file, and what cannot be in one line."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vdit
from tests import tiny
from vdit.cli import canvas
from vdit.cli.main import main
from vdit.cli.parser import UsageError, duration

COMMANDS = ("animate", "extend", "loop", "connect")


@pytest.fixture
def made(monkeypatch):
    """What the model was asked for: it makes noise, and no run is read."""
    generator = tiny.Noise(tiny.experiment())
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, mesh, **options: generator)
    return generator.asked


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a.mkv (9 frames of 20 x 24 at 6 fps), b.mkv (16 frames of 32 x 32 at 12 fps), a.png and b.png."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, count, size, fps in [("a", 9, (20, 24), 6), ("b", 16, (32, 32), 12)]:
        frames = rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)
        vdit.write_video(folder / f"{name}.mkv", frames, fps=fps)
        Image.fromarray(frames[0]).save(folder / f"{name}.png")
    return folder


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def fitted(files, name, fps=8.0):
    """The frames as the command takes them: at the model's rate, 16 x 16, which suits the first within its area."""
    from vdit.generate.inputs import read_input

    return read_input(files / name, size=(16, 16), fps=fps).frames


def test_extend_keeps_the_video_at_the_models_rate(made, files, tmp_path, capsys):
    out = tmp_path / "new" / "longer.mkv"
    run("extend", "RUN", files / "a.mkv", "a dog", "--after", "2s", "--before", 5, "--out", out, "--steps", 3)
    clip, given = vdit.read_video(out), fitted(files, "a.mkv")
    assert clip.fps == 8
    assert len(given) == 12  # 1.5 s
    assert len(clip.frames) == 5 + 12 + 16
    np.testing.assert_array_equal(clip.frames[5:17], given)
    assert {call["sampling"]["steps"] for call in made} == {3}
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    lines = said.err.splitlines()
    (note,) = (line for line in lines if line.startswith("input    a.mkv: 20x24 at 6 fps, "))
    assert note.endswith("taken at 8 fps: 12 frames, some of them twice")
    assert "prompt   'a dog': 33 frames, 21 of them new, 4.125 s at 8 fps" in lines


@pytest.mark.parametrize(("command", "name", "length"), [
    (("extend", "--after", 4), "b.mkv", 11 + 4), (("loop", "--passage", 4), "a.mkv", 12 + 4),
    (("animate", "--frames", "1s"), "b.mkv", 8),
])  # fmt: skip
def test_whatever_the_inputs_rate_the_model_works_at_its_own(made, files, tmp_path, command, name, length):
    command, *options = command
    out = tmp_path / "out.mkv"
    run(command, "RUN", files / name, "", *options, "--out", out)
    clip = vdit.read_video(out)
    assert clip.fps == 8
    assert len(clip.frames) == length


def test_loop_of_a_video_and_of_a_prompt(made, files, tmp_path):
    run("loop", "RUN", files / "a.mkv", "", "--passage", "1.2s", "--out", tmp_path / "a.mkv")
    clip = vdit.read_video(tmp_path / "a.mkv").frames
    assert len(clip) == 12 + 8  # 9.6 frames, to a multiple of 4
    np.testing.assert_array_equal(clip[:12], fitted(files, "a.mkv"))
    arguments = ["--frames", "2s", "--passage", 4, "--size", "16x32", "--seed", 5, "--count", 2]
    run("loop", "RUN", "waves", *arguments, "--out", tmp_path / "w.mkv")
    clips = [vdit.read_video(tmp_path / f"w-seed{seed}.mkv") for seed in (5, 6)]
    for clip in clips:
        assert clip.frames.shape == (16 + 4, 16, 32, 3)
        assert clip.fps == 8  # the model's
    assert (clips[0].frames[0] != clips[1].frames[0]).any()


def test_connect_takes_both_at_one_rate_and_the_size_of_the_first(made, files, tmp_path, capsys):
    for asked, fps, length in (
        ([], 8, 12 + 4 + 11), (["--blend", "--strength", 0.5, "--fps", 6], 6, 9 - 4 + 8),
    ):  # fmt: skip
        out = tmp_path / "both.mkv"
        run("connect", "RUN", files / "a.mkv", files / "b.mkv", "", "--frames", 4, *asked, "--out", out)
        clip = vdit.read_video(out)
        assert clip.fps == fps
        assert len(clip.frames) == length
        np.testing.assert_array_equal(clip.frames[:5], fitted(files, "a.mkv", fps=fps)[:5])
        np.testing.assert_array_equal(clip.frames[-4:], fitted(files, "b.mkv", fps=fps)[-4:])
        said = capsys.readouterr().err
        assert ("--fps 6: the model makes 8 frames a second" in said) == (fps == 6)
    assert made[-1]["given"].level.max() == np.float32(0.5)


def test_animate_puts_images_at_their_times(made, files, tmp_path):
    out = tmp_path / "dog.mkv"
    images = files / "a.png", f"{files / 'b.png'}@1.5s"
    run("animate", "RUN", *images, "a dog", "--frames", "2s", "--fps", 10, "--out", out)
    clip = vdit.read_video(out)
    assert clip.fps == 10
    assert len(clip.frames) == 20
    np.testing.assert_array_equal(clip.frames[0], fitted(files, "a.png")[0])
    np.testing.assert_array_equal(clip.frames[15], fitted(files, "b.png")[0])
    run("animate", "RUN", f"{files / 'b.png'}@4", "", "--out", out, "--size", "16x16")  # of the model's own length
    clip = vdit.read_video(out)
    assert (len(clip.frames), clip.fps) == (9, 8)
    np.testing.assert_array_equal(clip.frames[4], fitted(files, "b.png")[0])


def test_a_trained_run_extends_a_video(tiny_run, files, tmp_path):
    out = tmp_path / "longer.mkv"
    run("extend", tiny_run, files / "b.mkv", "a red circle", "--after", 4, "--out", out)
    frames = vdit.read_video(out).frames
    assert frames.shape == (15, 32, 32, 3)
    np.testing.assert_array_equal(frames[:11], vdit.read_video(files / "b.mkv", fps=8).frames)
    assert frames[11:].std() > 0


@pytest.mark.parametrize(("arguments", "named"), [
    (["extend"], "no model: give RUN"),
    (["extend", "RUN", "a.mkv", "--after", "4"], "give VIDEO PROMPT, and quote the prompt"),
    (["extend", "RUN", "a.mkv", "a", "dog", "--after", "4"], "give VIDEO PROMPT, and quote the prompt"),
    (["extend", "RUN", "a.mkv", "b.mkv", "--after", "4"], "'b.mkv' is a file, where the prompt should be"),
    (["extend", "RUN", "a.mkv", "a dog"], "nothing to make: give --after"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "2m"], "'2m' must be a number of frames, as in 48, or of seconds"),
    (["extend", "RUN", "a.mkv", "a dog", "--after=-4"], "'-4' must be a number of frames"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "0"], "nothing to make"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "4", "--context", "30"], "context=30: in a window of 17 frames"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "4", "--out", "x.avi"], "--out x.avi"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "4", "--out", "x.avi"], "--out x.avi: ends in"),
    (["extend", "RUN", "a.mkv", "a dog", "--after", "4", "--size", "17x16"], "size 17x16"),
    (["extend", "RUN", "none.mkv", "a dog", "--after", "4"], "none.mkv"),
    (["loop", "RUN", "a.mkv"], "'a.mkv' is a file, where the prompt should be"),
    (["loop", "RUN", "a.mkv", "", "--frames", "8"], "leave it out where VIDEO is given"),
    (["loop", "RUN", "a.mkv", "", "--passage", "9"], "passage=9 must be a multiple of 4, made at once: use 8 or 12"),
    (["connect", "RUN", "a.mkv", "a dog"], "give VIDEO VIDEO PROMPT"),
    (["connect", "RUN", "a.mkv", "b.mkv", "", "--strength", "0.5"], "add --blend"),
    (["connect", "RUN", "a.mkv", "a.mkv", "", "--frames", "4", "--blend", "--strength", "2"], "strength=2.0"),
    (["animate", "RUN", "a dog"], "give IMAGE[@TIME]... PROMPT"),
    (["animate", "RUN", "a.png", "b.png", ""], "a.png and b.png: one is the first frame"),
    (["animate", "RUN", "a.png", "b.png@soon", ""], "b.png@soon: the time after @"),
    (["animate", "RUN", "a.png", "b.png@2"], "'b.png@2' is a file, where the prompt should be"),
    (["animate", "RUN", "a.png", "b.png@9s", "", "--frames", "9"], "time 72 is not in a video of 9 frames"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(made, files, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(files)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1
    assert made == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_and_starts_nothing_heavy(command):
    code = f"import sys; from vdit.cli.main import main; main(['{command}', '--help']); " \
           "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'av')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"vdit {command} runs/mine" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_durations_and_times(tmp_path, monkeypatch):
    assert [duration(text).frames(12.5) for text in ("48", "2s", "1.5s", ".5s")] == [48, 25, 19, 6]
    assert canvas.split_time("a@b/end.jpg@1.5s") == ("a@b/end.jpg", duration("1.5s"))
    assert canvas.split_time("end.jpg") == ("end.jpg", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home.jpg").write_bytes(b"")
    assert canvas.split_time("me@home.jpg") == ("me@home.jpg", None)
    with pytest.raises(UsageError, match=r"'home\.png' must be a number of frames"):
        canvas.split_time("me@home.png")
