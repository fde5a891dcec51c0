"""Videos to latents on disk to rows."""

import numpy as np

from vdit.data import Clips, DataConfig, LatentStore, WorldLibrary, encode_clips


def halve(video):
    """[1 t h w 3] in [-1, 1] -> [1 1+(t-1)/4 h/8 w/8 3], by leaving out."""
    assert video.dtype == np.float32
    assert -1 <= video.min() < video.max() <= 1
    return video[:, ::4, ::8, ::8]


def test_clips_are_encoded_in_order_with_what_is_known_of_them(tmp_path):
    config = DataConfig(areas=(32 * 32, 48 * 48), frames=(1, 9), aspects=(1.0, 1.5), world_count=5, threads=2)
    source, seen = Clips(WorldLibrary.of(config, seed=0), config, seed=3), []
    index = encode_clips(source, halve, tmp_path / "out", samples=8, vae="v",
                         progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]
    assert index["count"] == 8
    store = LatentStore(tmp_path / "out")
    for i in range(8):
        video, stored = source[i], store[i]
        expected = halve(video.pop("video").astype(np.float32)[None] / 127.5 - 1)[0]
        np.testing.assert_allclose(stored.pop("latent"), expected, atol=1e-3)
        assert stored == video
