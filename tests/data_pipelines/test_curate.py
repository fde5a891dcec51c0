"""Curation from end to end, as a user calls it."""

import dataclasses
import json
import re
import shutil

import pytest

from data_pipelines import pipeline, report
from data_pipelines.clips import encode_clip
from data_pipelines.curate import Settings, check, curate, embedded_options, split_for
from data_pipelines.footage import find_footage
from data_pipelines.isolate import Isolated
from data_pipelines.pipeline import Folder
from data_pipelines.progress import Watch, check_dataflow
from data_pipelines.scan import ScanOptions
from data_pipelines.select import DUPLICATE, ERROR
from data_pipelines.split import SplitOptions
from tests.data_pipelines.footage import write_footage
from vdit.cli.main import main
from vdit.data import CuratedDataset, CuratedSource, DataConfig, read_captions
from vdit.errors import ConfigError, DataError, OutputError

SETTINGS = Settings(keep="duration >= 1", write="both", scanning=ScanOptions(split=SplitOptions(longest=4.0)))


class Direct(Isolated):
    """Calls in this process: tests/data_pipelines/test_isolate.py has the other."""

    def call(self, function, *arguments):
        return function(*arguments)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """In this process, and without the 30 histograms that say nothing of a rule: they take longer than all else."""
    drawn = report._histograms
    quick = lambda page, values, keep, *, deciding: deciding and drawn(page, values, keep, deciding=True)  # noqa: E731
    monkeypatch.setattr(report, "_histograms", quick)
    monkeypatch.setattr(pipeline, "Isolated", Direct)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_footage(tmp_path_factory.mktemp("films") / "films")


@pytest.fixture(scope="module")
def curated(films, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Isolated", Direct)
        out = tmp_path_factory.mktemp("curated") / "out"
        return out, curate(str(films), str(out), SETTINGS)


def named(rows):
    return {(row.name, round(row.clip.duration or 0, 1)) for row in rows}


def test_films_become_clips_without_copies_and_a_broken_file_costs_itself(curated):
    out, outcome = curated
    rows = list(Folder(path=str(out)).read_rows())
    assert named(rows) == {("a.mp4", 1.4), ("a.mp4", 1.6), ("b.mp4", 2.0), ("c.mkv", 2.0), ("d.mp4", 0.0)}
    assert (outcome.rows, outcome.kept, outcome.written) == (5, 3, 3)
    assert {why: count for why, (count, _) in outcome.dropped.items()} == {ERROR: 1, DUPLICATE: 1}
    (broken,) = [row for row in rows if row.clip.error]
    assert (broken.name, "d.mp4" in broken.clip.error) == ("d.mp4", True)
    dataset = CuratedDataset(out)
    meta = [dataset.record(item)[0] for item in range(len(dataset))]
    assert sum(record["source"] == "a.mp4" for record in meta) == 2
    assert {record["captions"][0] for record in meta if record["source"] == "a.mp4"} == {"waves move"}
    assert all(record["measures"]["motion"] is not None for record in meta)
    entries = read_captions(out).entries
    assert len(entries) == 3
    assert outcome.counters["scan"]["failed"] == 1


def test_the_page_shows_funnel_thresholds_pictures_and_reasons(curated):
    page = (curated[0] / "report.html").read_text()
    for text in ("Funnel", "threshold 1", "duplicate", "d.mp4", "Near-duplicates", "Cuts:", "a.mp4 0.0-1.4 s"):
        assert text in page, text
    assert len(re.findall("data:image/png", page)) >= 7
    assert not re.search(r"(src|href)=\"?https?:", page)


def test_clips_are_held_out_by_the_name_of_their_film_and_by_their_id(curated):
    out, data = str(curated[0]), DataConfig(pixel_budgets=(32 * 32,), frames=(1,), fps=(5.0,))
    dataset = CuratedDataset(out)
    every = {dataset.record(item)[0]["id"]: dataset.record(item)[0]["source"] for item in range(len(dataset))}
    (other,) = [name for name, source in every.items() if source != "a.mp4"]
    source = CuratedSource(path=out)
    left, held = (opened(data, seed=0, holdout=("a.mp4",)) for opened in (source.open, source.open_held_out))
    assert {left.name(item) for item in range(len(left))} == {other}
    assert {held.name(item) for item in range(len(held))} == every.keys() - {other}
    assert (left.summary.found, left.summary.used, left.summary.held_out) == (3, 1, 2)
    assert [sample["id"] for sample in (held[0], left[0])] == [held.name(0), other]
    assert len(source.open(data, seed=0, holdout=(other,))) == 2
    assert source.open_held_out(data, seed=0) is None
    for names, named in ((("a.mp5",), r"a\.mp5"), (tuple(every), "all of its 3")):
        with pytest.raises(DataError, match=named):
            source.open(data, seed=0, holdout=names)


def files_of(out):
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in sorted(out.rglob("*"))
            if file.is_file() and "work" not in file.parts and file.name not in ("report.html", "curate.json")}


