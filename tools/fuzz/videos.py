"""Damaged and hostile video files: each is read, or refused in one line, within 10 s and 2 GB.

    python -m tools.fuzz.videos                 3,000 files
    python -m tools.fuzz.videos --seed 17 --keep /tmp/case

A case takes a real or generated video and flips bytes, cuts it, writes extreme numbers into its header or over the
sizes of boxes, moves, repeats or drops blocks, or joins it to another file; or it is a playlist, or another text, under
the name of a video. It is read as training, as a command, as a mask and as a preview would read it. A playlist that
gives frames is a failure: it opened another file.
"""

from __future__ import annotations

import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data_paths import DATA
from tools.fuzz.common import Wrong, main
from vdit.data.clips import Clips
from vdit.data.config import DataConfig
from vdit.data.datasets import FolderDataset
from vdit.generate.inputs import open_input, read_input
from vdit.generate.masks import mask_frames
from vdit.video.read import encode_bytes, iter_frames, probe

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".gif", ".avif", ".flv", ".ts")
MOST_BYTES = 90_000  # of the real files: larger ones take seconds to decode, damaged or not
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
BOXES = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|mdia|mdhd|minf|stbl|stsd|stts|ctts|stsc|stsz|stco|elst|moof|traf|trun|tfhd|mdat|sidx|"
    rb"pasp|colr|avcC|hvcC|av1C|iloc|iinf|iprp|ispe|RIFF|LIST|strh|strf|idx1|movi"
)


@functools.cache
def sources() -> list[bytes]:
    """Whole videos: generated ones of every container that vdit writes, and the small ones of the shared test data."""
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (12, 6, 8, 3)), 8, 1), 8, 2).astype(np.uint8)
    made = [encode_bytes(frames, 12, kind) for kind in ("mp4", "webm", "gif", "mkv")]
    pictures = [Image.fromarray(frame) for frame in frames]
    for options in ({"save_all": True, "append_images": pictures[1:], "duration": 80}, {}):
        file = io.BytesIO()
        pictures[0].save(file, "AVIF", **options)
        made.append(file.getvalue())
    folders = (DATA / "clips", DATA / "odd_videos", *sorted((DATA / "faults").glob("*")))
    files = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())
    return made + [p.read_bytes() for p in files if p.suffix.lower() in VIDEOS and 0 < p.stat().st_size < MOST_BYTES]


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    head = int(rng.integers(0, 2)) and min(len(data), 4096)
    for at in rng.integers(0, head or len(data), int(2 ** rng.uniform(0, 9))):
        data[at] ^= int(rng.integers(1, 256))
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    first = int(rng.integers(0, len(data))) if rng.random() < 0.2 else 0
    return data[first : int(rng.integers(first, len(data))) + 1]


