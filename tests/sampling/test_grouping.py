"""Lengths that canvases and their known ends may have: those of the VAE's own latents."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.models.dit.config import DiTConfig
from vdit.models.vae.config import VAEConfig
from vdit.sampling.canvas import Grouping


def grouping(stride, patch):
    vae = VAEConfig(patch_frames=stride, temporal_down=(False,) * 3)
    return Grouping.of(vae, DiTConfig(patch=(patch, 2, 2))), vae


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_lengths_are_the_nearest_that_the_model_can_make(stride, patch):
    group, vae = grouping(stride, patch)
    latents = lambda frames: 1 + (frames - 1) / vae.temporal_stride  # noqa: E731
    canvases = [n for n in range(1, 80) if latents(n) % patch == 0]
    steps = [n for n in range(80) if (n / vae.temporal_stride) % patch == 0]
    for n in range(1, 40):
        assert group.head(n) == max((c for c in canvases if c <= n), default=0)
        assert group.canvas(n) == min(c for c in canvases if c >= n)
        assert group.tail(n) == max(s for s in steps if s <= n)
        assert group.passage(n) == min(s for s in steps if s >= n)
    assert {group.head(20) + s for s in steps if s < 20} <= set(canvases)
    assert group.tail(-3) == 0


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_each_frame_is_in_the_group_of_its_latents(stride, patch):
    group, _ = grouping(stride, patch)
    frames = group.canvas(25)
    latent = [0, *np.repeat(np.arange(1, 1 + (frames - 1) // stride), stride)]
    np.testing.assert_array_equal(group.index(frames), np.array(latent) // patch)


@pytest.mark.parametrize(("frames", "near"), [(9, "8 or 12"), (2, "4 or 8"), (0, "4 or 8"), (-5, "4 or 8")])
def test_a_passage_of_another_length_is_told_the_nearest(frames, near):
    group, _ = grouping(4, 1)
    with pytest.raises(ShapeError, match=f"frames={frames} must be a multiple of 4.*use {near}$"):
        group.check_passage("frames", frames)
    group.check_passage("frames", 8)
