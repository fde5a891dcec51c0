"""Curated clips as a data set of TensorFlow Datasets, for other code bases: array_record files, no TensorFlow.

    python -m data_pipelines.tfds.curated curated tensorflow_datasets --size 64x96 --fps 8

vdit itself reads `curated` as it is. The data set is for `tfds.builder_from_directory(FOLDER).as_data_source()`;
vdit reads it with data.source=tfds, data.source.path=FOLDER and data.source.fps_feature=fps.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vdit.cli.parser import size as read_size
from vdit.data.curated import CuratedDataset
from vdit.errors import EX_OK, EX_USAGE, ConfigError, VditError
from vdit.video.read import read_video


@dataclasses.dataclass(kw_only=True, eq=False)
class ClipsConfig(tfds.core.BuilderConfig):
    """What is written of each clip.

    Attributes:
        path: folder that `vdit curate` wrote.
        size: (height, width) in pixels, covered by the picture; the overhang is cut off.
        fps: frames a second, by time.
        max_frames: the most of a clip.
    """

    path: str = ""
    size: tuple[int, int] = (64, 64)
    fps: float = 8.0
    max_frames: int = 1024


class CuratedClips(tfds.core.GeneratorBasedBuilder):
    """Clips that `vdit curate` wrote, decoded: video, captions, fps, and where each is from."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = ()

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self.builder_config.size
        features = tfds.features.FeaturesDict({
            "video": tfds.features.Tensor(shape=(None, height, width, 3), dtype=np.uint8),
            "caption": tfds.features.Sequence(tfds.features.Text()),
            "fps": tfds.features.Scalar(dtype=np.float32),
            "label": tfds.features.Scalar(dtype=np.int64),
            "id": tfds.features.Text(),
            "source": tfds.features.Text(),
        })
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        config, clips = self.builder_config, CuratedDataset(self.builder_config.path)
        for item in range(len(clips)):
            meta, data = clips.record(item)
            rate = min(config.fps, float(meta["fps"]))
            video = read_video(data, fps=rate, size=config.size, max_frames=config.max_frames).frames
            yield meta["id"], {"video": video, "caption": meta["captions"] or [""], "fps": rate,
                               "label": meta["label"], "id": meta["id"], "source": meta.get("source", "")}  # fmt: skip


def write_dataset(path: str, data_dir: str, *, size: tuple[int, int] = (64, 64), fps: float = 8.0) -> str:
    """Writes the data set.

    Args:
        path: folder that `vdit curate` wrote.
        data_dir: where data sets lie.
        size: (height, width) in pixels. fps: frames a second.

    Returns:
        The folder of the data set.

    Raises:
        DataError: the folder holds no curated clips. ConfigError: the rate is no rate.
    """
    if not 0.1 <= fps <= 240:
        raise ConfigError(f"fps={fps:g}: give 0.1 to 240 frames a second")
    CuratedDataset(path)  # before TFDS makes folders
    config = ClipsConfig(name=f"{size[0]}x{size[1]}_{fps:g}fps", path=path, size=size, fps=fps)
    builder = CuratedClips(config=config, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.tfds.curated", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("curated", help="folder that vdit curate wrote")
    parser.add_argument("data_dir", help="folder where the data set is put")
    parser.add_argument("--size", default="64x64", metavar="HEIGHTxWIDTH", help="in pixels; default: %(default)s")
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second; default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        print(write_dataset(options.curated, options.data_dir, size=read_size(options.size), fps=options.fps))
    except VditError as error:
        print(f"tfds: {error}", file=sys.stderr)
        return EX_USAGE
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
