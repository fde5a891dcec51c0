"""One decoding: probe, cut, split, measure; what a damaged file costs; the DoFn."""

import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.measures import COLUMNS, MeasureOptions, Meter, measure
from data_pipelines.probe import probe
from data_pipelines.records import ClipRecord
from data_pipelines.scan import ScanOptions, scan
from data_pipelines.scenes import CutOptions, cut
from data_pipelines.split import SplitOptions, split
from tests.conftest import ROOT
from tests.data_pipelines.shots import film, shot
from vdit.errors import ConfigError, VideoError
from vdit.video.read import read_video


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """20 + 30 + 25 frames at 10 frames a second."""
    return film(tmp_path_factory.mktemp("films") / "a.mkv", [shot(1, 20), shot(2, 30, speed=1.0), shot(3, 25)], 10)


def test_scan_is_cut_split_and_measure(path):
    record = probe(ClipRecord(path=path))
    options = ScanOptions(split=SplitOptions(longest=1.6))
    clips = scan(record, options)
    apart = [clip for scene in cut(record) for clip in split(scene, options.split)]
    assert [clip.start for clip in clips] == [Fraction(k, 10) for k in (0, 10, 20, 35, 50, 63)]
    assert [clip.end for clip in clips][:-1] == [clip.start for clip in clips][1:]
    assert clips[-1].end == Fraction(75, 10)
    assert len(apart) == len(clips)
    assert [clip.measures["motion"] == 0 for clip in clips] == [True, True, False, False, True, True]  # over no cut
    for clip in clips:
        assert set(COLUMNS) <= set(clip.measures)
        assert ClipRecord.from_json(clip.to_json()) == clip
        alone = measure(clip.replace(measures=record.measures, signature=None))
        assert alone.measures["exposure"] == clip.measures["exposure"]
        assert alone.measures["frames"] == clip.measures["frames"]


def test_frames_whose_scene_is_done_are_let_go(path, monkeypatch):
    """Memory is that of a scene and of a block of the detector; the clips are the same."""
    record, options = ClipRecord(path=path), ScanOptions()
    whole = scan(record, options)
    monkeypatch.setattr(scenes, "_BLOCK", 10)
    monkeypatch.setattr(scenes, "LONGEST_S", 0.05)
    held, forget = [], Meter.forget
    monkeypatch.setattr(Meter, "forget", lambda self, index: held.append((index, self.count)) or forget(self, index))
    assert scan(record, options) == whole
    assert held[0][0] == 20
    assert held[0][1] < 75  # before the end of the file


def test_the_reader_gives_exactly_the_frames_of_a_clip(path):
    """What the shards will hold is what was measured."""
    whole = read_video(path).frames
    for scene, (a, b) in zip(cut(ClipRecord(path=path)), ((0, 20), (20, 50), (50, 75))):
        frames = read_video(path, start=float(scene.start), duration=float(scene.end - scene.start)).frames
        np.testing.assert_array_equal(frames, whole[a:b])


def test_no_pixel_is_read_for_a_probe(path):
    record = probe(ClipRecord(path=path))
    assert record.size == (90, 160)
    assert record.measures["fps"] == pytest.approx(10)
    assert record.end is None


def test_a_damaged_file_gives_what_comes_before(path, tmp_path):
    data = Path(path).read_bytes()
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data[: len(data) * 3 // 4])
    clips = scan(ClipRecord(path=str(broken)))
    assert clips[0].measures["frames"] == 20
    assert str(broken) in clips[0].measures["damage"]
    with pytest.raises(VideoError, match=r"broken\.mkv"):
        scan(ClipRecord(path=str(broken)), ScanOptions(keep_damaged=False))


def test_a_text_that_is_no_video_is_one_error(tmp_path):
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        scan(ClipRecord(path=str(tmp_path / "a.mp4")))


def test_split_is_even_and_whole():
    scene = ClipRecord(path="a", start=Fraction(1), end=Fraction(22))
    clips = split(scene, SplitOptions(longest=10))
    assert [clip.duration for clip in clips] == [7, 7, 7]
    trimmed = split(scene, SplitOptions(longest=100, margin=0.5))[0]
    assert (trimmed.start, trimmed.end) == (Fraction(3, 2), Fraction(43, 2))


@pytest.mark.parametrize("options", [{"shortest": -1}, {"shortest": 5, "longest": 4}, {"longest": float("inf")}])
def test_split_options_are_checked(options):
    with pytest.raises(ConfigError):
        SplitOptions(**options)


class Brightness:
    """A scorer, as a user writes one."""

    name, frames = "brightness", 2

    def score(self, frames, record):
        return float(frames.mean())


def test_a_users_measure_is_a_column(path):
    clips = scan(ClipRecord(path=path), ScanOptions(measure=MeasureOptions(scorers=(Brightness(),))))
    for clip in clips:
        assert clip.measures["brightness"] == pytest.approx(255 * clip.measures["exposure"], rel=0.15)


def test_a_scorer_may_not_take_the_name_of_a_column():
    scorer = Brightness()
    scorer.name = "blur"
    with pytest.raises(ConfigError, match="blur"):
        MeasureOptions(scorers=(scorer,))


def test_in_beam_a_bad_file_costs_one_row(path, tmp_path):
    beam = pytest.importorskip("apache_beam")
    from apache_beam.testing.util import assert_that

    from data_pipelines.stage import Stage

    (tmp_path / "bad.mp4").write_text("hello")
    records = [ClipRecord(path=str(tmp_path / "bad.mp4")), ClipRecord(path=path)]

    def check(found):
        assert sorted(record.error is None for record in found) == [False, True, True, True]
        assert "bad.mp4" in next(record.error for record in found if record.error)

    with beam.Pipeline() as pipeline:
        made = (pipeline | beam.Create(records) | beam.ParDo(Stage("probe", probe, None))
                | beam.ParDo(Stage("cut", cut, CutOptions())))  # fmt: skip
        assert_that(made, check)


def test_the_pages_example_runs(path, tmp_path, monkeypatch, capsys):
    """The first block of docs/footage.md, as it stands there."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "footage.md").read_text(), re.DOTALL)[1]
    shutil.copy(path, tmp_path / "film.mp4")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "footage.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3
