"""Animate, extend, loop, connect: what was given comes back bit for bit at its place, whatever the lengths."""

import dataclasses

import jax
import numpy as np
import pytest

import vdit
from tests import tiny
from vdit.errors import ConfigError, ShapeError
from vdit.generate import Generator
from vdit.generate.generator import grouping_of
from vdit.models.vision import CLIPVisionConfig, clip_pixels
from vdit.pixels import Clip
from vdit.sampling.programs import Reference

SHAPES = [{"stride": 1}, {"stride": 2}, {"stride": 4}, {"stride": 2, "patch_frames": 2, "window": 15}]


def frames(count, seed=0, size=tiny.SIZE):
    """uint8 [count h w 3]"""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def as_bytes(video):
    return np.round((video + 1) * 127.5).astype(np.uint8)


def noise(**options):
    return tiny.Noise(tiny.experiment(**options))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has", [4, 7, 40])
def test_any_extension_has_the_length_that_was_asked_for_and_holds_the_video(shape, has):
    generator, video = noise(**shape), frames(has)
    for before, after in [(0, 1), (0, 20), (1, 0), (20, 0), (3, 5), (0, 53)]:
        generator.asked.clear()
        longer = vdit.extend(generator, "a", video, before=before, after=after, seed=3)
        assert longer.shape == (1, before + has + after, *tiny.SIZE, 3)
        assert longer.dtype == np.float32
        np.testing.assert_array_equal(as_bytes(longer[0, before : before + has]), video)
        seeds = [call["seed"] for call in generator.asked]
        assert seeds[0] == 3
        assert len(set(seeds)) == len(seeds)
        assert all(call["frames"] <= 17 for call in generator.asked)


def test_each_window_begins_with_what_the_one_before_made():
    generator = noise()
    longer = vdit.extend(generator, "a", frames(9), after=30, context=5)
    at = 9
    for call in generator.asked:
        given = call["given"]
        np.testing.assert_array_equal(given.video[0], longer[0, at - 5 : at])
        at += call["frames"] - 5
    generator.asked.clear()
    longer = vdit.extend(generator, "a", frames(9), before=30, context=4)
    at = 30
    for call in generator.asked:
        np.testing.assert_array_equal(call["given"].video[0, -4:], longer[0, at : at + 4])
        at -= call["frames"] - 4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has", [(8, 9), (40, 8)])
def test_any_passage_lies_between_both_videos(shape, has):
    generator = noise(**shape)
    first, second = frames(has[0]), frames(has[1], seed=1)
    step = grouping_of(generator).step
    for length in (None, step, 2 * step, 3 * step, 12 * step):
        generator.asked.clear()
        whole = vdit.connect(generator, "a", first, second, frames=length)[0]
        made = len(whole) - sum(has)
        assert made > 0 if length is None else made == length
        np.testing.assert_array_equal(as_bytes(whole[: has[0]]), first)
        np.testing.assert_array_equal(as_bytes(whole[-has[1] :]), second)
        given, made_last = generator.asked[-1]["given"], generator.asked[-1]["frames"]
        known = given.level[0, :, 0, 0] == 0
        before, after = known.argmin(), known[::-1].argmin()
        np.testing.assert_array_equal(given.video[0, -after:], whole[-has[1] :][:after])
        end = len(whole) - has[1] - (made_last - before - after)
        np.testing.assert_array_equal(given.video[0, :before], whole[end - before : end])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has", [8, 40])
def test_a_loop_is_the_video_and_a_way_back(shape, has):
    generator, video = noise(**shape), frames(has)
    step = grouping_of(generator).step
    for passage in (None, step, 10 * step):
        whole = vdit.loop(generator, "a", video, passage=passage)[0]
        np.testing.assert_array_equal(as_bytes(whole[:has]), video)
        assert passage is None or len(whole) == has + passage
        given = generator.asked[-1]["given"]
        after = int((given.level[0, :, 0, 0] == 0)[::-1].argmin())
        np.testing.assert_array_equal(as_bytes(given.video[0, -after:]), video[:after])


