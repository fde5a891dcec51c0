import json
import struct
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data_paths import DATA, shared_data
from tools import odd_videos
from vdit.errors import VideoError
from vdit.video import read as video_io
from vdit.video.convert import Orientation, scaled_size, tone_map
from vdit.video.read import encode_bytes, iter_frames, probe, read_video, write_video
from vdit.video.structure import cut_short


def _rows(folder, name, most_frames=10**9):
    file = DATA / folder / name
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row for row in rows if (row["frames"] or 0) <= most_frames]


def _levels(count, h=16, w=16):
    """uint8 [count h w 3]: frame k is grey of level 20 + 8 k, so that a frame tells its index."""
    return np.broadcast_to((20 + 8 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, h, w, 3))


def _indices(clip):
    """Inverse of _levels on a decoded clip."""
    return np.round((clip.frames.mean(axis=(1, 2, 3)) - 20) / 8).astype(int)


def _quarters(h=32, w=48):
    """uint8 [h w 3]: red, green, blue, grey quarters, different under all 8 turns."""
    image = np.zeros((h, w, 3), np.uint8)
    image[: h // 2, : w // 2], image[: h // 2, w // 2 :] = (200, 30, 40), (30, 180, 60)
    image[h // 2 :, : w // 2], image[h // 2 :, w // 2 :] = (40, 60, 220), (128, 128, 128)
    return image


def _mux(path, images, *, codec="ffv1", pts=None, clock=Fraction(1, 1000), pixels="bgr0", tags=None):
    """Writes av frames as they are, with chosen presentation times and colour tags."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = images[0].width, images[0].height, pixels
        stream.codec_context.time_base = clock
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for k, image in enumerate(images):
            image.pts, image.time_base = k * 40 if pts is None else pts[k], clock
            for name, value in (tags or {}).items():
                setattr(image, name, value)
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A file whose 8 frames come at uneven times."""
    times = [0, 100, 150, 400, 430, 900, 1000, 1100]
    images = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in _levels(8)]
    images = [image.reformat(format="bgr0") for image in images]
    return _mux(tmp_path_factory.mktemp("vfr") / "uneven.mkv", images, pts=times), np.array(times) / 1000


# Real files


@pytest.mark.parametrize("row", _rows("odd_videos", "expected.jsonl"), ids=lambda row: row["file"])
def test_odd_file_reads_as_expected_or_says_why_not(row):
    path = DATA / "odd_videos" / row["file"]
    got = odd_videos.read(path)
    assert odd_videos.verdict(row, got) == "ok"
    assert got.error is None or (str(path) in got.error and "\n" not in got.error)


@pytest.mark.parametrize(
    "row", _rows("clips", "captions.jsonl", most_frames=100), ids=lambda row: row["file"]
)
def test_clip_has_its_frames_size_and_rotation(row):
    path = DATA / "clips" / row["file"]
    clip = read_video(path, size=16, fit="stretch")
    assert len(clip.frames) == row["frames"]
    assert clip.times[0] == 0
    assert (np.diff(clip.times) > 0).all()
    assert clip.fps == pytest.approx(row["fps"], rel=0.05)
    info = probe(path)
    turned = row["rot"] % 180 == 90
    assert (info.width, info.height) == ((row["h"], row["w"]) if turned else (row["w"], row["h"]))
    assert (info.rotation - row["rot"]) % 360 == 0


def test_the_table_exits_with_1_where_a_file_disagrees(tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "a.mp4", _levels(3), fps=10)
    row = {"file": "a.mp4", "frames": 3, "w": 16, "h": 16, "rot": 0, "error": None}
    monkeypatch.setattr("sys.argv", ["odd_videos", str(tmp_path)])
    for frames, code in ((3, 0), (4, 1)):
        (tmp_path / "expected.jsonl").write_text(json.dumps({**row, "frames": frames}))
        assert odd_videos.main() == code
    assert "frames 3, expected 4" in capsys.readouterr().out


def test_a_cut_file_says_how_many_of_how_many_and_keep_returns_them():
    path = shared_data("odd_videos", "derived_truncated_60pct.mp4")
    with pytest.raises(VideoError, match=r"60pct\.mp4: ends early, at 90 of 150 frames, 3\.00 of 5\.\d+ s"):
        read_video(path, size=16)
    assert len(read_video(path, size=16, on_error="keep").frames) == 90
    assert len(read_video(path, size=16, duration=2.0).frames) == 60, "what lies before the cut is whole"


def test_corrupt_data_says_how_many_frames_were_read():
    path = shared_data("odd_videos", "decord_corrupted.mp4")
    with pytest.raises(VideoError, match=r"corrupted\.mp4: 28 frames were read"):
        read_video(path, size=16)
    assert len(read_video(path, size=16, on_error="keep").frames) == 28
    assert len(read_video(path, size=16, max_frames=20).frames) == 20


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "mkv"])
def test_no_cut_of_a_file_is_short_in_silence(tmp_path, suffix):
    rng = np.random.default_rng(0)
    data = encode_bytes(rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), 12, suffix)
    assert len(read_video(data).frames) == 12
    for share in (0.2, 0.5, 0.8):
        with pytest.raises(VideoError):
            read_video(data[: int(len(data) * share)])