def sizes(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Extreme or random numbers before, in and behind the names of boxes."""
    places = [found.start() for found in BOXES.finditer(data)] or list(range(0, min(len(data), 512), 4))
    for at in rng.choice(places, min(len(places), int(rng.integers(1, 5))), replace=False):
        at = int(at) + int(rng.choice([-4, -4, -4, 4, 8, 12, 16, 20, 24]))
        value = int(rng.choice(EXTREMES)) if rng.random() < 0.5 else int(rng.integers(0, 1 << 32))
        wide = int(rng.choice([2, 4, 8]))
        data[max(0, at) : max(0, at) + wide] = (value & ((1 << 8 * wide) - 1)).to_bytes(wide, "big")
    return data


def numbers(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Extreme numbers anywhere in the first bytes, of either order."""
    for at in rng.integers(0, min(len(data), 2048), int(rng.integers(1, 9))):
        order = "big" if rng.random() < 0.5 else "little"
        data[at : at + 4] = int(rng.choice(EXTREMES)).to_bytes(4, order)
    return data


def blocks(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A block moved, repeated, dropped, zeroed."""
    first = int(rng.integers(0, len(data)))
    block = data[first : first + int(2 ** rng.uniform(2, 15))]
    kind, to = rng.integers(0, 4), int(rng.integers(0, len(data)))
    if kind == 0:
        return data[:first] + data[first + len(block) :]
    if kind == 1:
        return data[:to] + block * int(rng.integers(1, 5)) + data[to:]
    data[to : to + len(block)] = block if kind == 2 else bytes(len(block))
    return data


def splice(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The beginning of one file and the end of another, or one behind the other."""
    other = sources()[int(rng.integers(len(sources())))]
    if rng.random() < 0.3:
        return data + other
    return data[: int(rng.integers(1, len(data) + 1))] + other[int(rng.integers(0, len(other))) :]


def playlist(target: str, rng: np.random.Generator) -> tuple[str, bytes]:
    """(a file name, the text) of a list that names another file."""
    texts = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
        "b.m3u8": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
        "a.m3u": f"{target}\n{target}\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "a.concat": f"file {target}\n",
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
                 "a=rtpmap:96 H264/90000\n",
        "a.mpd": '<MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
                 f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
                 "</AdaptationSet></Period></MPD>",
        "a.pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        "a.asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "a.smil": f'<smil><body><video src="{target}"/></body></smil>',
        "a.rtsp": f"rtsptext\nrtsp://127.0.0.1:9/{target}\n",
        "a.idx": f"# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0\nfile: {target}\n",
    }  # fmt: skip
    name = list(texts)[int(rng.integers(len(texts)))]
    lead = ("", "\ufeff", "\n\n", "# a comment\n", '<?xml version="1.0"?>\n')[max(0, int(rng.integers(-4, 5)))]
    text = (lead + texts[name]).encode("utf-16" if rng.random() < 0.1 else "utf-8")
    return name if rng.random() < 0.5 else NAMES[int(rng.integers(len(NAMES)))], text


MUTATIONS = (flip, cut, sizes, numbers, blocks, splice)
NAMES = ("a.mp4", "a.mov", "a.webm", "a.mkv", "a.gif", "a.avi", "a.ts", "a.flv")


def make(seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    rng = np.random.default_rng(seed)
    if seed % 10 == 0:
        for name in ("given", "secret"):
            (folder / name).mkdir()
        (folder / "secret" / "b.mp4").write_bytes(sources()[0])
        target = ("../secret/b.mp4", str(folder / "secret" / "b.mp4"), "http://127.0.0.1:9/b.mp4")[int(rng.integers(3))]
        name, text = playlist(target, rng)
        path = folder / "given" / name
        path.write_bytes(text)
        return "playlist", functools.partial(_refused, path, int(rng.integers(4)))
    data, done = bytearray(sources()[int(rng.integers(len(sources())))]), []
    for index in range(1 if rng.random() < 0.7 else 2):
        change = MUTATIONS[(seed if index == 0 else int(rng.integers(99))) % len(MUTATIONS)]
        data = change(data, rng) or bytearray(b"\0")
        done.append(change.__name__)
    path = folder / NAMES[int(rng.integers(len(NAMES)))]
    path.write_bytes(data)
    return ": ".join(done), functools.partial(_read, path, int(rng.integers(4)))


def _read(path: Path, way: int) -> object:
    if way == 0:  # as training does
        config = DataConfig(pixel_budgets=(32 * 32,), frames=(1, 5), fps=(8.0, 12.0))
        return Clips(FolderDataset(path.parent), config)[0]["video"].shape
    if way == 1:  # as a command does
        return read_input(path, size=(32, 32), fps=8.0).note, read_input(path, size=(32, 32), last=5).note
    if way == 2:  # as a mask of the video
        like = open_input(path, area=4096, multiple=8, fps=8.0)
        take = mask_frames(path, like).begin()
        return [take(piece.shape[1]).shape for piece in like]
    return probe(path), sum(1 for _ in iter_frames(path, on_error="keep"))


def _refused(path: Path, way: int) -> None:
    raise Wrong(f"a playlist gave {_read(path, way)}")


if __name__ == "__main__":
    sys.exit(main(make, cases=3000, description=__doc__))
