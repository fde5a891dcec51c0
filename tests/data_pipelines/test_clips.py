"""The encode stage: what a clip's file shows, and shards that training reads."""

import json
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.clips import ClipOptions, encode_clip, write_file, write_shard
from data_pipelines.records import ClipRecord
from data_pipelines.select import Row
from vdit.data import CuratedSource, DataConfig, open_source
from vdit.data.captions import read_captions
from vdit.data.clip_records import FORMAT, make_record, read_record
from vdit.data.curated import CuratedDataset, is_curated
from vdit.errors import ConfigError, DataError, VideoError
from vdit.video.read import read_video
from vdit.video.write import write_video

RATE, COUNT, SIZE, BAR = 10, 40, (64, 96), 12


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Frame k is of the grey 40 + 5 k, between black bars above and below."""
    frames = np.zeros((COUNT, *SIZE, 3), np.uint8)
    frames[:, BAR:-BAR] = (40 + 5 * np.arange(COUNT, dtype=np.uint8))[:, None, None, None]
    path = tmp_path_factory.mktemp("footage") / "film.mkv"
    write_video(path, frames, fps=RATE)
    return path


def row_of(film, first, last, captions=(), **measures):
    clip = ClipRecord(path=str(film), start=Fraction(first, RATE), end=Fraction(last, RATE), size=SIZE)
    return Row(clip=clip.with_measures(fps=float(RATE), **measures), name=film.name, captions=captions)


def greys(video):
    return (video.astype(float).mean((1, 2, 3)) - 40) / 5


BARS = {"crop_top": BAR, "crop_left": 0, "crop_height": SIZE[0] - 2 * BAR, "crop_width": SIZE[1]}


def test_a_clip_has_exactly_its_frames_without_the_bars(film, tmp_path):
    made = encode_clip(row_of(film, 7, 19, **BARS), ClipOptions(), tmp_path)
    clip = read_video(made.file)
    assert clip.frames.shape == (12, 40, 96, 3)
    assert np.abs(greys(clip.frames) - np.arange(7, 19)).max() < 0.4
    assert (made.meta["width"], made.meta["height"], made.meta["fps"]) == (96, 40, RATE)
    assert made.meta["seconds"] == pytest.approx(1.2)


def test_the_same_clip_is_the_same_bytes(film, tmp_path):
    """x264 gives other bytes from time to time; an index must not change with them."""
    row = row_of(film, 0, 30)
    assert len({encode_clip(row, ClipOptions(), tmp_path / str(k)).meta["sha256"] for k in range(4)}) == 1


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"crop_bars": False}, (12, 64, 96, 3)),
        ({"short_side": 20}, (12, 20, 48, 3)),
        ({"fps": 5.0}, (6, 40, 96, 3)),
        ({"short_side": None}, (12, 40, 96, 3)),
    ],
)
def test_options_of_size_and_rate(film, tmp_path, options, shape):
    made = encode_clip(row_of(film, 7, 19, **BARS), ClipOptions(**options), tmp_path)
    assert read_video(made.file).frames.shape == shape


def test_what_is_there_is_not_written_again(film, tmp_path):
    row = row_of(film, 0, 10)
    made = encode_clip(row, ClipOptions(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert encode_clip(row, ClipOptions(), tmp_path) == made
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    with open(made.file, "r+b") as file:
        file.truncate(100)  # cut short: it is made again
    assert encode_clip(row, ClipOptions(), tmp_path) == made
    assert encode_clip(row, ClipOptions(fps=5.0), tmp_path).file != made.file


def test_a_clip_that_cannot_be_read_is_an_error_that_names_the_file(film, tmp_path):
    with pytest.raises(VideoError, match=r"film\.mkv"):
        encode_clip(row_of(film, 100, 110), ClipOptions(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"short_side": 4}, {"fps": 0.0}, {"fps": float("nan")}])
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        ClipOptions(**options)


@pytest.fixture(scope="module")
def curated(film, tmp_path_factory):
    """A folder of one shard with three clips, one of them without a caption."""
    folder = tmp_path_factory.mktemp("curated")
    captions = [("grey rises",), (), ("grey", "a long caption of grey")]
    rows = [row_of(film, 10 * k, 10 * k + 10, captions[k]) for k in range(3)]
    made = [encode_clip(row, ClipOptions(), folder / "work") for row in rows]
    note = write_shard(made[::-1], folder, 0)
    index = {"format": FORMAT, "count": 3, "captioned": 2, "seconds": note["seconds"], "shards": [note]}
    (folder / "index.json").write_text(json.dumps(index))
    for each in made:
        write_file(each, folder)
    return folder, made, note


def test_a_shard_is_written_once_and_its_name_tells_what_is_in_it(curated, film):
    folder, made, note = curated
    stamp = (folder / note["file"]).stat().st_mtime_ns
    assert write_shard(made, folder, 0) == note
    assert (folder / note["file"]).stat().st_mtime_ns == stamp
    assert write_shard(made[:2], folder, 0)["file"] != note["file"]


def test_training_reads_clips_captions_and_sizes(curated):
    folder, made, _ = curated
    assert is_curated(folder)
    data = DataConfig(source=CuratedSource(path=str(folder)), pixel_budgets=(32 * 32,), frames=(5,), fps=(5.0,))
    source = open_source(data)
    samples = [source[item] for item in range(3)]
    assert [sample["captions"] for sample in samples] == [["grey rises"], [""], ["grey", "a long caption of grey"]]
    for number, sample in enumerate(samples):
        assert sample["video"].shape[0] == 5
        assert sample["size"] == list(SIZE)
        grey = greys(sample["video"][:, 12:20])
        assert (np.diff(grey) > 1).all()
        assert sample["id"].startswith(made[number].row.clip.id)
    assert source.summary.found == 3
    assert len(source.summary.uncaptioned) == 1
    assert len({sample["id"] for sample in samples}) == 3


def test_files_are_a_folder_that_captions_are_read_of(curated, tmp_path):
    _, made, _ = curated
    lines = [write_file(each, tmp_path) for each in made]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = read_captions(tmp_path).entries
    assert [entry.captions[0] for entry in entries] == ["grey rises", "", "grey"]


def test_records_hold_what_they_were_given():
    meta = {"id": "a", "captions": ["ü"], "label": 0, "width": 4, "height": 2, "fps": 5.0, "seconds": 1.5, "more": [1]}
    assert read_record(make_record(meta, b"video")) == (meta, b"video")
    for key, value in {"fps": 0, "id": 3, "label": "x", "captions": [None]}.items():
        with pytest.raises((ValueError, TypeError)):
            read_record(make_record(meta | {key: value}, b"video"))


@pytest.mark.parametrize("damage", ["no index", "format", "count", "missing shard", "cut shard", "name", "empty"])
def test_damaged_folders_are_one_clear_error(curated, tmp_path, damage):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(curated[0], folder)
    index = json.loads((folder / "index.json").read_text())
    shard = folder / index["shards"][0]["file"]
    match damage:
        case "no index":
            (folder / "index.json").unlink()
        case "format":
            index["format"] = "vdit-latents-1"
        case "count":
            index["count"] = 4
        case "missing shard":
            shard.unlink()
        case "cut shard":
            shard.write_bytes(shard.read_bytes()[:-100])
        case "name":
            index["shards"][0]["file"] = "../other.arrayrecord"
        case "empty":
            index |= {"count": 0, "captioned": 0, "shards": []}
    if damage != "no index":
        (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError) as error:
        CuratedDataset(folder)
    assert str(folder) in str(error.value)