def test_a_loop_of_a_prompt_closes_what_it_made_of_it():
    generator = noise()
    whole = vdit.loop(generator, ["a", "b"], frames=30, passage=8)
    assert whole.shape == (2, 38, *tiny.SIZE, 3)
    first, *_, last = generator.asked
    assert first["given"] is None
    np.testing.assert_array_equal(whole[:, :17], generator(["a", "b"], frames=17, seed=0))
    np.testing.assert_array_equal(last["given"].video[:, -4:], whole[:, :4])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_blend_is_shorter_than_both_and_holds_what_is_outside_it(shape):
    generator = noise(**shape)
    step = grouping_of(generator).step
    first, second = frames(20), frames(16, seed=1)
    whole = vdit.connect(generator, "a", first, second, frames=step, blend=True, strength=0.7)[0]
    assert len(whole) == 36 - step
    np.testing.assert_array_equal(as_bytes(whole[: 20 - step]), first[:-step])
    np.testing.assert_array_equal(as_bytes(whole[20:]), second[step:])
    assert generator.asked[0]["given"].level.max() <= np.float32(0.7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_are_frames_at_their_times_and_only_there(shape):
    generator = noise(**shape)
    images = [frames(1)[0], frames(1, seed=1, size=(20, 30))[0]]
    for length, times in [(17, (0, 9)), (12, (11, 3)), (40, (0, 13)), (1, (0,))]:
        generator.asked.clear()
        video = vdit.animate(generator, "a", images[: len(times)], times=times, frames=length)[0]
        assert len(video) == length
        np.testing.assert_array_equal(as_bytes(video[times[0]]), images[0])
        given = generator.asked[0]["given"]
        for frame in range(min(len(video), given.video.shape[1])):
            same = (video[frame] == given.video[0, frame]).all()
            assert same == (frame in times)


def test_videos_may_be_floats_and_clips_and_each_prompt_has_its_own():
    generator, video = noise(), frames(9)
    clip = Clip(frames=video, times=np.arange(9) / 8, fps=8.0)
    floats = np.float32(video) / np.float32(127.5) - 1
    wanted = vdit.extend(generator, ["a", "b"], video, after=20, before=2)
    assert wanted.shape == (2, 31, *tiny.SIZE, 3)
    assert (wanted[0, -1] != wanted[1, -1]).any()
    for same in (clip, floats):
        np.testing.assert_array_equal(vdit.extend(generator, ["a", "b"], same, after=20, before=2), wanted)


@pytest.mark.filterwarnings("error")
def test_a_clip_at_another_rate_than_the_models_is_warned_of():
    generator, video = noise(), frames(9)
    clip = lambda fps: Clip(frames=video, times=np.arange(9) / fps, fps=fps)  # noqa: E731
    vdit.extend(generator, "a", clip(8.01), after=4)
    for call in (
        lambda video: vdit.extend(generator, "a", video, after=4), lambda video: vdit.loop(generator, "a", video),
        lambda video: vdit.connect(generator, "a", clip(8.0), video),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match=r"29\.97 frames a second, the model makes 8"):
            call(clip(29.97))


@pytest.fixture(scope="module")
def generator():
    return tiny.generator(window=9)


def test_what_is_given_is_all_that_counts_of_it(generator):
    """The model sees the given frames; what stands in the place of others leaves no trace in what it makes."""
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 9, *tiny.SIZE, 3)).astype(np.float32)
    level = np.float32([1, 0, 0, 0, 0, 1, 1, 1, 1])[None, :, None, None]
    make = lambda video: np.asarray(generator("a", given=Reference(video=video, level=level), frames=9))  # noqa: E731
    other, unknown = video.copy(), video.copy()
    unknown[:, 5:] = rng.uniform(-1, 1, unknown[:, 5:].shape)
    unknown[:, 0] = rng.uniform(-1, 1, unknown[:, 0].shape)
    other[:, 3] = -other[:, 3]
    first = make(video)
    np.testing.assert_array_equal(make(unknown), first)
    assert np.abs(make(other) - first)[:, 5:].max() > 1e-3


