"""What making commands share: seeds, names of files, what can be written, and the plan of `vdit sample`."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vdit.cli import output, sample
from vdit.cli.batch import PromptSpec
from vdit.cli.parser import Parser, UsageError, duration
from vdit.errors import OutputError
from vdit.video.read import read_video


def options(*arguments):
    parser = Parser()
    sample.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(("arguments", "seeds"), [
    ((), [0]), (("--seed", "4"), [4]), (("--seed", "4", "--count", "3"), [4, 5, 6]), (("--seeds", "3, 1,8"), [3, 1, 8]),
    (("--seed", str(2**64 - 1)), [2**64 - 1]),
])  # fmt: skip
def test_seeds(arguments, seeds):
    assert output.seeds_of(options(*arguments)) == seeds


@pytest.mark.parametrize("arguments", [
    ("--seeds", "1,1"), ("--seeds", "a"), ("--seeds", ""), ("--count", "0"), ("--seeds", "1,2", "--count", "3"),
    ("--seeds", "1,2", "--seed", "3"), ("--seed", str(2**64)), ("--seed", "9" * 5000), ("--seed", "-1"),
    ("--seeds", f"1,{2**64}"), ("--seed", str(2**64 - 1), "--count", "2"),
])  # fmt: skip
def test_seeds_that_cannot_be_are_refused(arguments):
    with pytest.raises(UsageError):
        output.seeds_of(options(*arguments))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".mkv", ".png", ".jpg"])
def test_every_kind_is_written(tmp_path, suffix, capsys):
    video = np.linspace(-1, 1, 3 * 16 * 24 * 3, dtype=np.float32).reshape(3, 16, 24, 3)
    wanted = np.round((video + 1) * 127.5)
    path = tmp_path / "new" / f"a{suffix}"
    assert output.write(output.Target(path=path, replace=True), video, 10) == path
    assert capsys.readouterr().out == f"{path}\n"
    if suffix in output.IMAGE:
        got, wanted = np.asarray(Image.open(path))[None], wanted[:1]
    else:
        got = read_video(path).frames
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < (0.01 if suffix in (".mkv", ".png") else 8)


def requests(wishes, *arguments):
    asked = options("run", *arguments)
    return asked, sample._requests(asked, wishes)


def jobs(wishes, *arguments):
    asked, wanted = requests(wishes, *arguments)
    defaults = SimpleNamespace(frames=9, size=(32, 32))
    generator = SimpleNamespace(experiment=SimpleNamespace(sample=defaults))
    return [sample._job(asked, request, None, generator, 8.0, None) for request in wanted]


def test_each_prompt_and_seed_has_a_file(tmp_path):
    """The seed is in every automatic name, so that another seed makes another file."""
    image = duration("1")
    wishes = [
        PromptSpec(prompt="A dog!"),
        PromptSpec(prompt="cat", seed=7),
        PromptSpec(prompt="cat", frames=image, out="b/c.png"),
    ]
    names = [str(job.target.path.relative_to(tmp_path)) for job in jobs(wishes, "--out", str(tmp_path))]
    assert names == ["000-a-dog-seed0.mp4", "001-cat-seed7.mp4", "b/c.png"]
    made = jobs(wishes, "--out", str(tmp_path), "--count", "2")
    assert [str(job.target.path.relative_to(tmp_path)) for job in made] == [
        "000-a-dog-seed0.mp4", "000-a-dog-seed1.mp4", "001-cat-seed7.mp4", "001-cat-seed8.mp4",
        "b/c-seed0.png", "b/c-seed1.png",
    ]  # fmt: skip
    assert [job.seed for job in made] == [0, 1, 7, 8, 0, 1]
    assert not any(job.target.replace for job in made)
    (job,) = jobs(wishes[:1], "--out", str(tmp_path / "dog.mp4"))
    assert job.target == output.Target(path=tmp_path / "dog.mp4", replace=True)


@pytest.mark.parametrize(("out", "several", "path", "replace"), [
    (None, False, "loop-seed7.mp4", False),
    ("a/b.mp4", False, "a/b.mp4", True),
    ("a/b.mp4", True, "a/b-seed7.mp4", False),
    ("a", False, "a/loop-seed7.mp4", False),
    ("a/", True, "a/loop-seed7.mp4", False),
])  # fmt: skip
def test_where_a_video_goes(out, several, path, replace):
    assert output.target(out, "loop.mp4", 7, several=several) == output.Target(path=Path(path), replace=replace)


@pytest.mark.parametrize(("out", "file"), [
    ("dog.mp4", True), ("dog.MP4", True), ("dog.avi", True), ("dog.mp5", True), ("samples", False),
    ("samples.v2", False), ("run_0.5", False), ("a.mp4/", False), ("lr1e-4.step.2000", False),
])  # fmt: skip
def test_a_folder_may_have_a_dot_in_its_name(tmp_path, monkeypatch, out, file):
    monkeypatch.chdir(tmp_path)
    assert output.is_file(out) is file
    if not out.endswith("/"):
        Path(out).mkdir()
        assert not output.is_file(out)


def test_lines_of_one_shape_are_made_together_and_compile_once(tmp_path):
    """Whatever their order, all batches of a shape are as long, follow each other, and have one negative prompt."""
    rng = np.random.default_rng(0)
    wishes = [
        PromptSpec(prompt=str(k), frames=duration(str(rng.choice([1, 5, 9]))), size=(32, 32 * int(rng.integers(1, 3))),
             negative=str(rng.choice(["", "bad"])))
        for k in range(40)
    ]  # fmt: skip
    all_jobs = jobs(wishes, "--out", str(tmp_path))
    made, lengths, shapes = [], {}, []
    for batch, count in sample._batches(all_jobs, 4):
        assert len({job.negative for job in batch}) == 1
        (shape,) = {(job.frames, job.size) for job in batch}
        assert lengths.setdefault(shape, len(batch)) == len(batch) <= 4
        shapes.append(shape)
        made += batch[:count]
    assert sorted(made, key=all_jobs.index) == all_jobs
    assert sum(a != b for a, b in itertools.pairwise(shapes)) == len(set(shapes)) - 1
    assert [len(batch) for batch, _ in sample._batches(all_jobs[:1], 4)] == [1]  # no more than there are


@pytest.mark.parametrize(("arguments", "wishes", "named"), [
    (("--out", "x.mp4", "--count", "2"), [PromptSpec(prompt="a")], "one file for 2 videos"),
    (("--out", "x.mp4"), [PromptSpec(prompt="a", out="b.mp4")], "is a file, and .* names b.mp4"),
    ((), [PromptSpec(prompt="a", out="b.avi")], "out b.avi: ends in '.avi'"),
    ((), [PromptSpec(prompt="a", out="b.png", frames=duration("5"))], "out b.png: is an image"),
    (("--out", "x.gif", "--fps", "60"), [PromptSpec(prompt="a")], "at most 50 frames a second"),
    (("--out", "run/old.mp4"), [PromptSpec(prompt="a")], "run, which was given"),
    (("--out", "x.mp4/y.mp4", "--prompts", "x.mp4"), [PromptSpec(prompt="a")], "x.mp4 is a file"),
    (("--out", "x.mp4", "--image", "link.mp4"), [PromptSpec(prompt="a")], "x.mp4: was given"),
    (("--out", "x.mp4", "--lora", "x.mp4:0.5"), [PromptSpec(prompt="a")], "x.mp4: was given"),
    (("--out", "x.mp4/y"), [PromptSpec(prompt="a")], "x.mp4 is a file"),
    ((), [PromptSpec(prompt="a", out="c.mp4")] * 2, "names c.mp4 twice"),
    ((), [PromptSpec(prompt="a", out="c.mp4"), PromptSpec(prompt="b", out="./C.mp4")], "twice .as c.mp4"),
    ((), [PromptSpec(prompt="a", out="c.mp4/d.mp4"), PromptSpec(prompt="b", out="c.mp4")], "c.mp4/d.mp4, in a folder"),
    ((), [PromptSpec(prompt="a", out=f"{'n' * 300}.mp4")], "304 bytes"),
    (("--out", "."), [PromptSpec(prompt="a", out="x.mp4/d.mp4")], "x.mp4 is a file"),
    (("--out", "."), [PromptSpec(prompt="a", out="x.mp4")], "x.mp4: is in . already"),
    (("--out", "inside"), [PromptSpec(prompt="a", out="away/d.mp4")], "link out of the folder"),
])  # fmt: skip
def test_files_that_cannot_be_written_are_told_before_anything_is_loaded(
    tmp_path, monkeypatch, arguments, wishes, named
):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "inside", "outside"):
        Path(name).mkdir()
    for name in ("x.mp4", "run/old.mp4"):
        Path(name).write_text("given")
    Path("link.mp4").symlink_to("x.mp4")
    Path("inside/away").symlink_to("../outside", target_is_directory=True)
    asked, wanted = requests(wishes, *arguments)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((UsageError, OutputError), match=named):
        sample._check_out(asked, "run", wanted, [False] * len(wanted))
    assert sorted(tmp_path.rglob("*")) == before


def test_meshes_are_read_and_mistakes_named():
    assert output.read_mesh("fsdp=2,sequence=4").fsdp == 2
    with pytest.raises(UsageError, match=r"--mesh fdsp=2: .*fsdp"):
        output.read_mesh("fdsp=2")
