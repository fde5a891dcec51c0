"""Ordinary files to frames: one rule for sizes, nothing squashed, and one line for what does not fit."""

import numpy as np
import pytest
from PIL import Image

from tests.data_paths import shared_data
from vdit.errors import ShapeError, VideoError
from vdit.generate.images import Fit, choose_size
from vdit.generate.inputs import common_size, read_input
from vdit.video.read import write_video


def disc(height, width, *, across=0.5):
    """uint8 [h w 3]: a white disc in the middle of black."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(y - height / 2, x - width / 2) < across * min(height, width) / 2
    return np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same picture, 60 high and 100 wide, as every kind of file; videos have 12 frames at 10 fps."""
    folder = tmp_path_factory.mktemp("files")
    picture = disc(60, 100)
    for kind in ("png", "jpg", "bmp", "webp"):
        Image.fromarray(picture).save(folder / f"a.{kind}")
    Image.fromarray(picture).save(folder / "still.gif")
    for kind in ("mp4", "webm", "gif", "mkv"):
        frames = np.stack([picture - np.uint8(4 * k) * (picture > 0) for k in range(12)])
        write_video(folder / f"v.{kind}", frames, fps=10)
    return folder


NAMES = ("a.png", "a.jpg", "a.bmp", "a.webp", "still.gif", "v.mp4", "v.webm", "v.gif", "v.mkv")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [None, (32, 32), (96, 48), (120, 200), (60, 100)])
def test_a_disc_stays_a_disc_in_the_middle(files, name, size):
    """Never squashed: as high as wide, centred, and at the scale that covers."""
    given = read_input(files / name, size=size, multiple=4)
    frame = given.frames[0, ..., 1] > 127
    assert given.frames.dtype == np.uint8
    assert given.frames.shape[1:] == (*(size or (60, 100)), 3) == (*given.size, 3)
    rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
    scale = 1 if size is None else max(size[0] / 60, size[1] / 100)
    for where, full in ((rows, given.size[0]), (columns, given.size[1])):
        assert len(where) == pytest.approx(30 * scale, abs=2)
        assert where.mean() + 0.5 == pytest.approx(full / 2, abs=1.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_still_image_is_one_frame_and_a_video_keeps_all(files, name):
    given = read_input(files / name)
    assert given.still == (not name.startswith("v"))
    assert len(given.frames) == (1 if given.still else 12)
    assert given.fps == (None if given.still else pytest.approx(10, rel=0.01))
    assert given.note.startswith(f"{name}: 60x100 {'a still image' if given.still else 'at 10 fps'}, its own size")


@pytest.mark.parametrize(("height", "width"), [(480, 854), (1080, 1920), (60, 90), (90, 60), (17, 300), (64, 64)])
@pytest.mark.parametrize("area", [None, 4096, 16384, 10**9])
def test_the_size_chosen_keeps_the_shape_and_never_grows(height, width, area):
    size = choose_size(height, width, multiple=16, area=area)
    assert size[0] % 16 == size[1] % 16 == 0
    assert size[0] <= height
    assert size[1] <= width
    assert area is None or size[0] * size[1] <= area
    fit = Fit(own=(height, width), size=size)
    assert fit.scaled[0] <= height
    cut = (fit.scaled[0] * fit.scaled[1]) / (size[0] * size[1])
    assert cut < (1.3 if min(size) >= 48 else 2.1)


def test_the_note_tells_what_was_done(tmp_path):
    write_video(tmp_path / "dog.mkv", np.zeros((30, 480, 854, 3), np.uint8), fps=30)
    note = lambda **asked: read_input(tmp_path / "dog.mkv", **asked).note.removeprefix("dog.mkv: 480x854 at 30 fps, ")  # noqa: E731
    assert note(size=(96, 160), multiple=16) == "scaled to 96x171 and 11 columns cut: 96x160; every frame kept"
    assert note(size=(480, 848)) == "6 columns cut: 480x848; every frame kept"
    assert note(size=(960, 1708)) == "scaled up to 960x1708; every frame kept"
    rest = "scaled to 12x21 and 5 columns cut: 12x16; "
    small = {"size": (12, 16)}
    assert note(**small, max_frames=9) == f"{rest}its first 9 frames"
    assert note(**small, last=9) == f"{rest}its last 9 frames"
    assert note(**small, start=0.5, seconds=0.2) == f"{rest}6 frames from 0.5 s on"
    assert note(**small, fps=8.0) == f"{rest}taken at 8 fps: 8 frames"
    assert note(**small, fps=29.97) == f"{rest}every frame kept"
    dropped = "the last of them (the model makes 1 + a multiple of 4 frames)"
    assert note(**small, max_frames=10, lengths=(1, 4)) == f"{rest}its first 10 frames, but {dropped}"


def test_lengths_leave_out_what_is_farthest(files):
    """Of a head the end, of a tail the beginning."""
    whole = read_input(files / "v.mkv").frames
    np.testing.assert_array_equal(read_input(files / "v.mkv", lengths=(1, 4)).frames, whole[:9])
    tail = read_input(files / "v.mkv", last=7, lengths=(1, 4))
    np.testing.assert_array_equal(tail.frames, whole[-5:])
    assert tail.dropped == 2


def test_the_first_file_decides_for_all(files):
    paths = [files / "v.mkv", files / "a.png"]
    assert common_size(paths, multiple=16) == read_input(paths[0], multiple=16).size
    assert common_size(paths, multiple=16, area=1024) == choose_size(60, 100, multiple=16, area=1024)
    assert common_size(paths, multiple=16, size=(32, 64)) == (32, 64)


def test_transparency_shows_white_and_16_bits_keep_the_upper_8(tmp_path):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:, :4] = (200, 10, 20, 255)
    picture[:, 4:] = (0, 0, 0, 0)
    Image.fromarray(picture).save(tmp_path / "clear.png")
    frame = read_input(tmp_path / "clear.png").frames[0]
    assert (frame[:, :4] == (200, 10, 20)).all()
    assert (frame[:, 4:] == 255).all()
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(tmp_path / "deep.png")
    deep = read_input(tmp_path / "deep.png").frames[0, ..., 0]
    np.testing.assert_array_equal(deep.ravel(), np.arange(64) * 1000 // 256)


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(disc(40, 80)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_input(tmp_path / "turned.jpg").frames.shape == (1, 80, 40, 3)
    rotated = read_input(shared_data("odd_videos", "decord_video_270.mov"), max_frames=1)
    assert rotated.frames.shape[1] > rotated.frames.shape[2]


def test_uneven_times_are_told(tmp_path):
    pictures = [Image.fromarray(disc(20, 20, across=k / 8)) for k in range(1, 7)]
    for name, times in (("even", [100] * 6), ("uneven", [100, 100, 900, 100, 100, 100])):
        pictures[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=pictures[1:], duration=times)
        assert ("uneven times" in read_input(tmp_path / f"{name}.gif").note) == (name == "uneven")
    assert "uneven" not in read_input(tmp_path / "uneven.gif", fps=10).note.removeprefix("uneven.gif")


def test_a_part_has_the_rate_of_the_whole():
    """Of a phone's video, whose frames do not come evenly."""
    path = shared_data("clips", "exo_station_roof_hdr10.mp4")
    options = {"area": 1024, "multiple": 8}
    assert read_input(path, max_frames=9, **options).fps == read_input(path, last=9, **options).fps


@pytest.mark.parametrize(("name", "asked", "error", "named"), [
    ("v.mp4", {"size": (33, 64), "multiple": 16}, ShapeError, "size 33x64 .*multiples of 16 .*use 32x64"),
    ("v.mp4", {"multiple": 64}, ShapeError, "v.mp4: a picture of 60x100 .* is smaller than a block of 64x64"),
    ("v.mp4", {"area": 100, "multiple": 16}, ShapeError, "v.mp4: an area of 100 pixels .*give 256"),
    ("v.mp4", {"least": 13}, ShapeError, "v.mp4: has 12 frames to take, 13 are needed"),
    ("a.png", {"least": 5}, ShapeError, "a.png: has 1 frame to take, 5 are needed"),
    ("v.mp4", {"start": 9.0}, VideoError, "v.mp4: start = 9.0 s is past its end"),
    ("v.mp4", {"last": 3, "max_frames": 3}, ShapeError, "give one of them"),
    ("absent.mp4", {}, VideoError, "absent.mp4: no such file"),
    ("absent.png", {}, VideoError, "absent.png: cannot be read as an image: No such file"),
    ("text.png", {}, VideoError, "text.png: cannot be read as an image: it is none of PNG"),
    ("cut.png", {}, VideoError, "cut.png: cannot be read as an image"),
    ("cut.mp4", {}, VideoError, "cut.mp4"),
    ("many.png", {}, VideoError, "many.png: holds 3 pictures"),
    ("phone.heic", {}, VideoError, "write it as .jpg"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(files, name, asked, error, named):
    (files / "text.png").write_text("no picture")
    (files / "phone.heic").write_text("")
    (files / "cut.png").write_bytes((files / "a.png").read_bytes()[:-40])
    (files / "cut.mp4").write_bytes((files / "v.mp4").read_bytes()[:-400])
    pictures = [Image.fromarray(disc(20, 20, across=k / 4)) for k in (1, 2, 3)]
    pictures[0].save(files / "many.png", save_all=True, append_images=pictures[1:])
    with pytest.raises(error, match=named) as raised:
        read_input(files / name, **asked)
    assert "\n" not in str(raised.value)


def test_real_clips_of_any_kind_fit(tmp_path):
    for name in ("exo_portrait_paper_1.mp4", "exo_bear_vp9.webm", "cogvideo_muybridge_horse.mp4"):
        given = read_input(shared_data("clips", name), area=64 * 64, multiple=8, max_frames=3)
        assert len(given.frames) == 3
        assert given.size[0] * given.size[1] <= 64 * 64
        assert (given.size[0] > given.size[1]) == (given.fit.own[0] > given.fit.own[1])