def test_a_model_makes_all_of_them(generator):
    """The same shapes, so that little compiles: known frames at the ends, and between or beyond them what is made."""
    video = frames(8)
    longer = vdit.extend(generator, "a", video, after=5, context=1, seed=1)
    assert longer.shape == (1, 13, *tiny.SIZE, 3)
    np.testing.assert_array_equal(longer, vdit.extend(generator, "a", video, after=5, context=1, seed=1))
    assert np.isfinite(longer).all()
    assert (longer[:, 8:] != vdit.extend(generator, "a", video, after=5, context=1, seed=2)[:, 8:]).any()
    earlier = vdit.extend(generator, "a", video, before=5, context=4)
    np.testing.assert_array_equal(as_bytes(earlier[0, 5:]), video)
    looped = vdit.loop(generator, "a", video, passage=4)
    np.testing.assert_array_equal(as_bytes(looped[0, :8]), video)
    assert looped.shape == (1, 12, *tiny.SIZE, 3)
    blended = vdit.connect(generator, "a", video, video[::-1], frames=4, blend=True)
    np.testing.assert_array_equal(as_bytes(blended[0, :4]), video[:4])
    assert blended.shape == (1, 12, *tiny.SIZE, 3)


def test_a_model_that_slides_makes_long_videos_of_latents_alone(monkeypatch):
    """After the known frames nothing goes through pixels; the first windows are those of any longer video."""
    generator = tiny.generator(window=9, slides=True)
    monkeypatch.setattr(Generator, "__call__", None)
    video = frames(11)
    longer = vdit.extend(generator, ["a", "b"], video, after=14, context=5)
    assert longer.shape == (2, 25, *tiny.SIZE, 3)
    np.testing.assert_array_equal(as_bytes(longer[0, :11]), video)
    np.testing.assert_array_equal(longer[0, :11], longer[1, :11])
    assert (longer[0, 11:] != longer[1, 11:]).any()
    assert np.isfinite(longer).all()
    further = vdit.extend(generator, ["a", "b"], video, after=18, context=5)
    np.testing.assert_array_equal(further[:, :23], longer[:, :23])
    for frame, seen in ((0, False), (8, True)):  # of the last five
        other = video.copy()
        other[frame] = 255 - other[frame]
        made = vdit.extend(generator, ["a", "b"], other, after=14, context=5)
        assert (np.abs(made - longer)[:, 11:].max() > 1e-3) == seen


def test_what_cannot_be_made_is_told():
    generator, video = noise(), frames(9)
    small = frames(9, size=(16, 24))
    blend = lambda video, count: vdit.connect(generator, "a", video, video, frames=count, blend=True)  # noqa: E731
    for named, call in [
        ("before=-1: frames to be made, give 0 or more", lambda: vdit.extend(generator, "a", video, before=-1)),
        ("nothing is to be made", lambda: vdit.extend(generator, "a", video)),
        ("3 frames is too short to be continued: give 4", lambda: vdit.extend(generator, "a", video[:3], before=4)),
        (r"video of shape \(0, 16, 16, 3\)", lambda: vdit.extend(generator, "a", video[:0], after=4)),
        ("must be uint8, or float in", lambda: vdit.extend(generator, "a", np.float32(video), after=4)),
        ("window=1 holds no known frames and new ones", lambda: vdit.extend(generator, "a", video, after=4, window=1)),
        ("passage=9 must be a multiple of 4.*use 8 or 12", lambda: vdit.loop(generator, "a", video, passage=9)),
        ("window=5 holds no passage .*give 9", lambda: vdit.loop(generator, "a", video, passage=4, window=5)),
        ("leave them out where one is given", lambda: vdit.loop(generator, "a", video, frames=9)),
        ("frames=0: give 1 or more", lambda: vdit.loop(generator, "a", frames=0)),
        ("videos of 16x16 and 16x24", lambda: vdit.connect(generator, "a", video, small)),
        ("frames=-4 must be a multiple of 4", lambda: vdit.connect(generator, "a", video, video, frames=-4)),
        ("3 frames is too short after", lambda: vdit.connect(generator, "a", video, video[:3])),
        ("first has 9 frames, give a video of 13", lambda: blend(video, 12)),
        ("at most 12", lambda: blend(frames(40), 20)),
        ("for 2 times: give one", lambda: vdit.animate(generator, "a", video[0], times=(0, 8))),
        ("0 images", lambda: vdit.animate(generator, "a", [], times=())),
        ("time 9 is not in a video of 9", lambda: vdit.animate(generator, "a", video[0], times=(9,), frames=9)),
        ("time 17 is not in a video of 17", lambda: vdit.animate(generator, "a", video[0], times=(17,), frames=40)),
    ]:  # fmt: skip
        with pytest.raises((ShapeError, ConfigError), match=named):
            call()
    assert generator.asked == []


