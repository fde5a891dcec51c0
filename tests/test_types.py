"""Pixels: every function that takes videos or images refuses what is no pixel, before anything is computed."""

import numpy as np
import pytest

from vdit.errors import ShapeError
from vdit.generate.generator import frames_of
from vdit.generate.images import as_bytes
from vdit.models.vae.config import preset
from vdit.models.vae.video import VideoVAE

VAE = VideoVAE(config=preset("tiny"), params=None, statistics=None)
TAKES = {"encode": lambda video: VAE.encode(video[None]), "encode_chunk": lambda video: VAE.encode_chunk(video[None]),
         "frames_of": frames_of, "as_bytes": as_bytes}  # fmt: skip


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
@pytest.mark.parametrize(("value", "named"), [
    (np.float32("nan"), "NaN"), (np.float32("inf"), "infinite"), (np.float32(255), "255"), (np.float64(-1.5), "-1.5"),
    (np.int64(3), "int64"), (np.True_, "bool"),
])  # fmt: skip
def test_what_is_no_pixel_is_named(take, value, named):
    video = np.zeros((5, 16, 16, 3), value.dtype)
    video[3, 4, 5, 1] = value
    with pytest.raises(ShapeError, match=named):
        take(video)
