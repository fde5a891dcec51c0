"""What was given comes back bit for bit, and the made part joins it: no jump of colour, no ghost, flat memory."""

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vdit import worlds
from vdit.errors import ShapeError
from vdit.generate.blend import CHUNK, Blend, Piece, keep_reference, keep_stream

T, H, W = 20, 48, 64
SIGMA = (3.0, 6.0)


def noise(seed=0, frames=T):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (frames, H, W, 3)).astype(np.float32)


def mask(kind, frames=T):
    known = np.zeros((frames, H, W), bool)
    if kind == "head":
        known[:6] = True
    elif kind == "first":
        known[0] = True
    elif kind == "ends":
        known[:4], known[-4:] = True, True
    elif kind == "box":
        known[...] = True
        known[:, 14:34, 20:44] = False
    elif kind == "moving":
        known[...] = True
        for k in range(frames):
            known[k, 10:30, k : k + 20] = False
    return known


KINDS = ("head", "first", "ends", "box", "moving")


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_what_is_known_comes_back_bit_for_bit(kind):
    made, given, known = noise(0), noise(1), mask(kind)
    out = keep_reference(made, given, known)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[known].view(np.uint32), given[known].view(np.uint32))
    assert np.abs(out).max() <= 1
    np.testing.assert_array_equal(keep_reference(made, given, ~mask("none")), given)


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_where_nothing_differs_nothing_changes(kind):
    made, known = noise(0), mask(kind)
    given = np.where(known[..., None], made, noise(1))  # what is given beside the known does not count
    np.testing.assert_array_equal(keep_reference(made, given, known), made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_tint_is_gone_at_the_edge_and_stays_far_away(kind):
    tint, known = np.float32([0.1, -0.06, 0.04]), mask(kind)
    truth = noise(0) * 0.5
    left = keep_reference(truth + tint, truth, known, Blend(sigma=SIGMA)) - truth
    left = left[..., 0] / tint[0]
    assert left.min() > -1e-3
    assert left.max() < 1 + 1e-3
    for axis in range(3):
        left_, known_ = np.moveaxis(left, axis, 0), np.moveaxis(known, axis, 0)
        beside = left_[1:][known_[:-1] & ~known_[1:]]
        assert beside.size == 0 or beside.max() < 0.08
    if kind in ("head", "first"):
        by_time = left.mean((1, 2))[known.sum(0).max() :]
        assert (np.diff(by_time) > -1e-3).all()  # fades with time
        assert by_time[round(3 * SIGMA[0]) :].min() > 0.98
    if kind == "box":
        row = left[10, 24, 20:44]
        assert row[10] > 0.7  # more than one and a half sigmas away
        assert (np.diff(row[:10]) > -1e-3).all()


def decoded(truth):
    """As a poor VAE gives it back: blurred, less contrast, tinted, more on one side than on the other."""
    side = np.linspace(-0.03, 0.03, truth.shape[2], dtype=np.float32)[None, None, :, None]
    blurred = gaussian_filter(truth, (0.3, 0.8, 0.8, 0))
    return np.clip(blurred * 0.92 + np.float32([0.06, -0.05, 0.04]) + side, -1, 1).astype(np.float32)


def jump(video, truth, known):
    """Mean over the edges of known and unknown: by how much the step across differs from the true one."""
    error, steps = video - truth, []
    for axis in range(3):
        error_, known_ = np.moveaxis(error, axis, 0), np.moveaxis(known, axis, 0)
        steps.append(np.abs(error_[1:] - error_[:-1])[known_[1:] != known_[:-1]].ravel())
    return np.concatenate(steps).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("world", "share"), [("moving", 0.45), ("orbit", 0.8)])
def test_the_jump_at_the_edge_falls(world, share, kind):
    """Against the same frames pasted in without a correction. Textures leave the blur, which is not its business."""
    video = worlds.make(world, seed=3).render(0, size=(H, W), frames=T, fps=12).video
    truth, known = np.float32(video) / 127.5 - 1, mask(kind)
    made = decoded(truth)
    pasted, kept = np.where(known[..., None], truth, made), keep_reference(made, truth, known)
    assert jump(kept, truth, known) < share * jump(pasted, truth, known)
    assert np.abs(kept - truth).mean() < np.abs(pasted - truth).mean()


