"""Near-duplicates: copies share keys and compare as copies; other moments and videos do not; the best is first."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from data_pipelines.duplicates import DuplicateOptions, cluster, compare, group_pairs, keys
from data_pipelines.measures import measure
from data_pipelines.records import ClipRecord
from data_pipelines.signature import Signature, gray_thumb
from tests.data_pipelines.shots import film, shot, texture
from vdit.errors import ConfigError, DataError
from vdit.video.write import write_video

MIRROR = DuplicateOptions(mirror=True)


def scene(seed: int, frames: int = 72) -> np.ndarray:
    """uint8 [t 90 160 3]: a still scene in which a bright thing moves about, never twice alike."""
    rng = np.random.default_rng(seed)
    still = texture(seed, cell=16)
    way = np.cumsum(cv2.blur(rng.normal(0, 1, (400, 2)), (1, 15)), 0) * 5
    out = np.repeat(still[None], frames, 0)
    for k in range(frames):
        x, y = int(80 + 66 * np.sin(way[k, 0] / 20)), int(45 + 30 * np.sin(way[k, 1] / 20))
        out[k, max(0, y - 14) : y + 14, max(0, x - 14) : x + 14] = 250
    return out.astype(np.uint8)


def record(frames: np.ndarray, name: str, fps: float = 24, **measures) -> ClipRecord:
    picks = np.arange(0, len(frames), fps / 4).astype(int)
    thumbs = [gray_thumb(cv2.cvtColor(frames[k], cv2.COLOR_RGB2GRAY)) for k in picks]
    signature = Signature.of(list(picks / fps), thumbs, (0, 0, 0, 0))
    end = Fraction(len(frames)) / Fraction(fps).limit_denominator(100)
    return ClipRecord(path=name, end=end, signature=signature.to_bytes(), measures=measures)


def noisy(frames: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, 6, frames.shape)
    return np.clip(cv2_blur(frames) + noise, 0, 255).astype(np.uint8)


def cv2_blur(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in frames])


def cropped(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.resize(frame[4:, :-8], frame.shape[1::-1], interpolation=cv2.INTER_AREA) for frame in frames])


COPIES = {
    "coded": noisy,
    "brighter": lambda frames: np.clip(frames * 0.7 + 30, 0, 255).astype(np.uint8),
    "smaller": lambda frames: frames[:, ::2, ::2],
    "cropped": cropped,
    "shifted": lambda frames: frames[24:],
    "mirrored": lambda frames: frames[:, :, ::-1],
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found(kind):
    for seed in (1, 2, 3):
        frames = scene(seed)
        first, second = record(frames, "a"), record(COPIES[kind](frames), "b")
        assert group_pairs([first, second], MIRROR), seed
        assert compare(second, first, MIRROR)


def test_a_mirrored_copy_is_one_only_where_it_was_asked_for():
    frames = scene(1)
    pair = record(frames, "a"), record(frames[:, :, ::-1], "b")
    assert not compare(*pair)
    assert compare(*pair, MIRROR)


def test_a_copy_played_faster_is_found():
    frames = scene(4, 120)
    assert group_pairs([record(frames, "a"), record(frames, "b", fps=25.2)])


def test_another_moment_of_a_scene_is_no_copy():
    frames = scene(5, 200)
    assert not compare(record(frames[:72], "a"), record(frames[120:192], "b"))
    faint = (texture(5, cell=16) * 0.75 + frames * 0.25).astype(np.uint8)  # looks the same at every moment
    assert not compare(record(faint[:72], "a"), record(faint[120:192], "b"))
    assert compare(record(faint[:72], "a"), record(noisy(faint[:72]), "b"))


def test_other_videos_are_no_copies():
    assert group_pairs([record(scene(seed), str(seed)) for seed in range(8)], MIRROR) == []


def test_container_and_metadata_do_not_matter(tmp_path):
    """The same packets in another container: one digest; a changed frame: another."""
    frames = shot(1, 30, speed=1.0)
    with av.open(film(tmp_path / "a.mkv", [frames], 8)) as source, av.open(str(tmp_path / "b.avi"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    one, two = (measure(ClipRecord(path=str(tmp_path / name))) for name in ("a.mkv", "b.avi"))
    frames = frames.copy()
    frames[3, :20] //= 2
    other = measure(ClipRecord(path=film(tmp_path / "c.mkv", [frames], 8)))
    assert one.measures["digest"] == two.measures["digest"] != other.measures["digest"]
    assert f"={one.measures['digest']}" in keys(two)


def test_a_border_is_no_part_of_the_signature(tmp_path):
    frames = scene(6, 48)
    write_video(tmp_path / "a.mkv", frames, fps=24)
    write_video(tmp_path / "b.mkv", np.pad(frames, ((0, 0), (20, 20), (12, 0), (0, 0))), fps=24)
    pair = [measure(ClipRecord(path=str(tmp_path / name), size=size)) for name, size in
            (("a.mkv", (90, 160)), ("b.mkv", (130, 172)))]  # fmt: skip
    assert (pair[1].measures["crop_top"], pair[1].measures["crop_left"]) == (20, 12)
    assert (pair[1].measures["crop_height"], pair[1].measures["crop_width"]) == (90, 160)
    assert group_pairs(pair)


def test_clusters_hold_copies_of_copies_and_the_best_is_first():
    frames = scene(1)
    size = {"crop_height": 90, "crop_width": 160}
    small, large = record(frames, "small", crop_height=45, crop_width=80), record(frames, "large", **size, blur=0.7)
    enlarged, alone = record(frames, "enlarged", **size, blur=2.0), record(scene(2), "alone", **size)
    pairs = [(small.id, enlarged.id), (enlarged.id, large.id)]
    (group,) = cluster([small, large, enlarged, alone], pairs)
    assert group[0] == large
    assert {member.path for member in group} == {"small", "large", "enlarged"}
    assert cluster([alone], []) == []


def test_the_number_of_keys_is_bounded():
    frames = np.concatenate([scene(seed, 48) for seed in range(6)])
    assert len(keys(record(frames, "a"), DuplicateOptions(keys=8))) <= 4 * 8 + 1


def test_black_clips_and_empty_ones():
    black = record(np.zeros((48, 90, 160, 3), np.uint8), "black")
    assert keys(black) == []
    other = record(scene(1), "a")
    assert not compare(black, other)
    # A clip of a few frames, between two of those that signatures are made of.
    short = other.replace(signature=Signature(np.zeros(0, np.float32), np.zeros((0, 16, 16), np.uint8)).to_bytes())
    assert keys(short) == []
    assert not compare(short, other)


def test_what_was_not_measured_is_named():
    with pytest.raises(DataError, match=r"a\.mp4"):
        keys(ClipRecord(path="a.mp4"))
    with pytest.raises(DataError):
        Signature.from_bytes(b"\x05\x00\x00\x00abc")


@pytest.mark.parametrize("options", [{"bits": 3}, {"keys": 0}, {"likeness": 0}, {"overlap": 1.5}])
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        DuplicateOptions(**options)
