"""What commands tell on stderr, and when: nothing before what is asked was checked, weights last."""

import dataclasses
import io
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import vdit
from vdit.cli import canvas
from vdit.cli.main import main, parse
from vdit.cli.status import Status, numbers
from vdit.experiment.canvases import CanvasConfig
from vdit.generate import loading
from vdit.train.workspace import Workspace


def test_a_command_says_what_it_makes_how_long_it_takes_and_what_is_next(tiny_run, tmp_path, capsys):
    out = tmp_path / "a.mp4"
    assert main(["sample", str(tiny_run), "a red circle", "--out", str(out), "--seed", "7"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n", "stdout is for names of files"
    for part in (str(tiny_run), "1 video of 5 frames", "8 fps", "32x32", "seed 7", "euler, 1 step", "compiling ..."):
        assert part in said.err
    assert "1/1" in said.err
    assert re.search(rf"wrote {re.escape(str(out))}; \d+:\d\d in all.*GiB of memory", said.err)
    assert f"next: vdit extend {tiny_run} {out} 'a red circle'" in said.err
    longer = tmp_path / "b.mp4"
    assert main(["extend", str(tiny_run), str(out), "", "--after", "8", "--out", str(longer)]) == 0
    said = capsys.readouterr()
    assert said.err.index("seed 0") < said.err.index("loading") < said.err.index("compiling ...")
    assert "8/8" in said.err
    assert "next: vdit loop" in said.err


@pytest.mark.parametrize(("command", "arguments"), [
    ("sample", ["a", "--frames", "6"]),
    ("sample", ["a", "--size", "33x32"]),
    ("sample", ["a", "--image", "absent.png"]),
    ("sample", ["a", "--lora", "absent.safetensors"]),
    ("animate", ["absent.png", "a"]),
    ("animate", ["a.png", "b.png@9s", "a", "--frames", "9"]),
    ("extend", ["a.mkv", "a", "--after", "4", "--context", "300"]),
    ("connect", ["a.mkv", "a.mkv", "a", "--frames", "3"]),
    ("loop", ["a.mkv", "a", "--passage", "3"]),
    ("edit", ["a.mkv", "a", "--mask", "absent.png"]),
    ("inpaint", ["a.mkv", "a", "--box", "0,0,999,9"]),
    ("rollout", ["absent.png", "a", "--seconds", "1"]),
    ("simulate", ["a", "--keys", "w"]),  # the model is not told what is done
])  # fmt: skip
def test_what_cannot_be_is_told_before_the_weights_are_read(
    tiny_run, tmp_path, monkeypatch, capsys, command, arguments
):
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((9, 32, 32, 3), np.uint8)
    vdit.write_video("a.mkv", pixels, fps=8)
    Image.fromarray(pixels[0]).save("a.png")
    Image.fromarray(pixels[0]).save("b.png")
    monkeypatch.setattr(loading, "trained_params", lambda *args, **more: pytest.fail("the weights were read"))
    assert main([command, str(tiny_run), *arguments, "--out", "out.mp4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vdit: ")
    assert error.count("\n") == 1, "no head for what is refused"


@pytest.fixture
def cache(tmp_path):
    """A folder in the place of jax's compilation cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_time_that_work_took_is_told_the_next_time(cache, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("vdit.cli.status.time.monotonic", lambda: now[0])

    def make(work, model="m"):
        out = io.StringIO()
        with Status("sample", console=Console(file=out)) as status:
            status.model = model
            with status.progress("videos", 2, work=work) as display:
                now[0] += 60.0
                display.update(2, {})
        return out.getvalue()

    assert "takes" not in make(10)
    assert "about 2:00" in make(20), "twice the work"
    assert "takes" not in make(20, model="another")
    (cache / "paces.json").write_text("[1")
    assert "takes" not in make(20), "a damaged file costs a guess and nothing else"


def test_numbers():
    assert [numbers([0]), numbers([0, 1]), numbers([4, 5, 6]), numbers([1, 5, 9])] == ["0", "0, 1", "4 to 6", "1, 5, 9"]


@pytest.mark.parametrize(("command", "options", "canvases", "sampler"), [
    ("extend", [], CanvasConfig(), "resample"), ("extend", [], CanvasConfig(none=0.5, first=0.5), "euler"),
    ("extend", ["--sampler", "heun"], CanvasConfig(), "heun"), ("edit", [], CanvasConfig(), "euler"),
])  # fmt: skip
def test_the_sampler_that_is_told_is_the_one_that_is_used(tiny_run, command, options, canvases, sampler):
    options, _ = parse([command, "RUN", "a.mkv", "a dog", *options])
    words = canvas.Words(folder="RUN", inputs=("a.mkv",), prompt="a dog")
    generator = SimpleNamespace(experiment=dataclasses.replace(Workspace(tiny_run).experiment(), canvases=canvases))
    status = Status(command, console=Console(file=io.StringIO()))
    canvas.tell(options, words, generator, status, fps=8, frames=9, made=4)
    assert f"with     {sampler}, " in "\n".join(status._head)