def test_a_live_recording_without_lengths_shows_its_cut():
    path = shared_data("odd_videos", "moviepy_no_duration.webm")
    data = path.read_bytes()
    assert cut_short(data) is None
    assert cut_short(data[: len(data) // 2])


# Time


def test_times_are_those_of_presentation(uneven):
    path, times = uneven
    clip = read_video(path)
    np.testing.assert_allclose(clip.times, times, atol=1e-9)
    assert _indices(clip).tolist() == list(range(8))


@pytest.mark.parametrize("fps", [1.0, 7.3, 10.0, 24.0, 60.0])
def test_resampling_shows_the_frame_on_screen_at_each_time(uneven, fps):
    path, times = uneven
    clip = read_video(path, fps=fps)
    grid = np.arange(len(clip.frames)) / fps
    np.testing.assert_allclose(clip.times, grid, atol=1e-9)
    shown = [max(i for i in range(8) if times[i] <= at + 1.001e-3) for at in grid]
    assert _indices(clip).tolist() == shown
    assert grid[-1] < times[-1] + 0.2 <= grid[-1] + 1 / fps + 0.2
    assert clip.fps == fps


def test_rounded_times_do_not_repeat_or_drop_frames(tmp_path):
    write_video(tmp_path / "a.webm", _levels(25), fps=Fraction(30000, 1001))  # rounded to milliseconds
    assert _indices(read_video(tmp_path / "a.webm", fps=30000 / 1001)).tolist() == list(range(25))


def test_start_and_duration_choose_what_is_on_screen(uneven):
    path, times = uneven
    clip = read_video(path, start=0.2, duration=0.5)
    assert _indices(clip).tolist() == [2, 3, 4]
    np.testing.assert_allclose(clip.times, times[2:5] - times[2], atol=1e-9)
    assert _indices(read_video(path, start=0.2, fps=10, max_frames=4)).tolist() == [2, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv"])
def test_seeking_gives_the_frames_of_reading_through(tmp_path, suffix):
    frames = np.concatenate([_levels(28)] * 12)  # past a key frame, which come every 250 or 128 frames
    path = tmp_path / f"long.{suffix}"
    write_video(path, frames, fps=25)
    whole = read_video(path)
    for first in (3, 200, 270, 335):
        part = read_video(path, start=first / 25, max_frames=4)
        np.testing.assert_array_equal(part.frames, whole.frames[first : first + 4])
    with pytest.raises(VideoError, match=r"start = 14 s is past its end at 13\.44"):
        read_video(path, start=14)


@pytest.mark.parametrize("file", ["exo_sample_h263.ts", "tc_discard_first_keyframe.mp4", "tc_av1_video.mkv"])
def test_seeking_in_real_files_gives_the_frames_of_reading_through(file):
    path = shared_data("odd_videos", file)
    whole = read_video(path, size=32)
    for first in range(1, len(whole.frames), len(whole.frames) // 4):
        part = read_video(path, size=32, start=float(whole.times[first]), max_frames=2)
        np.testing.assert_array_equal(part.frames, whole.frames[first : first + 2])


def test_times_that_repeat_or_step_back_still_rise(tmp_path):
    images = [av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24") for f in _levels(4)]
    with av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for k, image in enumerate(images):
            image = image.reformat(format="bgr0")
            image.pts = k
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))
    data = (tmp_path / "a.avi").read_bytes()
    clip = read_video(data)
    np.testing.assert_allclose(clip.times, np.arange(4) / 25)

    class Stuck(video_io.Source):
        def _decoded(self):
            for frame, pts in zip(list(super()._decoded()), (100, 100, 101, 3)):
                frame.pts = pts
                yield frame

    with Stuck(data) as source:
        times = [shown.time for shown in source.frames(keep=True)]
    np.testing.assert_allclose(times, [0, 1e-4, 0.04, 0.08], atol=1e-6)


# Colour


_WEIGHTS = {"bt601": (6, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}
_COLOURS = [
    (220, 30, 40),
    (30, 200, 60),
    (40, 50, 230),
    (200, 180, 20),
    (255, 255, 255),
    (0, 0, 0),
    (90, 140, 60),
]


def _flat_yuv(rgb, matrix, full, h, w):
    """An av frame of one colour, by the definition of the matrix and the range."""
    _, red, blue = _WEIGHTS[matrix]
    r, g, b = (value / 255 for value in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    scale, low, chroma = (255, 0, 255) if full else (219, 16, 224)
    values = (low + scale * y, 128 + chroma * u, 128 + chroma * v)
    frame = av.VideoFrame(w, h, "yuv420p")
    for plane, value in zip(frame.planes, values):
        plane.update(bytes([min(255, round(value))]) * plane.buffer_size)
    return frame


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", list(_WEIGHTS))
def test_tagged_colours_come_out_within_two_levels(tmp_path, matrix, full):
    tags = {"colorspace": _WEIGHTS[matrix][0], "color_range": 2 if full else 1}
    images = [_flat_yuv(rgb, matrix, full, 22, 34) for rgb in _COLOURS]
    path = _mux(tmp_path / "a.mkv", images, pixels="yuv420p", tags=tags)
    for size in (None, (11, 17)):
        got = read_video(path, size=size).frames.astype(int)
        assert np.abs(got - np.array(_COLOURS)[:, None, None]).max() <= 2


@pytest.mark.parametrize(
    ("height", "matrix"), [(480, "bt601"), (576, "bt601"), (578, "bt709"), (720, "bt709")]
)
def test_untagged_colours_follow_the_height(tmp_path, height, matrix):
    path = _mux(tmp_path / "a.mkv", [_flat_yuv(_COLOURS[1], matrix, False, height, 64)], pixels="yuv420p")
    got = read_video(path).frames.astype(int)
    assert np.abs(got - _COLOURS[1]).max() <= 2


def test_real_files_of_the_same_code_values_are_read_by_their_range_tags():
    full, limited = (
        read_video(shared_data("odd_videos", f"tc_bt601_{kind}_range.mp4"), max_frames=5).frames.astype(int)
        for kind in ("full", "limited")
    )
    assert np.abs(full - limited).mean() > 10
    assert np.abs(np.clip((full - 16) * 255 / 219, 0, 255) - limited).mean() < 3


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_written_colours_come_back(tmp_path, suffix):
    frames = np.stack([np.broadcast_to(np.uint8(rgb), (32, 32, 3)) for rgb in _COLOURS])
    path = tmp_path / f"a.{suffix}"
    write_video(path, frames, fps=10)
    assert np.abs(read_video(path).frames.astype(int) - frames).max() <= 4
    if suffix != "gif":
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
            tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1], "BT.709, limited"


@pytest.mark.parametrize("shape", [(16, 24), (17, 33), (1, 1)])
def test_mkv_gives_back_the_bytes_written(tmp_path, shape):
    frames = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), dtype=np.uint8)
    for given in (frames, np.float32(frames) / 127.5 - 1):
        write_video(tmp_path / "a.mkv", given, fps=29.97)
        clip = read_video(tmp_path / "a.mkv")
        np.testing.assert_array_equal(clip.frames, frames)
        assert clip.fps == pytest.approx(29.97, rel=1e-3)


def test_floats_and_bytes_give_the_same_file():
    frames = _levels(4, 20, 20)
    assert encode_bytes(frames / np.float32(127.5) - 1, 10) == encode_bytes(frames, 10)


def test_tone_map_keeps_black_grey_and_order_and_brings_peak_to_white():
    # PQ code values of 0, 20, 203, 1000 and 10000 nits, by ST 2084.
    codes = np.array([0.0, 0.35701, 0.58069, 0.75183, 1.0]) * 65535
    grey = tone_map(np.repeat(codes.astype(np.uint16)[None, :, None], 3, axis=2), "pq")[0]
    assert (np.ptp(grey.astype(int), axis=1) <= 1).all(), "grey stays grey"
    assert grey[0, 0] == 0
    assert grey[1, 0] == pytest.approx(255 * (1.055 * (20 / 203) ** (1 / 2.4) - 0.055), abs=2)
    assert 220 < grey[2, 0] < 240
    assert grey[3, 0] >= 254
    assert grey[4, 0] == 255
    hlg = tone_map(np.full((1, 1, 3), round(0.75 * 65535), np.uint16), "hlg")
    assert abs(int(hlg[0, 0, 0]) - int(grey[2, 0])) <= 2, "HLG's reference white is 75%, PQ's 203 nits"


def test_transparency_is_composited_on_the_background():
    path = shared_data("odd_videos", "moviepy_transparent.webm")
    for colour in ((255, 255, 255), (10, 200, 30)):
        corner = read_video(path, max_frames=1, background=colour).frames[0, 0, 0]
        assert np.abs(corner.astype(int) - colour).max() <= 2
    gif = read_video(shared_data("odd_videos", "tc_transparent.gif"), background=(9, 8, 7)).frames[0]
    assert (gif == (9, 8, 7)).all(-1).any()


# Orientation and size


def _with_matrix(data, a, b, c, d):
    """The bytes of an mp4 with this display matrix in its track header."""
    at = data.index(b"tkhd") + 4 + 40
    return (
        data[:at]
        + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        + data[at + 36 :]
    )


@pytest.mark.parametrize(
    ("matrix", "turn", "rotation"),
    [
        ((1, 0, 0, 1), lambda x: x, 0),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1), -90),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1), 90),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2), 180),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1], 0),
        ((1, 0, 0, -1), lambda x: np.rot90(x[:, ::-1], 2), 180),
        ((0, 1, 1, 0), lambda x: np.rot90(x[:, ::-1], 1), 90),
        ((0, -1, -1, 0), lambda x: np.rot90(x[:, ::-1], -1), -90),
    ],
    ids=["none", "-90", "90", "180", "mirror", "flip", "transpose", "antitranspose"],
)
def test_display_matrix_is_applied(matrix, turn, rotation):
    image = _quarters()
    data = _with_matrix(encode_bytes(image[None], 10), *matrix)
    wanted = turn(image).astype(int)
    got = read_video(data).frames[0]
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < 4
    info = probe(data)
    assert (info.height, info.width) == wanted.shape[:2]
    assert info.rotation == rotation
    assert info.mirrored == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    half = read_video(data, size=(wanted.shape[0] // 2, wanted.shape[1] // 2)).frames[0]
    assert np.abs(half - wanted[1::2, 1::2]).mean() < 6


def test_orientation_size_is_its_own_inverse():
    turn = Orientation(transpose=True, mirror_x=True)
    assert turn.size(*turn.size(3, 5)) == (3, 5)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "mkv"])
