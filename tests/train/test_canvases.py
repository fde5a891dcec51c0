"""Random canvases: what is known is what the kind says, at the level it is told, and never all of a clip."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdit.data.packing import PackItem, RowShape, build_rows
from vdit.diffusion import DiffusionConfig, draw_levels
from vdit.errors import ConfigError
from vdit.experiment.canvases import KINDS, CanvasConfig, draw_canvases

LIMITS = RowShape(tokens=260, text=24, frames=40, clips=12)
GRIDS = ((5, 3, 3), (1, 3, 4), (2, 3, 3), (7, 2, 3), (3, 4, 4), (5, 3, 3))


@pytest.fixture(scope="module")
def row():
    """Two rows of clips of many lengths, an image among them, with padding at their ends."""

    def clip(grid):
        return PackItem(values=np.ones((np.prod(grid), 4), np.float32), grid=grid, text=np.array([1], np.int32))

    packed = build_rows([[clip(grid) for grid in GRIDS], [clip(grid) for grid in GRIDS[::-1]]], LIMITS)
    packed = packed.with_cond("action", np.zeros((2, LIMITS.frames, 3), np.float32), "frame")
    return jax.tree.map(jnp.asarray, packed)


def only(kind, **more):
    return CanvasConfig(**{"none": 0.0, kind: 1.0, "context_dropout": 0.0} | more)


def drawn(row, config, count=24):
    """Draws of canvases, as numpy, and the levels of their tokens."""

    @jax.jit
    def draw(key):
        canvas = draw_canvases(key, row, config, DiffusionConfig())
        return canvas.row, canvas.known, jnp.take_along_axis(canvas.levels, canvas.row.frame_index, axis=1)

    for seed in range(count):
        yield jax.tree.map(np.asarray, draw(jax.random.key(seed)))


def clips(row):
    """(row number, mask of its tokens, frames) of each clip."""
    for b in range(len(row.segment_ids)):
        for number in range(1, row.segment_ids[b].max() + 1):
            tokens = row.segment_ids[b] == number
            if tokens.any():
                yield b, tokens, row.position[b, tokens, 0]


def known_frames(known, b, tokens, frames):
    """Which frames of a clip are known; each is known whole or not at all."""
    shares = [known[b, tokens][frames == frame].mean() for frame in range(frames.max() + 1)]
    assert set(shares) <= {0.0, 1.0}
    return [bool(share) for share in shares]


@pytest.mark.parametrize("kind", ["first", "head", "tail", "ends"])
def test_whole_frames_are_known_where_the_kind_says(row, kind):
    lengths = set()
    for new, known, levels in drawn(row, only(kind)):
        assert not known[new.segment_ids == 0].any()
        np.testing.assert_array_equal(levels[known], 0.0)
        assert (levels[(new.segment_ids > 0) & ~known] > 0).all()
        for b, tokens, frames in clips(new):
            given = known_frames(known, b, tokens, frames)
            count = len(given)
            lengths.add((count, sum(given)))
            before = next((i for i, known_one in enumerate(given) if not known_one), count)
            behind = next((i for i, known_one in enumerate(given[::-1]) if not known_one), count)
            if count == 1:
                assert not any(given)
                continue
            assert before + behind == sum(given), "only at the ends"
            assert sum(given) < count, "never all"
            if kind == "first":
                assert (before, behind) == (1, 0)
            elif kind == "tail":
                assert before == 0 < behind
            elif kind == "head" or count == 2:
                assert behind == 0 < before
            else:
                assert before > 0
                assert behind > 0
    if kind != "first":
        assert {(7, n) for n in range(2 if kind == "ends" else 1, 7)} <= lengths, "every length must come"


def test_frames_have_levels_of_their_own(row):
    for new, known, levels in drawn(row, only("frames"), 3):
        assert not known.any()
        for b, tokens, frames in clips(new):
            assert len(np.unique(levels[b, tokens])) == frames.max() + 1
    for new, known, levels in drawn(row, CanvasConfig(), 3):
        assert not known.any()
        assert all(len(np.unique(levels[b, tokens])) == 1 for b, tokens, _ in clips(new))


def test_without_canvases_levels_are_those_of_the_diffusion(row):
    levels = draw_canvases(jax.random.key(3), row, CanvasConfig(), DiffusionConfig()).levels
    key = jax.random.split(jax.random.key(3), 7)[0]
    np.testing.assert_array_equal(levels, draw_levels(key, row.frame_segment_ids, DiffusionConfig()))


def test_masks_are_boxes_within_frames_that_move(row):
    """Known tokens of a frame have an entry of their own at level 0; the region, or what is around it, is a box."""
    shares, moving = [], 0
    for new, known, levels in drawn(row, only("mask")):
        assert new.frame_segment_ids.shape[1] == 2 * LIMITS.frames == new.cond["action"].shape[1]
        np.testing.assert_array_equal(levels[known], 0.0)
        assert (levels[(new.segment_ids > 0) & ~known] > 0).all()
        assert ((new.frame_index >= LIMITS.frames) == known).all()
        assert not known[new.segment_ids == 0].any()
        owner = np.take_along_axis(new.frame_segment_ids, new.frame_index, axis=1)
        np.testing.assert_array_equal(owner[new.segment_ids > 0], new.segment_ids[new.segment_ids > 0])
        for b, tokens, _frames in clips(new):
            grid = tuple(new.position[b, tokens].max(0) + 1)
            region = known[b, tokens].reshape(grid)
            shares.append(region.mean())
            moving += any((region[0] != region[i]).any() for i in range(1, grid[0]))
            assert all(is_box(frame) or is_box(~frame) for frame in region)
    assert 0.3 < np.mean(shares) < 0.7
    assert np.std(shares) > 0.2
    assert 0 < moving < len(shares)


def is_box(region):
    rows, columns = region.any(1), region.any(0)
    return (region == rows[:, None] & columns[None]).all()


def test_windows_lose_their_first_frame(row):
    for new, known, _ in drawn(row, only("head", window=1.0), 8):
        for (b, tokens, frames), grid in zip(clips(new), GRIDS + GRIDS[::-1], strict=True):
            first = 0 if grid[0] < 3 else 1
            assert frames.min() == first
            assert frames.max() == grid[0] - 1
            assert len(frames) == np.prod(grid) * (grid[0] - first) // grid[0]
            if grid[0] >= 3:
                assert known[b, tokens][frames == 1].all()
                assert not known[b, tokens][frames == frames.max()].any()
        kept = (new.segment_ids > 0).sum()
        assert kept == sum(np.prod(g) * (g[0] - (g[0] >= 3)) // g[0] for g in GRIDS) * 2
        assert ((new.frame_segment_ids > 0).sum(1) == sum(g[0] - (g[0] >= 3) for g in GRIDS)).all()


def test_context_is_dropped_and_noised_as_told(row):
    for _, known, levels in drawn(row, only("head", context_dropout=1.0), 4):
        np.testing.assert_array_equal(levels[known], 1.0)
    found = np.concatenate([
        levels[known] for _, known, levels in drawn(row, only("ends", context_noise=0.2, context_dropout=0.25))
    ])  # fmt: skip
    assert 0.1 < (found == 1).mean() < 0.4
    rest = found[found < 1]
    assert 0.3 < (rest == 0).mean() < 0.7
    assert 0.15 < rest.max() <= 0.2


def test_shares_are_kept(row):
    config = CanvasConfig(none=2.0, first=1.0, tail=1.0, context_dropout=0.0)
    found = []
    for new, known, _ in drawn(row, config, 60):
        for b, tokens, frames in clips(new):
            if frames.max() == 6:
                given = known_frames(known, b, tokens, frames)
                found.append("none" if not any(given) else "first" if given[0] else "tail")
    shares = {kind: found.count(kind) / len(found) for kind in ("none", "first", "tail")}
    assert shares == pytest.approx({"none": 0.5, "first": 0.25, "tail": 0.25}, abs=0.12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"canvases.head=-1: a fraction, give 0 or more"):
        CanvasConfig(head=-1)
    with pytest.raises(ConfigError, match="no share above 0"):
        CanvasConfig(none=0.0)
    with pytest.raises(ConfigError, match=r"canvases.window=1.5: a probability"):
        CanvasConfig(window=1.5)
    with pytest.raises(ConfigError, match=r"canvases.context_noise=1.0: a noise level"):
        CanvasConfig(context_noise=1.0)
    assert KINDS[0] == "none"
    assert not CanvasConfig().gives
    assert CanvasConfig(mask=0.1).gives
