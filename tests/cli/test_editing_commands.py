"""vdit edit and vdit inpaint: what is not to be made stays in the file, and what cannot be is said in one line."""

import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import vdit
from tests import tiny
from vdit.cli.main import main
from vdit.generate.inputs import read_input


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(window=9)


@pytest.fixture
def model(monkeypatch, generator):
    """Its VAE is real; its latents are noise, another for all else that it is told."""

    def draw(task, mesh, parameters, prompts, key, noise, given):
        source = b"" if given.source is None else np.asarray(given.source.ids).tobytes()
        told = [np.asarray(x).tobytes() for x in (given.canvas.level, prompts[0].ids, jax.random.key_data(key))]
        rng = np.random.default_rng(zlib.crc32(b"".join([repr(task).encode(), source, *told])))
        return rng.normal(size=given.canvas.latents.shape).astype(np.float32)

    monkeypatch.setattr("vdit.generate.generator.sample", draw)
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, mesh, **options: generator)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """a.mkv, 13 frames of 32 x 32 at 8 fps; mask.png, white in a corner; small.png, another size."""
    folder = tmp_path_factory.mktemp("files")
    video = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3)).astype(np.uint8)
    vdit.write_video(folder / "a.mkv", video, fps=8)
    mask = np.zeros((32, 32), np.uint8)
    mask[:12, 20:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:16]).save(folder / "small.png")
    return folder


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def test_inpaint_keeps_what_is_not_masked_in_the_file(model, files, tmp_path, capsys):
    given = read_input(files / "a.mkv", size=(16, 16)).frames
    out = tmp_path / "out.mkv"
    run("inpaint", "RUN", files / "a.mkv", "a", "--mask", files / "mask.png", "--out", out)
    made = vdit.read_video(out)
    mask = np.zeros((16, 16), bool)
    mask[:6, 10:] = True
    assert made.fps == 8
    np.testing.assert_array_equal(made.frames[:, ~mask], given[:, ~mask])
    assert (made.frames[:, mask] != given[:, mask]).mean() > 0.5
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "input    a.mkv: 32x32 at 8 fps, scaled to 16x16" in said.err
    assert "prompt   'a': 13 frames, 1.625 s at 8 fps\n" in said.err
    vdit.write_video(tmp_path / "twice.mkv", np.repeat(vdit.read_video(files / "a.mkv").frames, 2, axis=0), fps=16)
    boxes = ["--box", "20,0,12,12@0.5-1", "--box", "50%,50%,25%,25%@1-"]
    run("inpaint", "RUN", tmp_path / "twice.mkv", "a", *boxes, "--out", out)  # taken at the model's 8 fps
    made = vdit.read_video(out).frames
    moving = np.zeros((13, 16, 16), bool)
    moving[4:8, :6, 10:] = moving[8:, 8:12, 8:12] = True
    np.testing.assert_array_equal(made[~moving], given[~moving])
    assert (made[moving] != given[moving]).mean() > 0.5


@pytest.mark.parametrize(("asked", "size", "at"), [
    (["--outpaint", "2:1"], (8, 16), (0, 4)), (["--outpaint", "16x32", "--at", "0,3"], (16, 32), (0, 3)),
    (["--outpaint", "1:2", "--size", "16x16"], (32, 16), (8, 0)),
])  # fmt: skip
def test_outpaint_stands_in_its_frame(model, files, tmp_path, asked, size, at):
    out = tmp_path / "out.mkv"
    run("inpaint", "RUN", files / "a.mkv", "a", *asked, "--take", 5, "--out", out)
    made = vdit.read_video(out).frames
    side = min(size)
    given = read_input(files / "a.mkv", size=(side, side)).frames[:5]
    assert made.shape == (5, *size, 3)
    np.testing.assert_array_equal(made[:, at[0] : at[0] + side, at[1] : at[1] + side], given)


def test_edit_is_the_function(model, files, tmp_path, generator):
    given = read_input(files / "a.mkv", size=(16, 16)).frames[:9]
    same = ["--take", 9, "--steps", 2, "--out", tmp_path / "out.mkv"]
    for asked, options in (
        (["--strength", "0:0.8", "--seed", 3], {"strength": np.linspace(0, 0.8, 9), "seed": 3}),
        (["--structure", "2@0.1"], {"structure": vdit.Structure(factor=2.0, until=0.1)}),
        (["--strength", 0.5, "--invert", "--source", "b"], {"strength": 0.5, "invert": True, "source": "b"}),
    ):
        run("edit", "RUN", files / "a.mkv", "a", *asked, *same)
        made = vdit.edit(generator, "a", given, steps=2, **options)[0]
        wanted = np.round((made + 1) * 127.5)
        assert np.abs(vdit.read_video(tmp_path / "out.mkv").frames - wanted).max() <= 1


@pytest.mark.parametrize(("arguments", "line"), [
    (["edit", "RUN", "a.mkv", "a", "--strength", "1.5"], "'1.5' must be a level above 0 and at most 1"),
    (["edit", "RUN", "a.mkv", "a", "--strength", "0"], "'0' must be a level"),
    (["edit", "RUN", "a.mkv", "a", "--source", "b"], "add --invert"),
    (["edit", "RUN", "a.mkv", "a", "--structure", "x"], "--structure x: write FACTOR"),
    (["edit", "RUN", "a.mkv", "a", "--structure", "0.5"], "factor=0.5: give 1"),
    (["edit", "RUN", "a.mkv", "a", "--mask", "m.png", "--box", "0,0,1,1"], "--mask and --box: give one of them"),
    (["inpaint", "RUN", "a.mkv", "a"], "nothing to make: give one of --mask FILE"),
    (["inpaint", "RUN", "a.mkv", "a", "--mask", "m.png", "--outpaint", "2:1"], "--mask and --outpaint: give one of"),
    (["inpaint", "RUN", "a.mkv", "a", "--box", "1,2,3"], "box '1,2,3' cannot be read"),
    (["inpaint", "RUN", "a.mkv", "a", "--box", "0,0,1,1", "--at", "0,0"], "add --outpaint"),
    (["inpaint", "RUN", "a.mkv", "a", "--outpaint", "wide"], "size 'wide' cannot be read"),
    (["inpaint", "RUN", "a.mkv", "a", "--outpaint", "0:9"], "--outpaint 0:9: write WIDTH:HEIGHT"),
    (["inpaint", "RUN", "a.mkv", "a", "--outpaint", "2:1", "--at", "x"], "--at x: write Y,X"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line_before_anything_is_loaded(capsys, monkeypatch, arguments, line):
    monkeypatch.setattr("vdit.generate.open_generator", lambda *args, **options: pytest.fail("loaded"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_what_does_not_fit_is_one_line(model, files, tmp_path, capsys):
    def line(*arguments):
        assert main(["inpaint", "RUN", str(files / "a.mkv"), "a", "--out", str(tmp_path / "o.mkv"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "is 16x32, a.mkv is 32x32" in line("--mask", str(files / "small.png"))
    assert "does not lie within the 32x32 pixels" in line("--box", "30,0,12,12")
    assert "that is text to video" in line("--box", "0,0,32,32")
    assert "does not go into a frame of 16x8" in line("--outpaint", "16x8", "--size", "16x16")
    assert "nothing is to be made" in line("--outpaint", "16x16")
