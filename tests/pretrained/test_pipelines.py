"""Whole sampling runs beside diffusers' pipelines: the same folder, the same prompts, the same noise."""

from __future__ import annotations

import numpy as np
import pytest

import vdit
from tests.pretrained import public_folders as public
from vdit.errors import ConfigError
from vdit.generate import Generator

PROMPT, NEGATIVE = "a red dog &amp; the  blue cat run", "rain at night"
SIZE, FRAMES, STEPS = (32, 48), 5, 4
RUN = 1e-3  # max abs error of a whole run


def noise(shape, seed: int = 0):
    """[b c t h w] for diffusers, and [b t h w c] for us."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values, values.transpose(0, 2, 3, 4, 1)


def theirs(torch, pipe, start, **options):
    """Latents [b t h w c] and frames [b t h w 3] in [0, 1] of a Wan pipeline."""
    pipe.set_progress_bar_config(disable=True)
    call = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "height": SIZE[0], "width": SIZE[1], "num_frames": FRAMES,
        "num_inference_steps": STEPS, "latents": torch.from_numpy(start),
    } | options  # fmt: skip
    latents = pipe(**call, output_type="latent").frames
    return latents.numpy().transpose(0, 2, 3, 4, 1), pipe(**call, output_type="np").frames


def ours(folder, start, **options):
    generator = folder if isinstance(folder, Generator) else vdit.load(folder)
    call = {"negative": NEGATIVE, "frames": FRAMES, "size": SIZE, "steps": STEPS, "noise": start} | options
    return generator(PROMPT, **call, latents=True), (np.asarray(generator(PROMPT, **call)) + 1) / 2


@pytest.fixture(scope="module")
def wan(torch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    return folder, public.wan(folder)


def test_text_to_video(torch, wan, parity):
    folder, pipe = wan
    start, mine = noise((1, 16, 2, 4, 6))
    latents, frames = theirs(torch, pipe, start, guidance_scale=5.0)
    got_latents, got_frames = ours(folder, mine, guidance=5.0)
    parity("Wan 2.1 pipeline, latents", got_latents, latents, atol=RUN)
    parity("Wan 2.1 pipeline, frames", got_frames, frames, atol=RUN)
    other, _ = ours(folder, noise((1, 16, 2, 4, 6), 1)[1], guidance=5.0)
    assert np.abs(np.asarray(other) - latents).max() > 0.1


def test_two_experts(torch, tmp_path, parity):
    pipe = public.wan_experts(tmp_path)
    start, mine = noise((1, 16, 2, 4, 6))
    latents, _ = theirs(torch, pipe, start, guidance_scale=4.0, guidance_scale_2=3.0)
    got, _ = ours(tmp_path, mine, guidance=4.0, low_guidance=3.0)
    parity("Wan 2.2 A14B pipeline, latents", got, latents, atol=RUN)


@pytest.mark.parametrize("image", [False, True])
def test_one_time_for_each_token(torch, tmp_path, parity, image):
    pipe = public.wan_5b(tmp_path, "WanImageToVideoPipeline" if image else "WanPipeline")
    start, mine = noise((1, 16, 2, 4, 6))
    size = {"height": 64, "width": 96}
    first = first_frame((64, 96))
    given = {"image": to_pil(first)} if image else {}
    latents, frames = theirs(torch, pipe, start, guidance_scale=5.0, **size, **given)
    got_latents, got_frames = ours(tmp_path, mine, size=(64, 96), image=first if image else None)
    name = "Wan 2.2 TI2V-5B pipeline, image" if image else "Wan 2.2 TI2V-5B pipeline, text"
    parity(f"{name}: latents", got_latents, latents, atol=RUN)
    parity(f"{name}: frames", got_frames, frames, atol=RUN)


def test_image_to_video(torch, tmp_path, parity):
    pipe = public.wan_image(tmp_path)
    start, mine = noise((1, 16, 2, 4, 6))
    first = first_frame(SIZE)
    latents, frames = theirs(torch, pipe, start, guidance_scale=5.0, image=to_pil(first))
    generator = vdit.load(tmp_path)
    got_latents, got_frames = ours(generator, mine, image=first)
    parity("Wan 2.1 image-to-video pipeline, latents", got_latents, latents, atol=RUN)
    parity("Wan 2.1 image-to-video pipeline, frames", got_frames, frames, atol=RUN)
    with pytest.raises(ConfigError, match="give an image"):
        generator(PROMPT)


def test_classes(torch, tmp_path, parity):
    pipe = public.dit(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    start, mine = noise((2, 4, 1, 8, 8))
    draws = iter([torch.from_numpy(start[:, :, 0])])
    import diffusers.pipelines.dit.pipeline_dit as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *_, **__: next(draws))
        images = pipe([207, 3], guidance_scale=4.0, num_inference_steps=10, output_type="np").images
    generator = vdit.load(tmp_path)
    got = np.asarray(generator(["thing 207", "3"], steps=10, guidance=4.0, noise=mine))
    parity("DiT pipeline (DDIM), images", (got[:, 0] + 1) / 2, images, atol=RUN)


def first_frame(size):
    return np.random.default_rng(5).integers(0, 256, (*size, 3), np.uint8)


def to_pil(image):
    from PIL import Image

    return Image.fromarray(image)