@pytest.mark.parametrize("shape", [(1, 1), (33, 47), (32, 31), (17, 64), (48, 80)])
def test_any_size_is_kept(tmp_path, suffix, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.stack([rows * 3, columns * 3, rows + columns], -1).astype(np.uint8)
    write_video(tmp_path / f"a.{suffix}", [image] * 3, fps=12.5)
    clip = read_video(tmp_path / f"a.{suffix}")
    assert clip.frames.shape == (3, *shape, 3)
    assert np.abs(clip.frames.astype(int) - image).mean() < 8
    assert clip.fps == pytest.approx(12.5, rel=0.02)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"], "no leftovers"


def test_cover_keeps_the_shape_of_things_and_cuts_evenly():
    assert scaled_size(100, 200, (50, 50), "cover") == ((50, 100), (50, 50))
    assert scaled_size(100, 200, (50, 50), "stretch") == ((50, 50), (50, 50))
    assert scaled_size(100, 200, 50, "cover") == ((50, 100), (50, 100))
    assert scaled_size(333, 77, (40, 64), "cover")[0][1] == 64
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 38:42] = 255  # a bar in the middle stays in the middle
    got = read_video(encode_bytes(image[None], 10), size=(20, 20)).frames[0].astype(int)
    assert got.shape == (20, 20, 3)
    assert got[:, 9:11].min() > 200
    assert max(got[:, :7].max(), got[:, 13:].max()) < 60


