"""Measures of what was constructed: bars, blur, motion, letters, freezes, combs, blocks, logos, light."""

import cv2
import numpy as np
import pytest

from data_pipelines import picture
from data_pipelines.frames import frames_from_array, luma_of
from data_pipelines.measures import COLUMNS, Meter
from data_pipelines.picture import bars, blockiness, blur, combed, text_area
from data_pipelines.records import ClipRecord
from tests.data_pipelines.shots import shot, texture

FPS = 24
H, W = 180, 320
DIAGONAL = np.hypot(H, W)


def measured(frames: np.ndarray, fps: float = FPS) -> dict:
    meter, end = Meter(), None
    for frame in frames_from_array(frames, fps):
        meter.push(frame)
        end = frame.end
    return meter.summary(ClipRecord(path="a", end=end, size=frames.shape[1:3]), 0, meter.count).measures


def pan(speed: float, frames: int = 30) -> np.ndarray:
    return shot(1, frames, size=(H, W), speed=speed)


@pytest.mark.parametrize("pixels", [0.5, 2.0, 5.0])
def test_the_speed_of_a_pan(pixels):
    values, speed = measured(pan(pixels)), pixels * FPS / DIAGONAL
    assert values["camera_motion"] == pytest.approx(speed, rel=0.2)
    assert values["motion"] == pytest.approx(speed, rel=0.2)
    assert values["object_motion"] < 0.15 * speed
    assert values["shake"] < 0.15 * speed


def test_motion_is_by_time_and_not_by_frame():
    """The same pan at half the rate."""
    fast = pan(2.0)
    assert measured(fast[::2], FPS / 2)["motion"] == pytest.approx(measured(fast)["motion"], rel=0.1)


def test_an_object_moves_and_the_camera_does_not():
    frames = np.repeat(texture(2, (H, W))[None], 30, 0).astype(np.uint8)
    thing = texture(3, (90, 100)).astype(np.uint8)
    for k, frame in enumerate(frames):
        frame[40:130, 20 + 4 * k : 120 + 4 * k] = thing
    values = measured(frames)
    share = 90 * 100 / (H * W) * 4 * FPS / DIAGONAL
    assert values["object_motion"] == pytest.approx(share, rel=0.35)
    assert values["camera_motion"] < 0.2 * share
    assert values["stillness"] < 0.2


def test_a_still_clip():
    values = measured(pan(0))
    assert (values["motion"], values["stillness"], values["freeze"], values["repeats"]) == (0, 1, 1, 1)
    assert values["logo_area"] is None  # all stands still: a logo cannot be told


def test_a_freeze_has_its_length():
    moving = pan(2.0, 48)
    frames = np.concatenate([moving[:24], np.repeat(moving[23:24], 24, 0), moving[24:]])
    assert measured(frames)["freeze"] == pytest.approx(25 / 72, abs=1e-5)
    short = np.concatenate([moving[:24], np.repeat(moving[23:24], 6, 0), moving[24:]])
    assert measured(short)["freeze"] == 0  # a quarter of a second is none
    assert measured(short)["repeats"] == pytest.approx(6 / 53, abs=1e-5)


@pytest.mark.parametrize(("top", "bottom", "left", "right"), [(22, 22, 0, 0), (0, 0, 40, 40), (10, 30, 6, 0)])
def test_bars_are_found_to_the_pixel(top, bottom, left, right):
    frames = np.pad(pan(1.0, 20), ((0, 0), (top, bottom), (left, right), (0, 0)))
    values = measured(frames)
    assert (values["crop_top"], values["crop_left"]) == (top, left)
    assert (values["crop_height"], values["crop_width"]) == (H, W)
    whole = measured(pan(1.0, 20))
    for name, tolerance in (("exposure", 0.02), ("motion", 0.25), ("colourfulness", 0.05), ("si", 0.15)):
        assert values[name] == pytest.approx(whole[name], rel=tolerance), name  # of the picture, not of the frame


def test_letters_in_a_bar_are_no_picture():
    luma = np.zeros((200, 320), np.uint8)
    luma[40:160] = 120
    luma[180:186, 150:156] = 255
    assert bars(luma)[:2] == (0.2, 0.2)


def test_a_dark_picture_is_no_bar_for_ever():
    """Bars are what is black in nearly all frames that show anything."""
    frames = pan(1.0, 48).copy()
    frames[:20, :60] = 0
    assert measured(frames)["crop_top"] == 0


@pytest.mark.parametrize("sigma", [1.5, 2.5, 4.0])
def test_blur_is_in_pixels(sigma):
    image = np.kron(np.random.default_rng(0).integers(0, 2, (12, 20)), np.ones((30, 30))) * 160 + 40
    soft = cv2.GaussianBlur(image.astype(np.uint8), (0, 0), sigma)
    assert blur(soft) == pytest.approx(sigma, rel=0.2)


