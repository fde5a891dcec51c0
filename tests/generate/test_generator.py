"""The programmatic API: the same videos on one device and on a mesh, seeds, sizes, latents, errors."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vdit
from vdit.errors import CheckpointError, ConfigError, ShapeError, WeightsError
from vdit.generate.generator import noise_of

PROMPTS = ["a red circle moves to the left", "a blue square", "a green cross moves up"]


@pytest.fixture(scope="module")
def generator(tiny_run):
    return vdit.load(tiny_run)


def test_on_a_mesh_of_devices_the_videos_are_those_of_one(tiny_run, tmp_path):
    here = Path(__file__)
    videos = {}
    for devices, fsdp in ((1, 1), (4, 2)):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(here.parents[2]),
        }
        out = tmp_path / f"{devices}.npy"
        command = [sys.executable, str(here.with_name("mesh_run.py")), str(tiny_run), str(out), str(fsdp)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert f"devices {devices} sharded {fsdp > 1} types float32" in done.stdout
        videos[devices] = np.load(out)
    assert videos[1].shape == (3, 5, 32, 32, 3)
    np.testing.assert_allclose(videos[1], videos[4], atol=1e-4)


def test_seeds_and_prompts_decide(generator):
    make = lambda seed, prompts=PROMPTS[:2]: np.asarray(generator(prompts, frames=5, size=(32, 32), seed=seed, steps=1))  # noqa: E731
    first = make(3)
    assert first.shape == (2, 5, 32, 32, 3)
    assert np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, make(3))
    assert np.abs(first - make(4)).max() > 1e-3


def test_each_video_by_its_own_seed_is_the_one_made_alone(generator):
    options = {"frames": 5, "size": (32, 32), "steps": 1}
    noise = noise_of(generator, [3, 8], frames=5, size=(32, 32))
    together = np.asarray(generator(PROMPTS[:2], noise=noise, **options))
    for prompt, seed, video in zip(PROMPTS, (3, 8), together):
        alone = np.asarray(generator([prompt, "up"], seed=seed, **options))[0]
        np.testing.assert_allclose(alone, video, atol=1e-5)
    with pytest.raises(ShapeError, match="use 5 or 9"):
        noise_of(generator, [0], frames=6, size=(32, 32))


def test_latents_there_and_back(generator):
    video = np.random.default_rng(0).uniform(-1, 1, (1, 5, 32, 32, 3)).astype(np.float32)
    latents = generator.vae.encode(video)
    assert latents.shape == (1, *generator.experiment.vae.latent_shape(5, 32, 32))
    np.testing.assert_allclose(latents, generator.vae.encode(video, latent_frames=1), atol=1e-4)
    decoded = generator.vae.decode(latents)
    assert decoded.shape == video.shape
    np.testing.assert_allclose(decoded, generator.vae.decode(latents, latent_frames=1), atol=1e-4)


def test_errors_name_value_rule_and_mend(generator, tmp_path):
    with pytest.raises(ShapeError, match=r"frames=6 .*use 5 or 9"):
        generator(PROMPTS, frames=6)
    with pytest.raises(ShapeError, match=r"height=30 .*use 16 or 32"):
        generator(PROMPTS, frames=5, size=(30, 32))
    with pytest.raises(ShapeError, match=r"add the batch axis"):
        generator.vae.encode(np.zeros((5, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="at least one text"):
        generator([])
    with pytest.raises(ConfigError, match="did you mean 'euler'"):
        generator(PROMPTS, sampler="euler2", frames=5, size=(32, 32))
    with pytest.raises(WeightsError, match="holds no trained model"):
        vdit.load(tmp_path)
    with pytest.raises(CheckpointError, match="holds no trained model"):
        vdit.load(tmp_path / "absent")
