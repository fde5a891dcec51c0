"""What follows from the declaration of a condition: packing, dropping, doubling of frames, its place on a mesh."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from vdit.data import DataConfig, PackItem, RowShape, build_rows
from vdit.data.clips import ClipView
from vdit.data.conditions import clip_conditions, data_conditions, to_latent_grid
from vdit.diffusion import DiffusionConfig
from vdit.dist.mesh import AXES
from vdit.dist.rules import batch_shardings
from vdit.errors import ConfigError, DataError, ShapeError
from vdit.experiment.canvases import CanvasConfig, draw_canvases
from vdit.models import Backbone, Conditioner, DiTConfig, Network
from vdit.models.conditioner import check_values, clips_to_frames

PATCH, STRIDE = (1, 2, 2), 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Of(Conditioner):
    """A condition of any axis, whose null is -1."""

    name: str
    axis: str
    shape: tuple[int, ...]
    dropout: float = 0.1

    def null(self, values):
        return jnp.full_like(values, -1)


CONDITIONS = (
    Of(name="mood", axis="clip", shape=(3,)),
    Of(name="camera", axis="frame", shape=(2 * STRIDE,)),
    Of(name="depth", axis="token", shape=(2,)),
    Of(name="picture", axis="sequence", shape=(5, 6)),
)


def sample(t, h, w, seed):
    """What a source gives of a clip of t, h, w latents."""
    rng = np.random.default_rng(seed)
    shapes = {"mood": (3,), "camera": (1 + (t - 1) * STRIDE, 2), "depth": (t, h, w, 2), "picture": (5, 6)}
    return {"id": "a"} | {name: rng.uniform(1, 2, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def packed():
    """Two clips and padding in one row; and what each of them was told."""
    clips = [(3, 4, 4), (2, 2, 4)]
    samples = [sample(*clip, seed) for seed, clip in enumerate(clips)]
    items = []
    for clip, one in zip(clips, samples):
        grid = tuple(size // p for size, p in zip(clip, PATCH))
        cond = clip_conditions(CONDITIONS, one, grid, PATCH, STRIDE)
        values = np.ones((np.prod(grid), 4), np.float32)
        items.append(PackItem(values=values, grid=grid, text=np.ones(1, np.int32), cond=cond))
    config = DataConfig(max_frames_per_row=8, max_clips_per_row=3, row_tokens=24, max_text_per_row=4)
    row = build_rows([items], RowShape.of(config, CONDITIONS, PATCH))
    return jax.tree.map(jnp.asarray, row), samples, items


def test_each_clip_finds_its_own_in_the_row(packed):
    row, samples, items = packed
    assert row.max_clips == 3
    for number, (one, item) in enumerate(zip(samples, items), 1):
        np.testing.assert_array_equal(row.cond["mood"][0, number - 1], one["mood"])
        np.testing.assert_array_equal(row.cond["picture"][0, number - 1], one["picture"])
        np.testing.assert_array_equal(row.cond["depth"][0][row.segment_ids[0] == number], item.cond["depth"])
        frames = row.cond["camera"][0][row.frame_segment_ids[0] == number]
        np.testing.assert_array_equal(frames[1:].reshape(-1, 2), one["camera"][1:])
    assert not np.any(row.cond["depth"][0][row.segment_ids[0] == 0])


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.axis)
def test_a_dropped_condition_is_null_in_its_clips_and_no_other_value_moves(packed, condition):
    row = packed[0]
    dropped = condition.drop(row, jnp.array([[False, True, False, False]]))
    owner = {"frame": row.frame_segment_ids, "token": row.segment_ids}.get(condition.axis, jnp.array([[1, 2, 3]]))
    before, after = (np.asarray(one.cond[condition.name])[0] for one in (row, dropped))
    mine = np.asarray(owner[0] == 1)
    assert (after[mine] == -1).all()
    np.testing.assert_array_equal(after[~mine], before[~mine])
    assert dropped.cond_axes == row.cond_axes
    other = row.with_cond("mood", row.cond["mood"], "clip")
    assert all(dropped.cond[name] is other.cond[name] for name in row.cond if name not in (condition.name, "mood"))


def test_masked_canvases_tell_both_levels_of_a_frame_the_same(packed):
    row = packed[0]
    config = CanvasConfig(none=0.0, mask=1.0, context_dropout=0.0)
    drawn = draw_canvases(jax.random.key(0), row, config, DiffusionConfig()).row
    np.testing.assert_array_equal(drawn.cond["camera"], np.concatenate([row.cond["camera"]] * 2, axis=1))
    for name in ("mood", "depth", "picture"):
        np.testing.assert_array_equal(drawn.cond[name], row.cond[name])


def test_only_values_of_tokens_are_shared_out_with_them(packed):
    mesh = Mesh(np.array(jax.devices() * 2)[:2].reshape(1, 1, 2, 1), AXES)
    places = batch_shardings(mesh, {"row": packed[0]})["row"]
    shapes = {name: place.shard_shape(packed[0].cond[name].shape) for name, place in places.cond.items()}
    assert shapes["depth"] == (1, 12, 8)
    assert all(shapes[name] == packed[0].cond[name].shape for name in ("mood", "camera", "picture"))


def test_values_that_do_not_fit_are_refused_by_name():
    for change in ({"camera": np.zeros((3, 2))}, {"depth": np.zeros((3, 4, 5, 2))}, {"mood": np.zeros(4)}):
        with pytest.raises(DataError, match=next(iter(change))):
            clip_conditions(CONDITIONS, sample(3, 4, 4, 0) | change, (3, 2, 2), PATCH, STRIDE)
    with pytest.raises(DataError, match="mood"):
        clip_conditions(CONDITIONS, {"id": "a"}, (3, 2, 2), PATCH, STRIDE)
    with pytest.raises(ShapeError, match="depth"):
        check_values(CONDITIONS[2], np.zeros((1, 24, 7)), PATCH)
    check_values(CONDITIONS[3], np.zeros((1, 1, 9, 6)), PATCH)  # a sequence may have another length


def test_conditions_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="mood"):
        Network(text=None, backbone=DiTConfig(text="none"), conditions=(CONDITIONS[0], CONDITIONS[0]))
    named = [one.name for one in data_conditions(DataConfig(actions=2), CONDITIONS, patch=PATCH, stride=STRIDE)]
    assert named == ["label", "action", "mood", "camera", "depth", "picture"]


def test_a_backbone_without_caches_says_so():
    class Plain(Backbone):
        name: ClassVar[str] = "plain"

    with pytest.raises(ConfigError, match="Plain"):
        Plain().empty_cache(1, 1)
    with pytest.raises(ConfigError, match="Plain"):
        Plain().empty_residuals(1, 1)
    assert not Plain().caches_frames
    assert Plain().conditions == ()


def test_frames_of_padding_are_told_nothing():
    frames = clips_to_frames(jnp.ones((1, 2, 3)), jnp.array([[1, 2, 2, 0]]))
    np.testing.assert_array_equal(frames[0, :, 0], [1, 1, 1, 0])


def test_latents_get_the_means_of_what_they_stand_for():
    frames = np.arange(9.0)[:, None, None, None] * np.ones((9, 4, 4, 1))
    np.testing.assert_array_equal(to_latent_grid(frames, 4, 2, 2)[:, 0, 0, 0], [0, 2.5, 6.5])
    with pytest.raises(ShapeError, match=r"\(8, 4, 4, 1\)"):
        to_latent_grid(frames[:8], 4, 2, 2)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_cuts_other_pictures_like_the_clip(mirrored):
    view = ClipView(id="a", times=np.zeros(1), resize=(4, 8), offset=(1, 2), size=(2, 4), mirrored=mirrored)
    whole = np.arange(32).reshape(1, 4, 8, 1)
    wanted = whole[0, 1:3, 2:6, 0]
    np.testing.assert_array_equal(view.apply(whole)[0, ..., 0], wanted[:, ::-1] if mirrored else wanted)
    large = whole.repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(view.apply(large), view.apply(whole))
