"""What a file says about itself beyond pixels and times, and files that only name other files."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data_paths import shared_data
from vdit.data.clips import Clips
from vdit.data.config import DataConfig
from vdit.data.datasets import FolderDataset
from vdit.errors import VideoError
from vdit.generate.inputs import read_input
from vdit.video import read as video_io
from vdit.video.convert import square_size
from vdit.video.read import encode_bytes, iter_frames, probe, read_video, write_video
from vdit.video.source import decoding

GREYS = np.broadcast_to((20 + 40 * np.arange(5, dtype=np.uint8))[:, None, None, None], (5, 16, 16, 3))


# Pixel aspect


def test_pixels_that_are_nearly_square_are_left_alone():
    info = probe(shared_data("clips", "torchcodec_park_nonzero_start.mp4"))  # 224:225
    assert (info.height, info.width, info.pixel_aspect) == (112, 200, 1.0)


@pytest.mark.parametrize(("stored", "aspect", "shown"), [
    ((90, 90), 16 / 9, (90, 160)), ((576, 720), 64 / 45, (576, 1024)), ((480, 720), 8 / 9, (540, 720)),
    ((90, 90), 1.0, (90, 90)),
])  # fmt: skip
def test_the_short_side_of_pixels_grows_and_none_shrinks(stored, aspect, shown):
    assert square_size(*stored, aspect) == shown


def test_an_anamorphic_circle_is_round_wherever_frames_are_read(tmp_path):
    path = shared_data("faults", "sar", "circle_16x9_anamorphic.mp4")
    (tmp_path / "a.mp4").write_bytes(path.read_bytes())
    footage = FolderDataset(tmp_path).open(0, None)
    given = read_input(path, size=(48, 80))
    info = probe(path)
    assert (info.height, info.width) == (footage.height, footage.width) == given.fit.own == (90, 160)
    trained_on = footage.read(start=0.0, fps=8.0, frames=2, size=(45, 80)).video
    for frames in (read_video(path).frames, given.frames, trained_on, read_video(path, size=45).frames):
        grey = frames[0].mean(-1)
        disc = np.abs(grey - np.median(grey)) > 60
        high, wide = disc.any(1).sum(), disc.any(0).sum()
        assert high > 20
        assert wide == pytest.approx(high, abs=2)


def test_an_anamorphic_video_is_turned_after_its_pixels_are_made_square(tmp_path):
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 20, 30, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stream.set_display_rotation(90)
        image = av.VideoFrame.from_ndarray(np.zeros((30, 20, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
        out.mux(stream.encode(image))
        out.mux(stream.encode(None))
    assert read_video(tmp_path / "a.mov").frames.shape == (1, 40, 30, 3)


# Stills and animations


def test_a_still_avif_is_a_picture_without_a_rate():
    path = shared_data("faults", "avif", "still.avif")
    assert (probe(path).fps, probe(path).duration) == (None, None)
    assert read_input(path).still


def test_an_animated_avif_has_all_its_frames_at_their_times(tmp_path):
    pictures = [Image.fromarray(frame) for frame in GREYS]
    times = [100, 100, 300, 100, 100]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=times)
    clip = read_video(tmp_path / "a.avif")
    assert np.abs(clip.frames.astype(int) - GREYS).max() <= 3
    np.testing.assert_allclose(clip.times, [0, 0.1, 0.2, 0.5, 0.6], atol=1e-6)
    given = read_input(tmp_path / "a.avif")
    assert not given.still
    assert len(given.frames) == 5


def test_transparency_that_would_be_lost_is_refused(tmp_path):
    alpha = np.full((5, 16, 16, 1), 128, np.uint8)
    pictures = [Image.fromarray(np.concatenate([frame, a], -1)) for frame, a in zip(GREYS, alpha)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=100)
    with pytest.raises(VideoError, match=r"a\.avif: .*transparency"):
        read_video(tmp_path / "a.avif")


# Bytes behind the end


@pytest.mark.parametrize(("name", "tail"), [
    ("exo_sample_fragmented.mp4", b"abc"), ("exo_sample_fragmented.mp4", b"\0" * 100),
    ("exo_sample_fragmented.mp4", b"\xff" * 16), ("moviepy_no_duration.webm", b"these bytes are no element"),
], ids=["short", "zeros", "ones", "webm"])  # fmt: skip
def test_bytes_behind_the_last_box_are_no_cut(name, tail):
    data = shared_data("odd_videos", name).read_bytes()
    last = {"start": 0.8, "size": 16}
    np.testing.assert_array_equal(read_video(data + tail, **last).frames, read_video(data, **last).frames)
    with pytest.raises(VideoError):
        read_video(data[: -len(data) // 4], size=16)


# EXIF


def _camera_pictures(path, orientation):
    """A .mov of JPEGs as a camera writes them for a time lapse: EXIF in each."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32], picture[16:, 32:] = (200, 0, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", orientation
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", exif=exif, quality=95)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for k in range(3):
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, k, k, Fraction(1, 10)
            packet.is_keyframe = True
            out.mux(packet)
    return picture


