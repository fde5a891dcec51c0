"""Videos in WebDataset tar files as a data source: `NAME.mp4` beside `NAME.txt` in shards/*.tar.

    vdit train --plugin my_tars.py experiment.py --cfg.data.source=my_tars --cfg.data.source.path=shards
"""

import dataclasses
import tarfile
from pathlib import Path

from vdit.data import DataSource, DecodedClip, clips_of
from vdit.errors import DataError
from vdit.registry import register
from vdit.video.read import probe, read_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarVideo:
    """One video: where its bytes lie in a tar file, and what is known of it."""

    tar: Path
    offset: int
    size: int
    id: str
    captions: tuple[str, ...]
    label: int = 0
    elastic: bool = False  # it cannot be rendered at any size, as worlds can

    def bytes(self):
        return self.tar.read_bytes()[self.offset : self.offset + self.size]

    def __getattr__(self, name):  # height, width, fps and seconds, when they are asked for
        if name not in ("height", "width", "fps", "seconds"):
            raise AttributeError(name)
        info = probe(self.bytes())
        return {"height": info.height, "width": info.width, "fps": info.fps, "seconds": info.duration}[name]

    def read(self, *, start, fps, frames, size):
        clip = read_video(self.bytes(), start=start, fps=fps, max_frames=frames, size=size)
        return DecodedClip(video=clip.frames, captions=self.captions)


class TarDataset:
    """The videos of all tar files of a folder, in the order of their names."""

    def __init__(self, path, keep):
        self.broken, self.summary, self.videos = {}, None, []
        for tar in sorted(Path(path).glob("*.tar")):
            with tarfile.open(tar) as file:
                members = {member.name: member for member in file if member.isfile()}
                for name, member in members.items():
                    stem, _, kind = name.rpartition(".")
                    if kind == "mp4" and keep(stem):
                        text = members.get(f"{stem}.txt")
                        caption = file.extractfile(text).read().decode().strip() if text else ""
                        self.videos.append(TarVideo(tar=tar, offset=member.offset_data, size=member.size, id=stem,
                                                    captions=(caption,)))  # fmt: skip
        if not self.videos:
            raise DataError(f"{path} has no .mp4 in a .tar file that is to be used")

    def __len__(self):
        return len(self.videos)

    def name(self, item):
        return self.videos[item].id

    def open(self, item, rng):
        return self.videos[item]


@register("data_source", "my_tars")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MyTars(DataSource):
    path: str = "shards"

    def open(self, data, *, seed, holdout=()):
        return clips_of(TarDataset(self.path, lambda name: name not in holdout), data, seed=seed)

    def open_held_out(self, data, *, seed, holdout=()):
        return clips_of(TarDataset(self.path, lambda name: name in holdout), data, seed=seed) if holdout else None
