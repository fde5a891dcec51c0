"""Loop: the passage lies between the video's last frame and its first."""

import numpy as np

from vdit.generate.known import loop


def test_a_loops_passage_leads_from_the_last_frame_to_the_first():
    whole = np.random.default_rng(0).uniform(-1, 1, (1, 9, 2, 3, 3)).astype(np.float32)
    given = loop(whole, frames=4, before=9, after=8)
    known = np.flatnonzero(given.level[0, :, 0, 0] == 0)
    np.testing.assert_array_equal(known, [*range(9), *range(13, 21)])
    np.testing.assert_array_equal(given.video[:, 8], whole[:, -1])
    np.testing.assert_array_equal(given.video[:, 13], whole[:, 0])
