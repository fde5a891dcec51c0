"""What making commands share: seeds, names of files, what can be written, and the plan of `vdit sample`."""

import itertools

import numpy as np
import pytest
from PIL import Image

from vdit.cli import output, sample
from vdit.cli.parser import Parser, UsageError
from vdit.cli.prompts import Wish
from vdit.video_io import read_video


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
    output.write(path, video, 10)
    assert capsys.readouterr().out == f"{path}\n"
    if suffix in output.IMAGE:
        got, wanted = np.asarray(Image.open(path))[None], wanted[:1]
    else:
        got = read_video(path).frames
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < (0.01 if suffix in (".mkv", ".png") else 8)


def jobs(wishes, *arguments):
    asked = options(*arguments)
    return sample._jobs(asked, wishes, output.seeds_of(asked), 9, (32, 32))


def test_each_prompt_and_seed_has_a_file(tmp_path):
    wishes = [Wish(prompt="A dog!"), Wish(prompt="cat", seed=7), Wish(prompt="cat", frames=1, out="b/c.png")]
    names = [str(job.path.relative_to(tmp_path)) for job in jobs(wishes, "--out", str(tmp_path))]
    assert names == ["000-a-dog.mp4", "001-cat.mp4", "b/c.png"]
    made = jobs(wishes, "--out", str(tmp_path), "--count", "2")
    assert [str(job.path.relative_to(tmp_path)) for job in made] == [
        "000-a-dog-seed0.mp4", "000-a-dog-seed1.mp4", "001-cat-seed7.mp4", "001-cat-seed8.mp4",
        "b/c-seed0.png", "b/c-seed1.png",
    ]  # fmt: skip
    assert [job.seed for job in made] == [0, 1, 7, 8, 0, 1]
    with pytest.raises(UsageError, match=r"names c.mp4 twice"):
        jobs([Wish(prompt="a", out="c.mp4")] * 2, "--out", str(tmp_path))


def test_lines_of_one_shape_are_made_together_and_compile_once(tmp_path):
    """Whatever their order, all batches of a shape are as long, follow each other, and have one negative prompt."""
    rng = np.random.default_rng(0)
    wishes = [
        Wish(prompt=str(k), frames=int(rng.choice([1, 5, 9])), size=(32, 32 * int(rng.integers(1, 3))),
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
    (("--out", "x.mp4", "--count", "2"), [Wish(prompt="a")], "one file for 2 videos"),
    (("--out", "x.mp4"), [Wish(prompt="a", out="b.mp4")], "is a file, and .* names b.mp4"),
    ((), [Wish(prompt="a", out="b.avi")], "out b.avi: ends in '.avi'"),
    ((), [Wish(prompt="a", out="b.png", frames=5)], "out b.png: is an image"),
    (("--out", "x.gif", "--fps", "60"), [Wish(prompt="a")], "at most 50 frames a second"),
])  # fmt: skip
def test_files_that_cannot_be_written_are_told_before_anything_is_loaded(arguments, wishes, named):
    asked = options(*arguments)
    with pytest.raises(UsageError, match=named):
        sample._check_out(asked, wishes, output.seeds_of(asked))


def test_meshes_are_read_and_mistakes_named():
    assert output.read_mesh("fsdp=2,sequence=4").fsdp == 2
    with pytest.raises(UsageError, match=r"--mesh fdsp=2: .*fsdp"):
        output.read_mesh("fdsp=2")


def test_progress_is_for_those_who_wait(capsys):
    assert output.progress("videos", 1) is None
    display = output.progress("videos", 2)
    display.update(1, {})
    display.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/2" in err