@pytest.fixture
def by_channels():
    """A model that is told what is given by further channels, and sees the first frame by an image encoder."""
    config = tiny.experiment()
    dit = dataclasses.replace(config.backbone, condition_channels=8, image_width=32)
    vision = CLIPVisionConfig(image_size=28, width=32, layers=2, heads=2, mlp=32)
    return tiny.Noise(dataclasses.replace(config, backbone=dit, vision=vision))


def test_an_image_is_given_as_the_generator_takes_one(by_channels):
    """As models were compared with their reference; the encoder cuts the picture in its own way."""
    picture = frames(1, size=(40, 64))[0]
    like = Generator(experiment=by_channels.experiment, params=None, vae=None, tokenizer=None, mesh=None)
    vdit.animate(by_channels, "a", picture, frames=17)
    jax.tree.map(np.testing.assert_array_equal, by_channels.asked[0]["given"], like._first_frame(picture, tiny.SIZE, 1))
    pictures = [frames(1, seed=1)[0], picture]
    vdit.animate(by_channels, "a", pictures, times=(15, 0), frames=17)
    given = by_channels.asked[1]["given"]
    np.testing.assert_array_equal(given.pixels, by_channels.asked[0]["given"].pixels)
    np.testing.assert_array_equal(np.flatnonzero(given.known[0, :, 0, 0]), [0, 15])  # told of single frames


def test_the_image_encoder_sees_the_first_frame_that_is_given(by_channels):
    video = frames(9)
    vdit.extend(by_channels, "a", video, before=9, after=8, context=4)
    (before, after), vision = by_channels.asked, by_channels.experiment.vision
    np.testing.assert_array_equal(after["given"].pixels[0], clip_pixels(video[-1], vision))
    np.testing.assert_array_equal(before["given"].pixels[0], clip_pixels(video[0], vision))


def test_a_model_told_by_channels_cannot_blend(by_channels):
    with pytest.raises(ConfigError, match="without blend"):
        vdit.connect(by_channels, "a", frames(9), frames(9), frames=4, blend=True)


def test_a_model_of_actions_is_told_that_nothing_is_done():
    config = tiny.experiment(stride=2, patch_frames=2, window=15)
    data, dit = dataclasses.replace(config.data, actions=3), dataclasses.replace(config.backbone, action_width=12)
    generator = tiny.Noise(dataclasses.replace(config, data=data, backbone=dit))
    vdit.extend(generator, "a", frames(9), after=8)
    assert generator.asked[0]["frames"] == 15
    assert not generator.asked[0]["given"].cond  # the network takes that for nothing done


@pytest.mark.parametrize(("level", "rows"), [(None, 1), (0.5, 1), (1.0, 1), (0.0, 2)])
def test_guidance_by_context_costs_a_row_only_where_something_is_known(generator, monkeypatch, level, rows):
    asked = []
    monkeypatch.setattr("vdit.generate.generator.sample", lambda task, *_: asked.append(task.method.rows))
    given = None
    if level is not None:
        levels = np.full((1, 1, 1, 1), level, np.float32)
        given = Reference(video=np.zeros((1, 1, *tiny.SIZE, 3), np.float32), level=levels)
    generator("a", given=given, size=tiny.SIZE, guidance=1.0, context_guidance=2.0)
    assert asked == [rows]