@pytest.mark.parametrize(("orientation", "turn"), [
    (1, lambda x: x), (2, lambda x: x[:, ::-1]), (5, lambda x: x.transpose(1, 0, 2)), (6, lambda x: np.rot90(x, -1)),
])  # fmt: skip
def test_a_time_lapse_of_camera_pictures_is_read_and_turned_as_exif_says(tmp_path, orientation, turn):
    picture = _camera_pictures(tmp_path / "a.mov", orientation)
    wanted = turn(picture).astype(int)
    frames = read_video(tmp_path / "a.mov").frames
    assert frames.shape == (3, *wanted.shape)
    assert np.abs(frames - wanted).mean() < 8


def test_the_time_lapse_that_ended_a_training_is_read():
    assert len(read_video(shared_data("faults", "exif_timelapse", "timelapse.mov")).frames) == 12


def _unless(convert, self, frame):
    """Fails as a library might on frames of 16 x 16."""
    return {}["a library's own fault"] if frame.height == frame.width else convert(self, frame)


def test_what_nobody_foresaw_is_an_error_of_that_file_and_ends_no_training(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mkv", GREYS, fps=10)
    write_video(tmp_path / "b.mkv", np.repeat(GREYS, 2, axis=2), fps=10)
    original = video_io.FrameConverter.__call__

    def surprised(self, frame):
        if self.size == (7, 7):
            raise KeyError("a library's own fault\nin two lines")
        return original(self, frame)

    monkeypatch.setattr(video_io.FrameConverter, "__call__", surprised)
    with pytest.raises(VideoError, match=r"a\.mkv: .*KeyError") as raised:
        read_video(tmp_path / "a.mkv", size=(7, 7))
    assert "\n" not in str(raised.value)
    training = Clips(FolderDataset(tmp_path), DataConfig(pixel_budgets=(256,), frames=(1,), fps=(8.0,)))
    monkeypatch.setattr(video_io.FrameConverter, "__call__", lambda self, frame: _unless(original, self, frame))
    assert [training[k]["id"] for k in range(2)] == ["b.mkv", "b.mkv"]
    assert list(training.report()) == ["a.mkv"]
    monkeypatch.setattr(video_io, "orientation_of", lambda frame: 1 / 0)
    with pytest.raises(VideoError, match=r"b\.mkv: .*ZeroDivisionError"):
        probe(tmp_path / "b.mkv")
    with pytest.raises(KeyboardInterrupt), decoding("a"):
        raise KeyboardInterrupt


# Sound


def test_an_input_says_whether_it_has_sound():
    assert not read_input(shared_data("clips", "exo_bear_vp9.webm"), size=(8, 8), max_frames=2).sound
    path = shared_data("odd_videos", "exo_sample_h264_mpeg_audio.ts")
    for asked in ({}, {"fps": 8.0}, {"last": 3}, {"max_frames": 3}):
        given = read_input(path, size=(8, 8), **asked)
        assert given.sound
        assert "\n" not in given.note


def test_interlaced_and_several_videos_are_said(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        streams = []
        for _ in range(2):
            streams.append(stream := out.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"}))
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for stream in streams:
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24").reformat(
                format="yuv420p"
            )
            for k in range(2):
                image.pts = k
                out.mux(stream.encode(image))
            out.mux(stream.encode(None))
    info = probe(tmp_path / "a.mkv")
    assert (info.interlaced, info.streams) == (True, 2)
    note = read_input(tmp_path / "a.mkv").note
    assert "interlaced" in note
    assert "2 videos" in note
    write_video(tmp_path / "b.mkv", GREYS)
    info = probe(tmp_path / "b.mkv")
    assert (info.interlaced, info.streams) == (False, 1)
    assert read_input(tmp_path / "b.mkv").note.endswith("every frame kept")


# Playlists


def _playlists(target):
    return {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
        "bom": f"\ufeff\n#EXTM3U\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
        "m3u": f"{target}\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "concat": f"file '{target}'\nduration 1\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
               "a=rtpmap:96 H264/90000\n",
        "mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
               'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
               f'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "smil": f'<smil><body><video src="{target}"/></body></smil>',
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(_playlists("")))
def test_playlists_are_refused_by_their_content_whatever_their_name(tmp_path, kind):
    write_video(tmp_path / "secret.mp4", GREYS, fps=10)
    for target in ("secret.mp4", str(tmp_path / "secret.mp4"), "http://127.0.0.1:9/a.mp4"):
        text = _playlists(target)[kind]
        for name in (f"list.{kind}", "list.mp4", "list.m3u8", "list.mpd", "list.ffconcat", "list.sdp", "list"):
            (tmp_path / name).write_text(text)
            for reader in (probe, read_video, read_input):
                with pytest.raises(VideoError, match=f"{name}: ") as raised:
                    reader(tmp_path / name)
                assert "\n" not in str(raised.value)
    with pytest.raises(VideoError):
        next(iter_frames(text.encode()))


def test_a_name_that_is_a_pattern_opens_no_other_files(tmp_path):
    for k in range(3):
        Image.fromarray(GREYS[k]).save(tmp_path / f"a{k}.png")
    Image.fromarray(GREYS[4]).save(tmp_path / "a%d.png")
    frames = read_video(tmp_path / "a%d.png").frames
    np.testing.assert_array_equal(frames, GREYS[4:])


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "mkv"])
def test_a_video_under_the_name_of_a_playlist_is_a_video(tmp_path, suffix):
    (tmp_path / "a.m3u8").write_bytes(encode_bytes(GREYS, 10, suffix))
    assert len(read_video(tmp_path / "a.m3u8").frames) == 5
