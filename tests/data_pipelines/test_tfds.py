"""Curated clips as a data set of TensorFlow Datasets, without TensorFlow."""

import json
import sys
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines.clips import ClipOptions, encode_clip, write_shard
from data_pipelines.records import ClipRecord
from data_pipelines.select import Row
from tests.data_pipelines.footage import RATE, scene
from vdit.data import CuratedDataset, DataConfig, TfdsSource, open_source
from vdit.data.clip_records import FORMAT
from vdit.errors import DataError
from vdit.video.read import read_video
from vdit.video.write import write_video

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources", reason="tensorflow_datasets needs it to prepare a data set")

from data_pipelines.tfds.curated import main, write_dataset


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    made = []
    for kind in range(2):
        film = folder / f"film{kind}.mkv"
        write_video(film, scene(kind, 12), fps=RATE)
        clip = ClipRecord(path=str(film), end=Fraction(12, RATE), size=(48, 64)).with_measures(fps=float(RATE))
        row = Row(clip=clip, name=film.name, captions=(f"scene {kind}", "longer")[: kind + 1])
        made.append(encode_clip(row, ClipOptions(), folder / "work"))
    note = write_shard(made, folder, 0)
    index = {"format": FORMAT, "count": 2, "captioned": 2, "seconds": note["seconds"], "shards": [note]}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_videos_captions_and_rates_come_back(curated, tmp_path):
    path = write_dataset(str(curated), str(tmp_path), size=(24, 32), fps=5.0)
    data = DataConfig(source=TfdsSource(path=path, fps_feature="fps"), pixel_budgets=(24 * 32,), size_multiple=8,
                      frames=(5,), fps=(5.0,))  # fmt: skip
    source = open_source(data)
    samples = [source[item] for item in range(2)]
    assert sorted(len(sample["captions"]) for sample in samples) == [1, 2]
    clips = CuratedDataset(curated)
    expected = [read_video(clips.record(item)[1], fps=5.0, size=(24, 32)).frames[:5] for item in range(2)]
    for sample in samples:
        assert sample["fps"] == 5.0
        assert min(np.abs(sample["video"].astype(int) - video).mean() for video in expected) < 1
    assert "tensorflow" not in sys.modules


def test_what_is_not_curated_is_refused_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(DataError, match="curate"):
        write_dataset(str(tmp_path), str(tmp_path / "out"))
    assert main([str(tmp_path), str(tmp_path / "out"), "--size", "3"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
