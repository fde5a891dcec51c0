import jax.numpy as jnp
import numpy as np
import pytest

from vdit.data.patches import grid_position, patchify, token_grid, unpatchify
from vdit.errors import ShapeError


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 4)])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_unpatchify_is_the_inverse(patch, lead, xp):
    latent = np.random.default_rng(0).normal(size=(*lead, 4, 6, 8, 3)).astype(np.float32)
    grid = token_grid(latent.shape, patch)
    values = patchify(xp.asarray(latent), patch)
    assert values.shape == (*lead, np.prod(grid), 3 * np.prod(patch))
    np.testing.assert_array_equal(unpatchify(values, grid, patch), latent)


def test_order_is_t_h_w_outside_and_pt_ph_pw_c_inside():
    t, h, w, c = np.indices((2, 4, 6, 3))
    patch = (2, 2, 3)
    values = patchify(t * 1000 + h * 100 + w * 10 + c, patch)
    for n, (gt, gh, gw) in enumerate(grid_position((1, 2, 2))):
        expected = [(gt * 2 + pt) * 1000 + (gh * 2 + ph) * 100 + (gw * 3 + pw) * 10 + ch
                    for pt in range(2) for ph in range(2) for pw in range(3) for ch in range(3)]
        assert values[n].tolist() == expected


def test_a_size_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ShapeError, match="multiples of the patch"):
        patchify(np.zeros((1, 3, 4, 2)), (1, 2, 2))
    with pytest.raises(ShapeError, match="do not fill a grid"):
        unpatchify(np.zeros((5, 8)), (1, 2, 2), (1, 2, 2))
