"""TFDS video data sets, without TensorFlow."""

import sys

import numpy as np
import pytest

from vdit.data import DataConfig, TfdsSource, open_source
from vdit.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("importlib_resources", reason="tensorflow_datasets needs it to prepare a data set")


class TinyVideos(tfds.core.GeneratorBasedBuilder):
    """Six videos of a grey that rises with time."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"clip": tfds.features.Tensor(shape=(None, 40, 60, 3), dtype=np.uint8),
                    "words": tfds.features.Text(), "kind": tfds.features.Scalar(dtype=np.int64),
                    "rate": tfds.features.Scalar(dtype=np.float32)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            grey = np.arange(20 + i, dtype=np.uint8)[:, None, None, None]
            yield i, {"clip": np.broadcast_to(grey, (20 + i, 40, 60, 3)).copy(), "words": f"video {i}",
                      "kind": i, "rate": 10.0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    builder = TinyVideos(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def config_of(directory, **changes):
    settings = {"path": directory, "video_feature": "clip", "caption_feature": "words", "label_feature": "kind",
                "fps_feature": "rate"}  # fmt: skip
    source = TfdsSource(**(settings | changes))
    return DataConfig(source=source, pixel_budgets=(32 * 32,), frames=(5,), fps=(5.0,))


def test_videos_captions_labels_and_rates(directory):
    source = open_source(config_of(directory))
    assert len(source) == 6
    samples = [source[i] for i in range(6)]
    assert {s["captions"][0] for s in samples} == {f"video {i}" for i in range(6)}
    assert {s["label"] for s in samples} == set(range(6))
    for sample in samples:
        assert sample["video"].shape == (5, 16, 32, 3) or sample["video"].shape[1:3] == (32, 32)
        assert (np.diff(sample["video"][:, 0, 0, 0].astype(int)) == 2).all()  # 5 of 10 frames a second
    assert "tensorflow" not in sys.modules


def test_features_that_are_absent_have_a_default(directory):
    sample = open_source(config_of(directory, caption_feature="", label_feature="", fps_feature=""))[0]
    assert sample["captions"] == [""]
    assert sample["label"] == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"video_feature": "film"}, "no feature 'film', it has clip, kind, rate, words"),
    ({"split": "test"}, "split 'test', cannot be opened"),
    ({"path": "no_such_data_set"}, "'no_such_data_set'.* cannot be opened"),
])
def test_what_cannot_be_opened_is_named(directory, changes, message):
    with pytest.raises(DataError, match=message):
        open_source(config_of(directory, **changes))


def test_a_video_feature_that_is_no_video_is_skipped_and_reported(directory):
    source = open_source(config_of(directory, video_feature="kind"))
    with pytest.raises(DataError, match=r"none of 6 items.*expected uint8 \[t h w 3\]"):
        source[0]
