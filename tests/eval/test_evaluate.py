"""Sets of videos measured: figures, intervals, curves, notes; what each metric sees and what it does not."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

from vdit import worlds
from vdit.errors import ConfigError, ShapeError, VideoError
from vdit.eval import report
from vdit.eval.evaluate import Case, Metric, VideoSet, evaluate, metrics_of
from vdit.eval.metrics import frame_ms_ssim
from vdit.eval.motion import Flow, motion_smoothness, moving_speed, warp_error
from vdit.registry import register


@register("metric", "test_brightness")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness(Metric):
    """A metric from outside: the mean of each frame."""

    def measure(self, case):
        return {"brightness": case.made.mean((1, 2, 3))}


def grey(level, frames=4):
    return np.full((frames, 16, 16, 3), level, np.uint8)


def video_set(name, *cases):
    return VideoSet(name=name, cases=[lambda case=case: case for case in cases])


@pytest.fixture(scope="module")
def scene():
    return worlds.make("moving", size=(64, 64), frames=9)[3]


def test_a_metric_from_outside_gives_means_curves_and_intervals():
    ramp = np.concatenate([grey(10, 2), grey(30, 2)])
    cases = [Case(name="a", video=ramp, fps=8), Case(name="b", video=ramp + np.uint8(20), fps=8, given=2)]
    found = evaluate(video_set("mine", *cases), metrics_of(["test_brightness"], []))
    figure = found.figure("brightness")
    assert figure.by_video == {"a": 20.0, "b": 50.0}  # of b only what was made counts
    assert figure.interval.value == 35.0
    assert (figure.interval.low, figure.interval.high) == (20.0, 50.0)
    np.testing.assert_allclose(figure.curve, [(10 + 50) / 2, (10 + 50) / 2, 30, 30])


def test_what_cannot_be_read_or_measured_is_named_and_the_rest_is_measured():
    def broken():
        raise VideoError("c.mp4: is cut short")

    cases = VideoSet(name="x", cases=[lambda: Case(name="a", video=grey(1), fps=8), broken])
    found = evaluate(cases, metrics_of(["flicker", "sharpness", "ms_ssim"], ["truth"]))
    assert found.figure("flicker").interval.n == 1
    assert "c.mp4" in next(iter(found.skipped.values()))
    assert "truth" in found.notes["ms_ssim"]
    with pytest.raises(ConfigError, match=r"c\.mp4"):
        evaluate(VideoSet(name="x", cases=[broken]), [])


def test_a_metric_that_lacks_what_it_needs_is_refused_before_anything_is_measured():
    with pytest.raises(ConfigError, match=r"'psnr'.*--real"):
        metrics_of(["psnr"], ["real"])
    with pytest.raises(ConfigError, match="flicker"):
        metrics_of(["flickr"], [])
    assert not any("truth" in metric.needs for metric in metrics_of(None, ["real"]))


@pytest.mark.parametrize(
    "change",
    [{"video": grey(1).astype(np.float32)}, {"truth": grey(1, 3)}, {"given": 4}, {"video": grey(1)[..., :2]}],
    ids=["float", "shorter truth", "nothing made", "two channels"],
)
def test_a_case_that_makes_no_sense_is_refused(change):
    with pytest.raises(ShapeError, match="dog"):
        Case(**{"name": "dog", "video": grey(1), "fps": 8} | change)


def test_metrics_see_noise_blur_and_jumps_and_only_those(scene):
    rng = np.random.default_rng(0)
    noisy = np.clip(scene.video + rng.normal(0, 12, scene.video.shape), 0, 255).astype(np.uint8)
    blurred = np.stack([ndimage.gaussian_filter(frame, (1.5, 1.5, 0)) for frame in scene.video])
    shuffled = scene.video[[0, 5, 2, 7, 4, 1, 6, 3, 8]]
    names = ["psnr", "ssim", "flicker", "sharpness", "edge_sharpness", "warp_error", "motion_smoothness",
             "dynamic_degree"]  # fmt: skip
    figures = {}
    for name, video in {"true": scene.video, "noisy": noisy, "blurred": blurred, "shuffled": shuffled,
                        "still": scene.video[[0] * 9]}.items():  # fmt: skip
        case = Case(name="v", video=video, fps=scene.fps, truth=scene.video)
        found = evaluate(video_set(name, case), metrics_of(names, ["truth"]))
        figures[name] = {figure.name: figure.interval.value for figure in found.figures}
    true = figures["true"]
    assert true["psnr"] == 100
    assert true["ssim"] == pytest.approx(1)
    for worse in ("noisy", "blurred", "shuffled", "still"):
        assert figures[worse]["psnr"] < 70
        assert figures[worse]["ssim"] < 0.999
    assert figures["noisy"]["flicker"] > 3 * true["flicker"]
    assert figures["blurred"]["sharpness"] < 0.7 * true["sharpness"] < 0.7 * figures["noisy"]["sharpness"]
    assert figures["blurred"]["edge_sharpness"] < 0.7 * true["edge_sharpness"]
    assert figures["shuffled"]["sharpness"] == pytest.approx(true["sharpness"], rel=1e-6)
    assert figures["shuffled"]["motion_smoothness"] < true["motion_smoothness"] - 0.003
    assert min(figures["noisy"]["warp_error"], figures["shuffled"]["warp_error"]) > 2 * true["warp_error"]
    assert (figures["still"]["speed"], figures["still"]["dynamic"], figures["still"]["warp_error"]) == (0, 0, 0)
    assert true["dynamic"] == 1


def test_speed_is_that_of_the_scene_and_steady_motion_is_smooth(scene):
    flow = Flow.of(scene.video)
    speed = np.linalg.norm(scene.meta["objects"][0]["velocity"][0]) / scene.fps
    assert moving_speed(flow).mean() == pytest.approx(speed, rel=0.25)
    assert (motion_smoothness(flow) > 0.99).all()
    assert warp_error(flow).max() < 0.001
    with pytest.raises(ShapeError):
        Flow.of(scene.video[:1])


def test_ms_ssim_is_1_for_equal_frames_and_falls_with_blur_and_needs_room():
    rng = np.random.default_rng(0)
    frame = ndimage.gaussian_filter(rng.uniform(0, 255, (176, 180, 3)), (1, 1, 0)).astype(np.uint8)[None]
    blurred = [ndimage.gaussian_filter(frame, (0, s, s, 0)) for s in (1, 3)]
    scores = [frame_ms_ssim(frame, other)[0] for other in (frame, *blurred)]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2]
    with pytest.raises(ShapeError, match="176"):
        frame_ms_ssim(frame[:, :175], frame[:, :175])


def test_sets_are_compared_on_the_videos_that_both_have():
    first = video_set("a", *(Case(name=str(i), video=grey(40 * i), fps=8) for i in range(4)))
    second = video_set("b", *(Case(name=str(i), video=grey(40 * i + 2), fps=8) for i in (1, 2, 3, 4)))
    metrics = metrics_of(["test_brightness"], [])
    found = [evaluate(one, metrics) for one in (first, second)]
    gap = report.differences(found)["b"]["brightness"]
    assert (gap.value, gap.low, gap.high, gap.n) == (2.0, 2.0, 2.0, 3)
    assert found[0].figure("brightness").interval.high > found[1].figure("brightness").interval.low


def test_the_report_is_strict_json_and_a_page_with_every_set(scene):
    case = Case(name="v", video=scene.video, fps=8, caption="a <b>", truth=scene.video)
    found = [evaluate(video_set(name, case), metrics_of(["psnr", "flicker"], ["truth"])) for name in ("one", "two")]
    data = json.loads(json.dumps(report.to_json(found, {"command": "x"}), allow_nan=False))
    assert [one["name"] for one in data["sets"]] == ["one", "two"]
    assert len(data["sets"][0]["figures"]["psnr"]["curve"]) == 9
    page = report.page(found, [report.side_by_side({"one": case, "two": case})], title="t", about={"x": 1}, fps=8)
    text = page.html()
    assert text.count("video/mp4;base64") == 3  # the truth once
    assert "a &lt;b&gt;" in text
    headers, rows = report.table(found)
    assert headers == ["figure", "one", "two"]
    assert {row[0].split()[0] for row in rows} == {"psnr", "flicker"}