def test_stored_frames_that_change_size_come_out_at_the_first_size():
    small, large = encode_bytes(_levels(2, 16, 16), 10), encode_bytes(_levels(2, 32, 32), 10)
    convert = video_io.FrameConverter()
    for data in (small, large):
        with video_io.Source(data) as source:
            assert convert(next(source.frames()).frame).shape == (16, 16, 3)


# Memory


def test_streaming_and_writing_hold_a_few_frames_at_a_time(tmp_path):
    frame = np.zeros((256, 256, 3), np.uint8)
    drawn = 0

    def draw():
        nonlocal drawn
        for k in range(200):
            drawn += 1
            yield np.full_like(frame, k)

    tracemalloc.start()
    write_video(tmp_path / "a.mp4", draw(), fps=30)
    for _ in iter_frames(tmp_path / "a.mp4"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn == 200
    assert peak < 20 * frame.nbytes


def test_a_part_of_a_file_is_read_without_the_rest(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", _levels(28), fps=28)
    decoded = 0
    original = video_io.Source._decoded

    def counted(self):
        nonlocal decoded
        for frame in original(self):
            decoded += 1
            yield frame

    monkeypatch.setattr(video_io.Source, "_decoded", counted)
    assert len(read_video(tmp_path / "a.mp4", max_frames=3).frames) == 3
    assert decoded == 3


def test_more_than_max_bytes_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", _levels(10), fps=10)
    with pytest.raises(VideoError, match=r"a\.mp4: decodes to more than max_bytes = 5000 .*give size"):
        read_video(tmp_path / "a.mp4", max_bytes=5000)


def test_absurd_sizes_are_refused_before_decoding():
    gif = bytearray(encode_bytes(_levels(1), 10, "gif"))
    gif[6:10] = struct.pack("<HH", 9000, 9000)
    with pytest.raises(VideoError, match="declares frames of 9000x9000"):
        read_video(bytes(gif))
    with pytest.raises(VideoError, match="at most"):
        read_video(encode_bytes(_levels(1), 10), size=100_000)


# Errors


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\), must be \[t h w 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (iter([]), "no frames"),
        (np.zeros((2, 8, 8, 3), np.int32), "int32"),
        (np.full((1, 8, 8, 3), 200.0), "values in"),
        (np.full((1, 8, 8, 3), np.nan), "NaN"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 9, 3))], r"frame 1 has shape \(8, 9, 3\)"),
        (7, "int"),
    ],
)
def test_wrong_frames_are_named_and_leave_no_file(tmp_path, frames, message):
    with pytest.raises(VideoError, match=message):
        write_video(tmp_path / "a.mp4", frames)
    assert not list(tmp_path.iterdir())