def test_a_moving_object_leaves_no_ghost():
    """The object's own error, large and small in size, goes with the object and is not carried on to where it was."""
    truth = np.zeros((T, H, W, 3), np.float32)
    for k in range(T):
        truth[k, 20:26, 3 * k : 3 * k + 6] = 0.8
    made, known = truth * 0.75, mask("head")
    kept, here = keep_reference(made, truth, known), truth > 0
    assert np.abs(truth - made).max() == pytest.approx(0.2)
    assert np.abs(kept - made)[~known & ~here.any(-1)].max() < 0.04
    error = np.abs(kept - truth)
    assert error[6][here[6]].mean() < 0.1  # half of the error is gone beside the join
    assert error[12][here[12]].mean() == pytest.approx(0.2, abs=0.04)


def test_chunks_of_time_do_not_show():
    frames = 3 * CHUNK + 5
    made, given = noise(0, frames), noise(1, frames)
    known = mask("box", frames)
    known[CHUNK - 3 : CHUNK + 2] = True
    whole = keep_reference(made, given, known, Blend(sigma=SIGMA))
    for cut in (1, 7):  # the same frames, cut into chunks elsewhere
        part = keep_reference(made[cut:], given[cut:], known[cut:], Blend(sigma=SIGMA))
        np.testing.assert_allclose(part[CHUNK:], whole[cut + CHUNK :], atol=2e-6)


def test_given_may_end_before_what_is_made_does():
    made, given, known = noise(0), noise(1), mask("head")
    short = keep_reference(made, given[:8], known[:8])
    np.testing.assert_array_equal(short, keep_reference(made, given, known))
    np.testing.assert_array_equal(short, keep_reference(made, given[:8], known[:8, :1, :1]))


def cut(made, given, known, size):
    """As pieces of `size` frames."""
    parts = (slice(k, k + size) for k in range(0, len(made), size))
    return (Piece(made=made[part], reference=given[part], known=known[part]) for part in parts)


def test_memory_does_not_grow_with_time():
    peaks = []
    for frames in (100, 200):
        made, given, known = noise(0, frames), noise(1, frames), mask("box", frames)
        tracemalloc.start()
        pieces = cut(made, given, known, 8)
        for _ in keep_stream(pieces, Blend(sigma=(2.0, 6.0))):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(("change", "named"), [
    ({"reference": np.zeros((T, H, W + 1, 3), np.float32)}, "must be as made"),
    ({"reference": np.zeros((T + 1, H, W, 3), np.float32), "known": np.zeros((T + 1, 1, 1), bool)}, "of fewer frames"),
    ({"known": np.zeros((T, H, W), np.float32)}, "must be bool"),
    ({"known": np.zeros((T - 1, H, W), bool)}, "must be bool, of"),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(change, named):
    with pytest.raises(ShapeError, match=named):
        keep_reference(**{"made": noise(0), "reference": noise(1), "known": mask("box")} | change)


def test_a_sigma_of_nothing_is_refused():
    with pytest.raises(ShapeError, match="both above 0"):
        Blend(sigma=(0.0, 3.0))


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_a_stream_gives_the_same_frames_as_the_whole(kind):
    frames = 2 * CHUNK + 5
    made, given, known = noise(0, frames), noise(1, frames), mask(kind, frames)
    whole = keep_reference(made, given, known)
    for size in (1, 7, 33):
        np.testing.assert_array_equal(np.concatenate(list(keep_stream(cut(made, given, known, size)))), whole)


def test_frames_come_at_once_where_nothing_is_known_any_more():
    made, given, known = noise(0, 60), noise(1, 60), mask("head", 60)
    later = [Piece(made=made[k : k + 6], more=False) for k in range(6, 60, 6)]
    pieces = [Piece(made=made[:6], reference=given[:6], known=known[:6], more=False), *later]
    came, taken = [], []

    def counted():
        for piece in pieces:
            taken.append(len(piece.made))
            yield piece

    for frames in keep_stream(counted()):
        came.append(frames)
        assert sum(map(len, came)) >= sum(taken) - 6
    np.testing.assert_array_equal(np.concatenate(came), keep_reference(made, given, known))
