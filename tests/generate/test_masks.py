"""Masks and boxes: made for the file, fitted as its frames, and nothing that is to be made is lost on the way."""

import numpy as np
import pytest
from PIL import Image

from vdit.errors import ConfigError, ShapeError
from vdit.generate.images import Fit
from vdit.generate.inputs import open_input
from vdit.generate.masks import box_masks, mask_frames, parse_box
from vdit.video.read import write_video

COUNT, HEIGHT, WIDTH = 20, 30, 50


def moving():
    """uint8 [t h w 3]: a white square that moves to the right, two pixels a frame."""
    video = np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8)
    for k, frame in enumerate(video):
        frame[10:14, 2 * k : 2 * k + 4] = 255
    return video


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A video whose moving square is also its mask, the mask at another rate, and stills of the first frame."""
    folder = tmp_path_factory.mktemp("masks")
    write_video(folder / "video.mkv", moving(), fps=10)
    write_video(folder / "mask.mkv", moving(), fps=25)
    write_video(folder / "mask.mp4", moving(), fps=10)
    write_video(folder / "one.mkv", moving()[:1], fps=10)
    write_video(folder / "short.mkv", moving()[:-1], fps=10)
    write_video(folder / "small.mkv", moving()[:, ::2, ::2], fps=10)
    Image.fromarray(moving()[0]).save(folder / "still.png")
    clear = np.concatenate([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), moving()[0, ..., :1]], axis=-1)
    Image.fromarray(clear).save(folder / "clear.png")
    return folder


def taken(masks, video, size=3):
    """The mask of all frames of a video, read in parts: bool [t h w]."""
    count, take = len(frames_of(video)), masks.begin()
    return np.concatenate([take(min(size, count - k)) for k in range(0, count, size)])


def read_mask(path, video):
    return taken(mask_frames(path, video), video)


def frames_of(video):
    """uint8 [t h w 3]"""
    return np.round((np.concatenate(list(video), axis=1)[0] + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("asked", [
    {}, {"max_frames": 7}, {"fps": 4.0}, {"fps": 15.0}, {"seconds": 0.8, "fps": 3.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["mask.mkv", "mask.mp4"])
def test_a_moving_mask_stays_on_what_it_covers(files, name, asked):
    """Frame by frame, whatever part of the file was read: by number, as the mask has another rate."""
    given = open_input(files / "video.mkv", **asked)
    np.testing.assert_array_equal(read_mask(files / name, given), frames_of(given)[..., 0] > 127)


@pytest.mark.parametrize("name", ["still.png", "clear.png", "one.mkv"])
def test_a_still_mask_is_for_all_frames(files, name):
    mask = read_mask(files / name, open_input(files / "video.mkv"))
    assert mask.shape == (COUNT, HEIGHT, WIDTH)
    assert (mask == (moving()[0, ..., 0] > 127)).all()


@pytest.mark.parametrize("size", [(15, 25), (16, 16), (48, 64), (7, 50)])
def test_a_fitted_mask_covers_what_the_fitted_frames_show(files, size):
    given = open_input(files / "video.mkv", size=size)
    mask = read_mask(files / "mask.mkv", given)
    assert mask.shape == frames_of(given).shape[:3]
    shown = frames_of(given)[..., 0] > 127
    assert mask[shown].all()
    assert mask.sum() < 4 * shown.sum() + 60 * COUNT


def test_no_pixel_of_a_mask_is_lost_by_scaling():
    rng = np.random.default_rng(0)
    for size in ((3, 5), (29, 47), (30, 49), (40, 70), (100, 100)):
        fit = Fit(own=(HEIGHT, WIDTH), size=size)
        (height, width), (top, left) = fit.scaled, fit.offset
        for _ in range(20):
            y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[y, x] = True
            wanted = np.outer(overlapping(y, HEIGHT, height), overlapping(x, WIDTH, width))
            np.testing.assert_array_equal(fit.mask(mask), wanted[top : top + size[0], left : left + size[1]])


def overlapping(pixel, own, scaled):
    """bool [scaled]: which of `scaled` pixels in the place of `own` overlap with one of these."""
    index = np.arange(scaled)
    return ((index + 1) * own > pixel * scaled) & (index * own < (pixel + 1) * scaled)


@pytest.mark.parametrize(("name", "named"), [
    ("small.mkv", r"small.mkv: is 15x25, video.mkv is 30x50 \(height x width\)"),
    ("short.mkv", r"short.mkv: has 19 frames, video.mkv has 20"),
])  # fmt: skip
@pytest.mark.parametrize("asked", [{}, {"size": (15, 25), "max_frames": 4}], ids=str)
def test_a_mask_of_another_size_or_length_is_refused(files, name, named, asked):
    with pytest.raises(ShapeError, match=named):
        read_mask(files / name, open_input(files / "video.mkv", **asked))


def test_boxes_are_of_the_files_own_pixels(files):
    given = open_input(files / "video.mkv")
    for text in ("10,6,20,12", "20%,20%,40%,40%", " 10 , 20% , 20 , 12 "):
        mask = taken(box_masks([parse_box(text)], given), given)
        wanted = np.zeros((HEIGHT, WIDTH), bool)
        wanted[6:18, 10:30] = True
        assert (mask == wanted).all()
    half = open_input(files / "video.mkv", size=(15, 25))
    assert (parse_box("10,6,20,12").area(half) == wanted[::2, ::2]).all()
    assert parse_box("0,0,100%,100%").area(half).all()


def test_boxes_may_last_a_while(files):
    given = open_input(files / "video.mkv")
    mask = lambda text: taken(box_masks([parse_box(f"0,0,9,9@{text}")], given), given)  # noqa: E731
    during = lambda text: mask(text).any((1, 2)).nonzero()[0].tolist()  # noqa: E731
    assert during("0.5-0.8") == [5, 6, 7]
    assert during("1.7-") == [17, 18, 19]
    assert during("0-0.1") == [0]


WRONG = ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,3,4", "1,2,0,4", "1,2,3,4@2-1", "1,2,3,4@"]


@pytest.mark.parametrize("text", WRONG)
def test_boxes_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError, match=r"box .*write x,y,width,height"):
        parse_box(text)


@pytest.mark.parametrize(("text", "named"), [
    ("40,0,11,5", "does not lie within the 30x50 pixels"),
    ("0,90%,5,11%", "does not lie within"),
    ("20,0,5,5@2-3", "no frame is in that time"),
    ("0,0,5,5", "lies in what is cut off"),
])  # fmt: skip
def test_boxes_outside_are_refused(files, text, named):
    with pytest.raises(ShapeError, match=named):
        parse_box(text).area(open_input(files / "video.mkv", size=(30, 30)))
