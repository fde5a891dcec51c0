"""Scene cuts: exact to the frame, gradual ones too; what is no cut; times of variable frame rates; any block size."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.frames import AnalysisFrame, read_frames
from data_pipelines.records import ClipRecord
from data_pipelines.scenes import (
    CutOptions,
    MixDetector,
    Transition,
    cut,
    find,
    merge,
    same_scene,
    shifted_likeness,
)
from tests.data_pipelines.shots import shot
from vdit.errors import ConfigError, VideoError

N = 30
A, B = shot(1, N), shot(2, N)


def thumbs(*parts: np.ndarray) -> np.ndarray:
    size = scenes.THUMB[::-1]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for part in parts for frame in part])


def found(*parts: np.ndarray) -> list[tuple[str, int, int]]:
    return [(t.kind, t.first, t.last) for t in find(thumbs(*parts), 24.0, 0.04)]


def mix(length: int) -> np.ndarray:
    x = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    return np.round(A[:length] * (1 - x) + B[:length] * x).astype(np.uint8)


def test_a_cut_is_exact():
    assert found(A, B, A[:20]) == [("cut", N, N), ("cut", 2 * N, 2 * N)]


def test_a_cut_between_moving_shots():
    assert found(shot(3, N, speed=2.0), shot(4, N, speed=3.0)) == [("cut", N, N)]


@pytest.mark.parametrize("length", [6, 12, 24, 40])
def test_a_dissolve_is_found_to_two_frames(length):
    ((kind, first, last),) = found(A, mix(length) if length <= N else np.repeat(mix(length // 2), 2, 0), B)
    assert kind == "dissolve"
    assert abs(first - N) <= max(2, length // 5)
    assert abs(last - N - length) <= max(2, length // 5)


def test_a_fade_through_black_is_one_transition():
    down = (A[:10] * np.linspace(0.9, 0, 10)[:, None, None, None]).astype(np.uint8)
    up = (B[:10] * np.linspace(0, 0.9, 10)[:, None, None, None]).astype(np.uint8)
    ((kind, first, last),) = found(A, down, up, B)
    assert kind == "fade"
    assert abs(first - N) <= 2
    assert abs(last - N - 20) <= 2


def test_a_wipe_is_found():
    x = np.arange(A.shape[2])
    wipe = np.stack([np.where((x < (k + 1) / 17 * len(x))[None, :, None], B[0], A[0]) for k in range(16)])
    ((kind, first, last),) = found(A, wipe, B)
    assert kind == "wipe"
    assert abs(first - N) <= 4
    assert abs(last - N - 16) <= 4


def test_a_flash_is_no_cut():
    flash = np.full_like(A[:2], 250)
    assert found(A, flash, A) == []
    assert found(A, flash, B) != []  # but it does not hide one


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0, 8.0])
def test_a_pan_is_no_cut(speed):
    assert found(shot(5, 40, speed=speed)) == []


def test_more_light_is_no_cut():
    darker = (A * 0.5).astype(np.uint8)
    assert found(A, darker, A) == []


WIDE = shot(8, 1, size=(90, 400))[0]


def test_what_is_the_same_scene():
    """Other light, however faint the picture; the same things elsewhere. Not another picture."""
    a, b = (part.astype(np.float32)[0] / 255 for part in (thumbs(WIDE[None, :, :160]), thumbs(WIDE[None, :, 60:220])))
    other = thumbs(A)[0].astype(np.float32) / 255
    faint = 0.5 + 0.02 * (a - a.mean()) / a.std()
    assert shifted_likeness(faint, 0.25 + 0.5 * faint) == 0  # too faint to be looked for elsewhere
    assert same_scene(faint, 0.25 + 0.5 * faint)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.5
    assert same_scene(a, b)
    assert same_scene(b, a)
    assert not same_scene(a, other)


def test_a_camera_that_jumps_is_no_cut():
    """It would be one, if what is before and after were not the same scene."""
    here, there = (np.repeat(WIDE[None, :, x : x + 160], 20, 0) for x in (0, 60))
    assert found(here, there) == []
    assert found(here, B) == [("cut", 20, 20)]


def test_a_whip_pan_is_no_cut():
    """Half a picture a frame, blurred by the motion."""
    wide = shot(6, 1, size=(90, 160 * 4))[0]
    places = np.concatenate([np.zeros(15), np.linspace(0, 440, 8), np.full(15, 440)]).astype(int)
    frames = np.stack([wide[:, x : x + 160] for x in places])
    frames[15:22] = cv2.blur(frames[15:22].transpose(1, 2, 0, 3).reshape(90, 160, -1), (31, 1)).reshape(
        90, 160, 7, 3).transpose(2, 0, 1, 3)  # fmt: skip
    assert [kind for kind, *_ in found(frames) if kind == "cut"] == []


def test_repeated_frames_are_no_cuts():
    """A film of 8 frames a second, played at 24."""
    assert found(np.repeat(shot(7, 20, speed=6.0), 3, 0)) == []
    drawings = np.concatenate([shot(seed, 1) for seed in range(20, 40)])  # of which no two are alike
    assert [kind for kind, *_ in found(np.repeat(drawings, 3, 0)) if kind == "cut"] == []


def test_the_block_in_which_frames_come_changes_nothing(monkeypatch):
    parts = thumbs(*(shot(10 + k, 20 + 7 * k) for k in range(12)))

    def run(block: int, context: float) -> list[Transition]:
        monkeypatch.setattr(scenes, "_BLOCK", block)
        monkeypatch.setattr(scenes, "LONGEST_S", context)
        detector, got = MixDetector(), []
        for k, thumb in enumerate(parts):
            got += detector.push(AnalysisFrame(k, Fraction(k, 24), Fraction(k + 1, 24), thumb, None))
        return got + detector.finish()

    whole = run(10_000, 2.6)
    assert [t.first for t in whole] == list(np.cumsum([20 + 7 * k for k in range(11)]))
    assert run(60, 0.4) == whole


def test_times_of_a_variable_rate_are_exact(tmp_path):
    """Frames at odd places of a clock of 1/1000 s; the scene begins when its first frame is shown."""
    times = np.cumsum(np.random.default_rng(0).integers(20, 90, 40))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 160, 90, "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, image in enumerate([*A[:18], *B[:22]]):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = int(times[k]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = str(tmp_path / "a.mkv")
    first, second = cut(ClipRecord(path=path))
    assert second.start == first.end == Fraction(int(times[18] - times[0]), 1000)
    assert next(read_frames(path, start=second.start)).time == second.start
    assert len(list(read_frames(path, start=second.start, end=second.end))) == 22
    with pytest.raises(VideoError, match=r"a\.mkv"):
        list(read_frames(path, start=Fraction(1000)))


def test_close_transitions_become_one():
    times = [Fraction(k, 24) for k in range(100)]
    cuts = [Transition("cut", 50, 50, 1.0), Transition("cut", 52, 52, 3.0), Transition("cut", 60, 60, 1.0)]
    assert [t.first for t in merge(cuts, times.__getitem__, 0.2)] == [52, 60]


def test_one_frame_and_none():
    assert found(A[:1]) == []
    assert MixDetector().finish() == []


@pytest.mark.parametrize("options", [{"method": "magic"}, {"threshold": 0}, {"shortest": -1.0}])
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        CutOptions(**options)


def test_a_thing_that_fills_the_picture_is_no_wipe(monkeypatch):
    """A dark thing grows from several places at once until it covers the picture."""
    rng = np.random.default_rng(3)
    order = cv2.GaussianBlur(rng.normal(0, 1, A.shape[1:3]), (0, 0), 16)
    order = np.argsort(np.argsort(order.ravel())).reshape(order.shape) / order.size
    grown = np.stack([np.where((order < (k + 1) / 17)[..., None], B[0] // 3, A[0]) for k in range(16)])
    parts = A, grown.astype(np.uint8), np.repeat(B[:1] // 3, 20, 0)
    assert "wipe" not in [kind for kind, *_ in found(*parts)]
    monkeypatch.setattr(scenes, "_has_front", lambda *_: True)
    assert "wipe" in [kind for kind, *_ in found(*parts)]  # but for the order, it would be one