def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes(curated, films, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []

    def dies(row, options, work):
        if len(calls) == 1:
            raise KeyboardInterrupt("KeyboardInterrupt")
        calls.append(row)
        return encode_clip(row, options, work)

    monkeypatch.setattr(pipeline, "encode_clip", dies)
    with pytest.raises(BaseException, match="KeyboardInterrupt"):
        curate(str(films), str(out), SETTINGS)
    assert not (out / "index.json").exists()
    monkeypatch.setattr(pipeline, "encode_clip", encode_clip)
    monkeypatch.setattr(pipeline, "scan_file", None)  # scans are there
    outcome = curate(str(films), str(out), SETTINGS)
    assert outcome.kept == 3
    assert files_of(out) == files_of(curated[0])


def test_another_threshold_reads_no_footage(curated, films, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(curated[0], out)
    monkeypatch.setattr(pipeline, "scan_file", None)
    index = (out / "index.json").read_bytes()
    strict = dataclasses.replace(SETTINGS, keep="duration >= 1.8")
    looked = curate(str(films), str(out), strict, look=True)
    assert (looked.kept, looked.written) == (1, 0)
    assert looked.dropped["duration >= 1.8"][0] == 2
    assert (out / "index.json").read_bytes() == index  # looking changes no clip
    assert "threshold 1.8" in (out / "report.html").read_text()
    assert curate(str(films), str(out), strict).written == 1
    assert len(CuratedDataset(out)) == 1
    assert len(list(out.glob("*.arrayrecord"))) == len(list((out / "videos").iterdir())) == 1
    curate(str(films), str(out), SETTINGS)
    assert files_of(out) == files_of(curated[0])


def test_the_best_copy_that_passes_is_kept(curated, films, tmp_path):
    """A rule that only the lesser copy meets keeps that one."""
    rows = list(Folder(path=str(curated[0])).read_rows())
    copies = sorted((row for row in rows if row.cluster), key=lambda row: row.rank)
    assert [row.rank for row in copies] == [0, 1]
    out = tmp_path / "out"
    shutil.copytree(curated[0], out)
    for row in copies:
        codec = row.clip.measures["codec"]
        outcome = curate(str(films), str(out), dataclasses.replace(SETTINGS, keep=f"codec == '{codec}'"), look=True)
        assert outcome.kept == (1 if codec == "ffv1" else 3)
        assert DUPLICATE not in outcome.dropped


def test_new_footage_alone_is_scanned(curated, films, tmp_path, monkeypatch):
    more, out = tmp_path / "films", tmp_path / "out"
    shutil.copytree(films, more)  # copytree keeps times, but the paths are others
    scanned = []
    monkeypatch.setattr(pipeline, "scan_file", lambda record, options: scanned.append(record.path) or [])
    rows = dataclasses.replace(SETTINGS, write="none")
    curate(str(more), str(out), rows)
    assert len(scanned) == 4
    shutil.copy(more / "b.mp4", more / "e.mp4")
    curate(str(more), str(out), rows)
    assert [path.rpartition("/")[2] for path in scanned[4:]] == ["e.mp4"]


@pytest.mark.parametrize("keep", ["motoin > 1", "motion >", "motion > 0.1 and durration > 2"])
def test_a_wrong_rule_is_refused_before_anything_is_read(films, tmp_path, keep):
    with pytest.raises(ConfigError):
        curate(str(films), str(tmp_path / "out"), Settings(keep=keep))
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_way_is_not_replaced(films, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=str(tmp_path)):
        curate(str(films), str(tmp_path), SETTINGS)
    with pytest.raises(OutputError, match="inside"):
        curate(str(films), str(films / "out"), SETTINGS)
    with pytest.raises(DataError, match="look"):
        curate(str(films), str(tmp_path / "new"), SETTINGS, look=True)
    with pytest.raises(DataError, match="no-such"):
        curate(str(tmp_path / "no-such"), str(tmp_path / "new"), SETTINGS)


def test_footage_is_a_folder_or_a_list(films, tmp_path):
    listing = tmp_path / "films.txt"
    listing.write_text(f"{films / 'b.mp4'}\n{films / 'gone.mp4'}\n")
    files = find_footage(listing)
    told = [(file.path.rpartition("/")[2], file.version is None) for file in files]
    assert told == [("b.mp4", False), ("gone.mp4", True)]
    assert [file.name for file in find_footage(films)] == ["a.mp4", "b.mp4", "c.mkv", "d.mp4"]
    listing.write_text(f"{films / 'b.mp4'}\n{films / 'b.mp4'}\n")
    with pytest.raises(DataError, match="twice"):
        find_footage(listing)


def test_options_and_pipelines_are_checked_without_a_run(films, tmp_path):
    lines = check(str(films), str(tmp_path / "out"), SETTINGS, embedded_options())
    assert lines[0] == "footage: 4 files"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="runer"):
        embedded_options(1, ["--runer=DataflowRunner"])


DATAFLOW = ["--runner=DataflowRunner", "--project=p-12345", "--region=europe-west4", "--temp_location=gs://bucket/temp",
            "--sdk_container_image=europe-docker.pkg.dev/p/r/vdit:1", "--max_num_workers=1000", "--disk_size_gb=200",
            "--machine_type=n2-standard-4", "--job_name=curate-1"]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "named"),
    [("--project", "project"), ("--temp_location", "temp_location"),
     ("--sdk_container_image", "sdk_container_image"), ("--temp_location=/tmp/x", "temp_location"),
     ("--job_name=No Name", "job_name"), ("--num_workers=2000", "2000"), ("--project=P_1", "project"), (None, None)],
)  # fmt: skip
def test_options_of_dataflow_are_checked_without_asking_google(films, tmp_path, option, named):
    key = (option or "").partition("=")[0]
    words = [word for word in DATAFLOW if word.partition("=")[0] != key]
    words += [option] if "=" in (option or "") else []
    wrong = check_dataflow(embedded_options(1, words), ["gs://bucket/films"])
    assert ([named in text for text in wrong] == [True]) if named else wrong == []
    if named is None:
        with pytest.raises(ConfigError, match=str(films)):  # which is no bucket
            check(str(films), str(tmp_path / "out"), SETTINGS, embedded_options(1, words))


def test_the_command(films, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["curate", str(films), str(out), "--write", "none", "--clip-seconds", "4"]) == 0
    told = capsys.readouterr().err
    for text in ("found    4 files", "clips    5 found", "report.html", "1 (0.0 s): cannot be used"):
        assert text in told
    assert json.loads((out / "curate.json").read_text())["settings"]["write"] == "none"
    assert main(["curate", str(films), str(out), "--keep", "x > 1"]) == 2
    assert "no column 'x'" in capsys.readouterr().err


def test_clips_are_as_long_as_an_experiment_asks():
    split = split_for("clips")
    assert 0 < split.shortest <= split.longest


def test_progress_is_told(films, tmp_path):
    class Heard(Watch):
        def __init__(self):
            self.lines = []

        def tell(self, label, words):
            self.lines.append(label)

        def update(self, stage, done, total):
            self.lines.append((stage, done, total))

    heard = Heard()
    curate(str(films), str(tmp_path / "out"), dataclasses.replace(SETTINGS, write="none"), watch=heard)
    assert heard.lines[:3] == ["found", "makes", "keeps"]
    assert heard.lines[-1] == ("measure", 4, 4)