def test_blockiness_grows_with_the_blocks():
    image = texture(4, (H, W), cell=20).mean(-1)
    blocks = cv2.resize(cv2.resize(image, (W // 8, H // 8), interpolation=cv2.INTER_AREA), (W, H // 8 * 8),
                        interpolation=cv2.INTER_NEAREST)  # fmt: skip
    found = [blockiness((image[: len(blocks)] * (1 - a) + blocks * a).astype(np.uint8)) for a in (0.0, 0.3, 0.6, 1.0)]
    assert found == sorted(found)
    assert found[0] < 0.15
    assert found[3] > 2


def test_woven_fields_are_combed_and_fine_lines_are_not():
    frames = pan(6.0, 2)[..., 0]
    woven = frames[0].copy()
    woven[1::2] = frames[1][1::2]
    assert combed(woven)
    assert not combed(frames[0])
    assert not combed(np.random.default_rng(0).normal(128, 6, (H, W)).clip(0, 255).astype(np.uint8))


def test_letters_have_an_area():
    image = texture(5, (H * 2, W * 2), cell=40).mean(-1).astype(np.uint8)
    assert text_area(image) == 0
    lettered = image.copy()
    for k in range(2):
        cv2.putText(lettered, "A LINE OF LETTERS", (60, 200 + 60 * k), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 0, 8)
        cv2.putText(lettered, "A LINE OF LETTERS", (60, 200 + 60 * k), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 255, 2)
    (width, height), _ = cv2.getTextSize("A LINE OF LETTERS", cv2.FONT_HERSHEY_SIMPLEX, 1.1, 2)
    assert text_area(lettered) == pytest.approx(2 * width * height / image.size, rel=0.5)


def test_a_logo_is_what_stands_still_while_the_rest_moves():
    frames = pan(3.0, 72).copy()
    assert measured(frames)["logo_area"] == pytest.approx(0, abs=0.01)
    frames[:, 10:50, 250:310] = 255 - texture(6, (40, 60), cell=8).astype(np.uint8)
    assert measured(frames)["logo_area"] == pytest.approx(40 * 60 / (H * W), rel=0.5)


def test_light():
    gray = np.full((12, H, W, 3), 64, np.uint8)
    gray[:, :, W // 2 :] = 192
    values = measured(gray)
    assert values["exposure"] == pytest.approx(128 / 255, abs=0.01)
    assert values["contrast"] == pytest.approx(64 / 255, abs=0.01)
    assert values["colourfulness"] == pytest.approx(0, abs=0.5)
    assert values["black"] == 0
    assert measured(np.concatenate([gray, np.zeros_like(gray)]))["black"] == pytest.approx(0.5, abs=1e-6)


def test_every_column_is_there_for_one_frame_and_for_tiny_frames():
    for frames in (pan(1.0, 1), np.full((3, 8, 8, 3), 90, np.uint8)):
        values = measured(frames)
        assert set(values) == set(COLUMNS)
        assert ClipRecord(path="a").with_measures(**values).to_json()


def test_forgetting_changes_no_later_clip():
    frames = pan(2.0, 60)
    meters = [Meter(), Meter()]
    for k, frame in enumerate(frames_from_array(frames, FPS)):
        for meter in meters:
            meter.push(frame)
        if k == 40:
            meters[1].forget(30)
    record = ClipRecord(path="a", start=meters[0].time(30), end=frame.end, size=(H, W))
    assert meters[0].summary(record, 30, 60) == meters[1].summary(record, 30, 60)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p10le", "gray", "nv12", "rgb24", "yuyv422"])
def test_luma_of_any_pixel_format(pixels):
    image = np.repeat(np.linspace(40, 200, W).astype(np.uint8)[None, :, None], H, 0).repeat(3, -1)
    raw = next(frames_from_array(image[None], 24)).raw.reformat(format=pixels)
    found = luma_of(raw).astype(float)
    assert found.shape == (H, W)
    assert np.corrcoef(found[5], image[5, :, 0])[0, 1] > 0.999
    assert np.abs(np.diff(found, axis=0)).max() <= 2


def test_an_edge_along_which_the_camera_moves_is_no_logo():
    frames = pan(3.0, 72).copy()
    frames[:, 80:104] = 255
    assert measured(frames)["logo_area"] == pytest.approx(0, abs=0.005)


def test_numbers_of_a_picture_do_not_depend_on_where_it_lies_in_memory():
    image = shot(3, 1, size=(90, 160))[0]
    found = set()
    for offset in range(0, 64, 4):
        room = np.empty(image.size + 128, np.uint8)
        start = -room.ctypes.data % 64 + offset
        moved = room[start : start + image.size].reshape(image.shape)
        moved[:] = image
        gray = np.ascontiguousarray(moved[..., 1])
        numbers = {"blur": picture.blur(gray), "text": picture.text_area(gray), **picture.of_frame(moved, gray)}
        found.add(tuple(numbers.items()))
    assert len(found) == 1
