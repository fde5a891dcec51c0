"""Beside given frames, made ones show them moved along: a softer step at the join, and nothing where all differs."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vdit import worlds
from vdit.errors import ConfigError
from vdit.generate import blend
from vdit.generate.blend import FRAMES, JOINS, Blend, keep_reference

SIZE, T, GIVEN = (48, 48), 21, 9


@pytest.fixture(scope="module")
def scene():
    video = worlds.make("moving", seed=3).render(0, size=SIZE, frames=T, fps=24).video
    return np.float32(video) / 127.5 - 1


def flickering(truth, seed=0):
    """As a small VAE gives it back: blurred, and wrong at the object in a new way in every group of four frames."""
    blurred = gaussian_filter(truth, (0, 0.8, 0.8, 0))
    random = np.random.default_rng(seed)
    detail = np.abs(truth - gaussian_filter(truth, (0, 2, 2, 0)))
    wrong = gaussian_filter(random.normal(size=(-(-T // 4), *truth.shape[1:])), (0, 1.5, 1.5, 0)) * 4
    return np.float32(np.clip(blurred + 0.3 * detail * np.repeat(wrong, 4, axis=0)[:T], -1, 1))


def met(made, truth, whole):
    """What motion alone does, without colour; the given frames themselves stay as they were made."""
    all_of_it = np.ones((1, 1), bool)
    frames = (
        blend._Frame(out=made[k].copy(), reference=truth[k], known=all_of_it) if whole[k]
        else blend._Frame(out=made[k].copy()) for k in range(len(made))
    )  # fmt: skip
    return np.where(whole[:, None, None, None], made, np.concatenate(list(blend._met(frames))))


def step(video, truth, at):
    return np.abs((video[at + 1] - video[at]) - (truth[at + 1] - truth[at])).mean()


@pytest.mark.parametrize("side", ["after", "before"])
def test_the_step_at_the_join_is_nearer_the_true_one(scene, side):
    whole = np.zeros(T, bool)
    whole[:GIVEN] = True
    at = GIVEN - 1
    if side == "before":
        whole = whole[::-1]
        at = T - GIVEN - 1
    made = flickering(scene)
    out = met(made, scene, whole)
    pasted, joined = (np.where(whole[:, None, None, None], scene, video) for video in (made, out))
    assert step(joined, scene, at) < 0.5 * step(pasted, scene, at)
    assert np.abs(joined - scene).mean() < np.abs(pasted - scene).mean()
    changed = np.abs(out - made).max((1, 2, 3)) > 0
    where = np.arange(T)
    edge = where - (GIVEN - 1) if side == "after" else T - GIVEN - where
    np.testing.assert_array_equal(changed, (edge >= 1) & (edge <= FRAMES))


def test_another_picture_is_left_alone(scene):
    """After a cut, what was made has nothing to do with the given frame."""
    whole = np.arange(T) < GIVEN
    made = flickering(scene)
    made[GIVEN:] = -0.9
    made[GIVEN:, 10:30, 5:20] = (0.9, -0.9, 0.2)
    change = np.abs(met(made, scene, whole) - made)[GIVEN : GIVEN + FRAMES].mean()
    assert change < 0.02 * np.abs(scene - made)[GIVEN : GIVEN + FRAMES].mean()


def test_a_short_passage_turns_from_one_side_to_the_other(scene):
    """Where everything stands still, the weights of both sides add up to one."""
    still = np.repeat(scene[:1], 12, axis=0)
    whole = np.ones(12, bool)
    whole[4:8] = False
    made = gaussian_filter(still, (0, 0.8, 0.8, 0))
    np.testing.assert_allclose(met(made, still, whole)[4:8], still[4:8], atol=1e-4)


def test_without_error_nothing_changes(scene):
    whole = np.arange(T) < GIVEN
    np.testing.assert_array_equal(met(scene, scene, whole), scene)


def test_the_option_has_a_name_and_what_it_is_not_given_for_stays(scene):
    """joins="colour" leaves the step of a flicker at a join, "motion" softens it; given frames stay as they are."""
    made, whole = flickering(scene), np.ones((GIVEN, 1, 1), bool)
    out = {name: keep_reference(made, scene[:GIVEN], whole, Blend(joins=name)) for name in JOINS}
    for video in out.values():
        np.testing.assert_array_equal(video[:GIVEN], scene[:GIVEN])
    assert step(out["motion"], scene, GIVEN - 1) < 0.8 * step(out["colour"], scene, GIVEN - 1)
    np.testing.assert_array_equal(out["motion"], keep_reference(made, scene[:GIVEN], whole))  # the usual one
    np.testing.assert_array_equal(out["motion"][GIVEN + FRAMES :], out["colour"][GIVEN + FRAMES :])
    with pytest.raises(ConfigError, match="joins='cut'"):
        Blend(joins="cut")
