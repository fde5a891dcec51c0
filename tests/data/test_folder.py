"""Folders of video files: captions files, broken files, real clips."""

import json

import av
import numpy as np
import pytest

from tests.data_paths import shared_data
from vdit.data import DataConfig, FolderDataset, FolderSource, open_source
from vdit.data.captions import read_captions
from vdit.errors import ConfigError, DataError


def write_film(path, frames=24, size=(64, 48), fps=12):
    """A tiny ffv1/mpeg4 film, written with PyAV itself."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            image = np.full((size[1], size[0], 3), 40 + 8 * i % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_film(tmp_path / name)
    return tmp_path


CONFIG = dict(pixel_budgets=(32 * 32, 48 * 64), frames=(1, 9), fps=(6.0, 12.0), threads=2)


def captions_file(folder, text, name="captions.jsonl"):
    (folder / name).write_text(text)


def test_captions_from_jsonl_csv_and_txt(folder):
    (folder / "a.txt").write_text("beside a\nthe longer one\n")
    assert [(e.file, e.captions) for e in read_captions(folder).entries] == [
        ("a.mp4", ("beside a", "the longer one")), ("b.mp4", ("",)), ("c.mp4", ("",))]
    captions_file(folder, 'file,caption,detailed\nb.mp4,"a, quoted",more\n', "captions.csv")
    assert [(e.file, e.captions) for e in read_captions(folder).entries] == [("b.mp4", ("a, quoted", "more"))]
    captions_file(folder, '{"file": "a.mp4", "caption": "one", "label": 3}\n\n'
                          '{"file": "b.mp4", "captions": ["one", "two"]}\n')
    entries = read_captions(folder).entries
    assert [(e.file, e.captions, e.label) for e in entries] == [
        ("a.mp4", ("one",), 3), ("b.mp4", ("one", "two"), 0)]
    assert len(read_captions(folder, "captions.csv").entries) == 1


@pytest.mark.parametrize(("text", "message"), [
    ("{", "line 1: is not JSON"), ('{"caption": "x"}', 'line 1: give "file"'), ("[1]", r"line 1: is \[1\]"),
    ('{"file": "a.mp4", "caption": 3}', "captions must be text"),
    ('{"file": "a.mp4", "label": "cat"}', "label is 'cat'"),
    ('{"file": "a.mp4"}\n{"file": "a.mp4"}', "twice"),
])
def test_a_captions_file_that_is_wrong_is_refused_with_its_line(folder, text, message):
    captions_file(folder, text)
    with pytest.raises(DataError, match=message):
        read_captions(folder)


def test_missing_folders_and_captions_files_are_named(folder):
    with pytest.raises(DataError, match="is not a folder"):
        FolderDataset(folder / "none")
    with pytest.raises(DataError, match=r"'other.csv' is neither"):
        FolderDataset(folder, "other.csv")
    with pytest.raises(ConfigError, match=r"needs data.source.path"):
        open_source(DataConfig(source=FolderSource()))


def test_broken_files_are_skipped_counted_and_reported(folder):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video")
    names = ["a.mp4", "b.mp4", "c.mp4", "empty.mp4", "text.mp4", "gone.mp4"]
    captions_file(folder, "\n".join(json.dumps({"file": name, "caption": name}) for name in names))
    source = open_source(DataConfig(source=FolderSource(path=str(folder)), **CONFIG))
    assert len(source) == 3
    assert set(source.report()) == {"empty.mp4", "text.mp4", "gone.mp4"}
    assert "missing" in source.report()["gone.mp4"]
    assert {source[i]["id"] for i in range(3)} == {"a.mp4", "b.mp4", "c.mp4"}


def test_a_file_that_breaks_later_is_replaced_by_the_next(folder):
    source = open_source(DataConfig(source=FolderSource(path=str(folder)), **CONFIG))
    (folder / "b.mp4").write_bytes(b"gone bad")
    assert [source[i]["id"] for i in range(3)] == ["a.mp4", "c.mp4", "c.mp4"]
    assert list(source.report()) == ["b.mp4"]


def test_a_folder_of_broken_files_only_is_refused(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"no video that can be read \(tried 1\); for one, x.mp4"):
        FolderDataset(tmp_path)


def test_excluded_files_are_left_out(folder):
    source = open_source(DataConfig(source=FolderSource(path=str(folder)), **CONFIG), exclude=("b.mp4",))
    assert [source.name(i) for i in range(len(source))] == ["a.mp4", "c.mp4"]
    with pytest.raises(DataError, match="excluded"):
        open_source(DataConfig(source=FolderSource(path=str(folder)), **CONFIG), exclude=("typo.mp4",))


def test_real_clips_read_at_many_sizes_without_a_skip():
    path = shared_data("clips")
    sizes = {"pixel_budgets": (64 * 64, 96 * 96), "frames": (1, 9, 17), "fps": (8.0, 24.0)}
    config = DataConfig(source=FolderSource(path=str(path)), threads=2, **sizes)
    source = open_source(config, exclude=("exo_portrait_4k60.mp4", "exo_portrait_bracelet_hevc10.mp4"))
    shapes = set()
    for i in range(0, len(source), 3):
        sample = source[i]
        shapes.add(sample["video"].shape)
        (h, w), (gh, gw) = sample["size"], sample["video"].shape[1:3]
        assert 0.85 < gw / gh / (w / h) < 1.18
        assert sample["captions"][0]
    assert len(shapes) > 4
    assert not source.report()