def test_a_failing_source_of_frames_leaves_the_old_file(tmp_path):
    write_video(tmp_path / "a.mp4", _levels(2), fps=10)
    before = (tmp_path / "a.mp4").read_bytes()

    def failing():
        yield from _levels(5)
        raise RuntimeError("out of frames")

    with pytest.raises(RuntimeError, match="out of frames"):
        write_video(tmp_path / "a.mp4", failing())
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 10_000])
def test_wrong_rates_are_refused(tmp_path, fps):
    with pytest.raises(VideoError, match="fps is"):
        write_video(tmp_path / "a.mp4", _levels(2), fps=fps)


def test_a_gif_has_at_most_50_frames_a_second(tmp_path):
    with pytest.raises(VideoError, match=r"at most 50 for \.gif"):
        write_video(tmp_path / "a.gif", _levels(2), fps=60)


def test_unknown_extensions_and_folders_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"a\.avi: format 'avi' is not written, only mp4, webm, gif"):
        write_video(tmp_path / "a.avi", _levels(2))
    with pytest.raises(VideoError, match="does not exist"):
        write_video(tmp_path / "none" / "a.mp4", _levels(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"start": -1}, "start is -1"),
        ({"duration": 0}, "duration is 0"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"size": (0, 5)}, "size is"),
        ({"size": 1.5}, "size is"),
        ({"fit": "contain"}, "fit is"),
        ({"on_error": "ignore"}, "on_error is"),
    ],
)
def test_wrong_options_are_refused_before_reading(options, message):
    for reader in (read_video, iter_frames):
        with pytest.raises(VideoError, match=message):
            reader("no such file", **options)


def test_missing_files_folders_and_rubbish_are_named(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        read_video(tmp_path)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    with pytest.raises(VideoError, match=r"list\.mp4"):
        read_video(tmp_path / "list.mp4")
    with pytest.raises(VideoError, match="0 bytes"):
        probe(b"")


def test_frames_flagged_as_damaged_are_not_handed_out_in_silence():
    path = shared_data("odd_videos", "derived_bitflips400.mp4")
    with pytest.raises(VideoError, match="0 frames were read, then one that the decoder flags as damaged"):
        read_video(path, size=16, max_frames=5)
    assert len(read_video(path, size=16, max_frames=5, on_error="keep").frames) == 5
