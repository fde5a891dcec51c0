"""What is given is not replaced, by whatever name; what cannot be written is found before; names are taken once."""

import concurrent.futures
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdit.errors import OutputError
from vdit.generate.images import read_image
from vdit.outputs import check_new_folder, check_output, files_given, note_read, write_whole
from vdit.video.read import read_video, write_video

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.fixture
def given(tmp_path) -> Path:
    """A folder with dog.mp4, and other names of it outside."""
    folder = tmp_path / "given"
    (folder / "sub").mkdir(parents=True)
    (folder / "dog.mp4").write_bytes(b"dog")
    (folder / "sub" / "cat.mp4").write_bytes(b"cat")
    (tmp_path / "symlink.mp4").symlink_to(folder / "dog.mp4")
    (tmp_path / "hard.mp4").hardlink_to(folder / "dog.mp4")
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    (tmp_path / "other.mp4").write_bytes(b"")
    return folder


@pytest.mark.parametrize("out", [
    "given/dog.mp4", "given/sub/../dog.mp4", "symlink.mp4", "hard.mp4", "linked/dog.mp4", "linked/sub/../dog.mp4",
])  # fmt: skip
def test_a_given_file_is_refused_by_all_its_names(tmp_path, given, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (out, tmp_path / out):
        with pytest.raises(OutputError, match="was given"):
            check_output(path, given=["absent.mp4", given / "dog.mp4"])


def test_a_given_folder_keeps_its_files_and_takes_new_ones(tmp_path, given):
    for out in (given / "dog.mp4", given / "sub" / "cat.mp4", tmp_path / "linked" / "sub" / "cat.mp4"):
        with pytest.raises(OutputError, match="was given"):
            check_output(out, given=[tmp_path / "linked"])
    check_output(given / "new.mp4", given=[given])
    check_output(tmp_path / "other.mp4", given=[given])


@pytest.mark.parametrize(("out", "named"), [
    ("other.mp4/a.mp4", "other.mp4 is a file and no folder"),
    ("a/b\0c.mp4", "NUL"),
    ("a/" + "b" * 300 + ".mp4", "304 bytes"),
    ("é" * 130 + ".mp4", "264 bytes"),
    ("a/\ud800.mp4", "not a possible file name"),
    ("given", "is a folder"),
    ("pipe.mp4", "no ordinary file"),
    ("/".join(["d" * 200] * 25) + "/a.mp4", "more than 4095"),
])  # fmt: skip
def test_what_cannot_be_written_is_found_and_nothing_is_left(tmp_path, given, out, named):
    os.mkfifo(tmp_path / "pipe.mp4")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=named):
        check_output(tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not stop this user")
def test_a_folder_without_permission_is_found(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "a.mp4")
    tmp_path.chmod(0o700)


def test_new_folders_are_empty_or_absent(tmp_path):
    check_new_folder(tmp_path / "a" / "b")
    check_new_folder(tmp_path)
    (tmp_path / "file").write_text("")
    for path, named in ((tmp_path, "not empty"), (tmp_path / "file", "is a file"), (tmp_path / "file" / "a", "file")):
        with pytest.raises(OutputError, match=named):
            check_new_folder(path)


def test_names_are_taken_once_whoever_asks_at_the_same_time(tmp_path):
    def take(k: int) -> Path:
        return write_whole(tmp_path / "a.v1.mp4", lambda part: part.write_text(str(k)), replace=False)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(take, range(40)))
    assert {path.name for path in paths} == {"a.v1.mp4", *(f"a.v1-{k}.mp4" for k in range(2, 41))}
    assert [path.read_text() for path in paths] == [str(k) for k in range(40)]
    assert len(list(tmp_path.iterdir())) == 40


def test_names_are_taken_once_where_there_are_no_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    names = [write_whole(tmp_path / "a", lambda part: part.write_text("x"), replace=False).name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a.txt", fail, replace=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_python_does_not_write_over_what_it_has_read(tmp_path):
    """From Python no command knows the sources: what was read is what was given, unless it was written here."""
    mine, source, picture = tmp_path / "mine.mkv", tmp_path / "dog.mkv", tmp_path / "dog.gif"
    write_video(mine, FRAMES, fps=8)
    os.rename(mine, source)
    Image.new("RGB", (8, 8)).save(picture)
    before = source.read_bytes(), picture.read_bytes()
    frames = read_video(source).frames
    read_image(picture)
    (tmp_path / "link.mkv").symlink_to(source)
    for path in (source, tmp_path / "link.mkv", picture):
        with pytest.raises(OutputError, match="was given"):
            write_video(path, frames, fps=8)
    assert (source.read_bytes(), picture.read_bytes()) == before
    for _ in range(2):  # a file of its own may be looked at, and written again
        write_video(mine, frames, fps=8)
        assert len(read_video(mine).frames) == len(frames)


def test_what_was_deleted_is_not_given(tmp_path):
    path = tmp_path / "a.mkv"
    note_read(path)
    write_video(path, FRAMES, fps=8)
    write_video(path, FRAMES, fps=8)


def test_files_are_noted_by_several_threads(tmp_path):
    names = [str(tmp_path / f"{k}.mp4") for k in range(2000)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        seen = [pool.submit(note_read, name) for name in names] + [pool.submit(files_given) for _ in range(200)]
    for future in seen:
        future.result()
    assert set(names) <= {str(path) for path in files_given()}
