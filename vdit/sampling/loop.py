"""Loop: a video whose last frame is followed by its first, as if time were a circle.

The circle is closed by a passage: the canvas knows the video's last frames, then holds the frames to be made, then
knows the video's first ones. So the model sees both sides of each place where made and given frames meet, and the
video itself stays as it is.

Rolling the latents of a whole clip along time while it is sampled, so that every place is once in the middle, is no
way to the same end here: the first latent frame of a causal VAE stands for one video frame and the others for several,
and the decoder sees nothing before it. Rolled to another place it is a latent of the wrong kind, and the seam is where
it lands.
"""

from __future__ import annotations

from vdit.sampling.connect import connect
from vdit.sampling.given import Given
from vdit.types import Array


def loop(video: Array, *, frames: int, before: int, after: int) -> Given:
    """Given of a canvas that closes the circle: the last `before` frames of the video, `frames` to be made, and its
    first `after`. video: float32 [b t h w 3] in [-1, 1]; `before` and `after` may overlap in it.
    """
    return connect(video, video, frames=frames, before=before, after=after)
