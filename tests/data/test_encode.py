"""Videos to latents on disk to rows."""

import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest

from vdit.data import Clips, DataConfig, LatentStore, WorldLibrary, encode_clips
from vdit.errors import ConfigError

SCRIPT = Path(__file__).resolve().parents[2] / "data_pipelines" / "encode_latents.py"


def halve(video):
    """uint8 [1 t h w 3] -> [1 1+(t-1)/4 h/8 w/8 3] in [-1, 1], by leaving out."""
    assert video.dtype == np.uint8
    return video[:, ::4, ::8, ::8].astype(np.float32) / 127.5 - 1


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
        expected = halve(video.pop("video")[None])[0]
        np.testing.assert_allclose(stored.pop("latent"), expected, atol=1e-3)
        assert stored == video


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("encode_latents_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(run):
    vae = types.SimpleNamespace(encode=halve, params={"w": np.ones(3)})
    return vae, DataConfig(areas=(32 * 32,), frames=(1, 5), world_count=3, threads=1), 0


def test_the_script_encodes_with_the_runs_settings_changed_as_asked(script, tmp_path, capsys):
    script.main(["run", str(tmp_path / "out"), "--samples=4", "--data.frames=9,"], load=load)
    store = LatentStore(tmp_path / "out")
    assert [store[i]["latent"].shape for i in range(len(store))] == [(3, 4, 4, 3)] * 4
    assert store.index["vae"] == script.digest({"w": np.ones(3)})
    assert "4 latents in 1 file" in capsys.readouterr().out


def test_the_script_refuses_what_it_does_not_know(script, tmp_path):
    with pytest.raises(ConfigError, match=r"'--frames=9' is not understood"):
        script.main(["run", str(tmp_path / "out"), "--frames=9"], load=load)
    with pytest.raises(ConfigError, match="frame"):
        script.main(["run", str(tmp_path / "out"), "--data.framez=9"], load=load)
