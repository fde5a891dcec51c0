"""Edit, inpaint and outpaint with tiny networks: what stays, what begins where, windows without seams, errors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdit
from tests import tiny
from vdit.errors import ConfigError, ShapeError
from vdit.experiment.experiment import Experiment
from vdit.models.backbone import Output
from vdit.models.network import Network
from vdit.models.vae.model import VAE
from vdit.models.vae.video import VideoVAE
from vdit.sampling.canvas import Canvas
from vdit.sampling.config import Structure
from vdit.sampling.programs import CanvasInput, Parameters, SampleCanvas, sample

FRAMES = 13  # made in two windows, the model's own, of 9 frames: few programs, and every test uses the same
BOTH = ["a", "b"]


@pytest.fixture(scope="module")
def generator():
    """With a VAE that looks back in time and around in space, so that streams and masks matter."""
    tiny_one = tiny.generator(window=9)
    config = dataclasses.replace(tiny_one.experiment.vae, edge_kernel=(3, 3, 3))
    params = nn.meta.unbox(jax.jit(VAE(config).init)(jax.random.key(2), jnp.zeros((1, 5, 16, 16, 3))))["params"]
    vae = VideoVAE(config=config, params=params, statistics=tiny_one.vae.statistics)
    experiment = dataclasses.replace(tiny_one.experiment, vae=config)
    return dataclasses.replace(tiny_one, experiment=experiment, vae=vae)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 256, (FRAMES, *tiny.SIZE, 3)).astype(np.uint8)


def as_floats(video):
    return np.float32(video)[None] / np.float32(127.5) - np.float32(1)


@pytest.fixture(scope="module")
def reconstruction(generator, video):
    return np.asarray(generator.vae.decode(generator.vae.encode(video[None])))


def test_no_strength_gives_the_reconstruction(generator, video, reconstruction):
    """In windows, that of the whole video at once."""
    made = vdit.edit(generator, "a", video, strength=1e-5)
    np.testing.assert_allclose(made, reconstruction, atol=2e-3)


def test_full_strength_is_text_to_video_from_the_same_noise(generator, video):
    plain = np.asarray(generator(BOTH, frames=9, size=tiny.SIZE, seed=3))
    np.testing.assert_allclose(vdit.edit(generator, BOTH, video[:9], strength=1.0, seed=3), plain, atol=1e-5)


def test_a_gradual_edit_leaves_more_where_its_strength_is_less(generator, video, reconstruction):
    made = vdit.edit(generator, "a", video[:9], strength=np.linspace(0, 0.8, 9), steps=8)
    far = np.abs(made - reconstruction[:, :9]).mean((0, 2, 3, 4))
    np.testing.assert_allclose(far[0], 0, atol=1e-5)
    assert 0.01 < far[1:5].mean() < far[5:].mean()


def test_inverted_noise_leads_back_to_the_video(generator, video, reconstruction):
    """By the same words; by other words it does not."""
    options = {"strength": 0.5, "invert": True, "steps": 8}
    again = vdit.edit(generator, "ab", video[:9], source="ab", **options)
    np.testing.assert_allclose(again, reconstruction[:, :9], atol=1e-4)
    other = vdit.edit(generator, "ab", video[:9], source="dc", **options)
    assert np.abs(other - again).max() > 1e-2


@pytest.mark.parametrize(("level", "until"), [(1.0, 0.0), (0.7, 0.45)])
def test_low_frequencies_are_the_canvas_while_structure_is_on(generator, level, until):
    latents = np.random.default_rng(0).normal(size=(1, 3, 4, 4, 4)).astype(np.float32)
    structure = Structure(factor=2.0, until=until)
    method = dataclasses.replace(generator.method(steps=4), structure=structure)
    method = dataclasses.replace(method, grid=dataclasses.replace(method.grid, start=level))
    task = SampleCanvas(network=generator.experiment.network, method=method, output_shape=latents.shape[1:])
    canvas = Canvas(latents=latents, level=np.full((1, 3, 1, 1), level, np.float32))
    words = generator.tokens(["a"])
    model = generator.mesh, Parameters(generator.params)
    made = sample(task, *model, (words, words), jax.random.key(0), None, CanvasInput(canvas=canvas))
    assert jnp.abs(made - latents).max() > 0.1, "the rest is made anew"
    far = float(jnp.abs(structure.low(made) - structure.low(latents)).max())
    assert far < 1e-4 if until == 0 else far > 1e-2


def test_what_is_not_masked_comes_back_bit_for_bit(generator, video):
    mask = np.zeros((FRAMES, *tiny.SIZE), bool)
    for frame in range(3, FRAMES):
        mask[frame, frame // 2 : frame // 2 + 5, 3:8] = True
    given = as_floats(video)
    for count in (FRAMES, 11):  # the second is no length that the model makes
        both = vdit.inpaint(generator, BOTH, video[:count], mask[:count])
        assert both.shape == (2, count, *tiny.SIZE, 3)
        for made in both:
            np.testing.assert_array_equal(made[~mask[:count]], given[0, :count][~mask[:count]])
            assert np.abs(made - given[0, :count])[mask[:count]].mean() > 0.05
        assert np.abs(both[0] - both[1]).max() > 1e-3
    wide = vdit.inpaint(generator, BOTH, video, mask[5], grow=3)
    np.testing.assert_array_equal(wide[1][:, ~mask[5]], given[0][:, ~mask[5]])
    part = vdit.edit(generator, BOTH, video, mask=mask, strength=1.0)
    np.testing.assert_array_equal(part[1][~mask], given[0][~mask])


def test_what_is_masked_is_not_seen(generator, video):
    """Nothing of it reaches the result, neither by latents that are known in part nor by their neighbours."""
    mask = np.zeros((FRAMES, *tiny.SIZE), bool)
    mask[3:9, 1:6, 10:15] = True  # within one token of four
    mask[11] = True
    other = video.copy()
    other[mask] = 255 - other[mask]
    made = vdit.inpaint(generator, BOTH, video, mask)
    np.testing.assert_array_equal(vdit.inpaint(generator, BOTH, other, mask), made)
    other[0, 0, 0] = 255 - other[0, 0, 0]
    assert np.abs(vdit.inpaint(generator, BOTH, other, mask) - made)[:, mask].max() > 1e-4, "what is known is seen"


def test_a_larger_frame_holds_the_video(generator, video):
    for count, options, left in ((5, {"aspect": 2.0}, 8), (3, {"size": (16, 32), "at": (0, 3)}, 3)):
        made = vdit.outpaint(generator, "a", video[:count], **options)
        assert made.shape == (1, count, 16, 32, 3)
        np.testing.assert_array_equal(made[:, :, :, left : left + 16], as_floats(video[:count]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Believer(Network):
    """Believes that all latents are as the known ones on average; without any, as the noise happens to be."""

    def apply(self, params, row, time, text=None, **more):
        told = jnp.take_along_axis(time, row.frame_index, axis=1)[..., None]
        known = (told == 0) & (row.segment_ids > 0)[..., None]
        mean = lambda where: (row.values * where).sum(1, keepdims=True) / jnp.maximum(where.sum(1, keepdims=True), 1)  # noqa: E731
        x0 = jnp.where(known.any(1, keepdims=True), mean(known), mean(~known))
        return Output(prediction=jnp.where(known, 0.0, (row.values - x0) * 1000.0 / jnp.maximum(told, 1e-6)))


def test_windows_go_on_from_each_other(generator, monkeypatch):
    """Each window's noise is its own: only from its head can it know what the ones before have made."""
    network = generator.experiment.network
    fields = {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}
    monkeypatch.setattr(Experiment, "network", property(lambda self: Believer(**fields)))
    still = np.full((29, *tiny.SIZE, 3), 100, np.uint8)
    made = vdit.edit(generator, "a", still, strength=1.0)
    # Those of the first four latent frames are decoded with a view of the clip's beginning.
    np.testing.assert_allclose(made[:, 17:], np.tile(made[:, 13:17], (1, 3, 1, 1, 1)), atol=1e-4)
    first, other = (vdit.edit(generator, "a", still[:9], strength=1.0, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(made[:, :9], first)
    assert np.abs(other - first).max() > 1e-2


def windows(count, window, overlap):
    """(start, known, stop): all of one length; the last one, which must end with the video, knows more."""
    plan = [(0, 0, min(window, count))]
    while (done := plan[-1][2]) < count:
        stop = min(done - overlap + window, count)
        plan.append((stop - window, done, stop))
    return plan


def test_levels_and_latents_go_through_windows_as_through_one(generator, monkeypatch):
    """Whatever the windows: heads as they were made, then the latents and levels of the whole video."""
    rng = np.random.default_rng(3)
    video = rng.integers(0, 256, (21, *tiny.SIZE, 3)).astype(np.uint8)
    mask = rng.random(video.shape[:3]) < 0.02
    seen = {}

    def spy(task, mesh, parameters, prompts, key, noise, given):
        seen.setdefault(window, []).append(given)
        return given.canvas.latents + 1

    monkeypatch.setattr("vdit.generate.generator.sample", spy)
    for window in (21, 13, 9):
        vdit.edit(generator, "a", video, mask=mask, strength=0.5, invert=True, window=window)
    (whole,) = seen[21]
    assert set(np.unique(whole.canvas.level)) == {0, 0.5}
    for window in (13, 9):
        length = 1 + (window - 1) // 4
        plan = windows(6, length, 1)
        assert len(seen[window]) == len(plan) >= 2
        made = np.zeros_like(whole.shown)
        for given, (start, known, stop) in zip(seen[window], plan):
            assert given.canvas.latents.shape[1] == length
            start_position = given.canvas.start_position
            assert (0 if start_position is None else int(start_position[0])) == min(start, 1)
            head, new = np.split(given.canvas.latents, [known - start], axis=1)
            np.testing.assert_array_equal(head, made[:, start:known])
            np.testing.assert_allclose(new, whole.shown[:, known:stop], atol=1e-4)
            np.testing.assert_allclose(given.shown, whole.shown[:, start:stop], atol=1e-4)
            np.testing.assert_array_equal(given.canvas.level[:, known - start :], whole.canvas.level[:, known:stop])
            np.testing.assert_array_equal(given.canvas.level[:, : known - start], 0)
            made[:, start:stop] = given.canvas.latents + 1


def test_noise_that_is_given_reaches_its_windows(generator, video, monkeypatch):
    noise, seen = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 4)).astype(np.float32), []

    def spy(task, mesh, parameters, prompts, key, noise, given):
        seen.append(noise)
        return given.canvas.latents

    monkeypatch.setattr("vdit.generate.generator.sample", spy)
    vdit.edit(generator, "a", video, noise=noise)
    np.testing.assert_array_equal(seen[0], noise[:, :3])
    np.testing.assert_array_equal(seen[1][:, -1:], noise[:, 3:])


def test_models_of_one_level_inpaint(generator, video):
    """What is known is noised along."""
    sample = dataclasses.replace(generator.experiment.sample, conditioning="replacement")
    experiment = dataclasses.replace(generator.experiment, sample=sample)
    generator = dataclasses.replace(generator, experiment=experiment)
    mask = np.zeros(tiny.SIZE, bool)
    mask[2:7] = True
    made = vdit.inpaint(generator, "a", video[:9], mask)
    np.testing.assert_array_equal(made[:, :, ~mask], as_floats(video[:9])[:, :, ~mask])
    assert np.isfinite(made).all()


def test_errors_name_value_rule_and_mend(generator, video):
    mask = np.zeros(tiny.SIZE, bool)
    mask[3:5] = True
    with pytest.raises(ShapeError, match=r"strength=1.5: .*at most 1"):
        vdit.edit(generator, "a", video, strength=1.5)
    with pytest.raises(ConfigError, match=r"source describes .*add invert=True"):
        vdit.edit(generator, "a", video, source="b")
    with pytest.raises(ConfigError, match=r"inversion finds the noise"):
        vdit.edit(generator, "a", video, invert=True, noise=np.zeros((1, 4, 4, 4, 4)))
    with pytest.raises(ShapeError, match=r"noise of shape \(1, 5, 4, 4, 4\) must be \(1, 4, 4, 4, 4\)"):
        vdit.edit(generator, "a", video, noise=np.zeros((1, 5, 4, 4, 4)))
    with pytest.raises(ShapeError, match=r"mask of shape \(8, 16\) .*give \(16, 16\), or \(13, 16, 16\)"):
        vdit.inpaint(generator, "a", video, mask[:8])
    with pytest.raises(ShapeError, match="mask is false everywhere"):
        vdit.inpaint(generator, "a", video, mask & False)
    with pytest.raises(ShapeError, match="mask is true everywhere: that is text to video"):
        vdit.inpaint(generator, "a", video, mask | True)
    with pytest.raises(ShapeError, match="true everywhere once grown by 16 pixels"):
        vdit.inpaint(generator, "a", video, mask, grow=16)
    with pytest.raises(ShapeError, match=r"video of 12x16 .*multiples of 8 .*cut it to 16x16"):
        vdit.inpaint(generator, "a", video[:, :12], mask[:12])
    with pytest.raises(ShapeError, match=r"overlap=9 of windows of 9 frames: give 4 to 8"):
        vdit.edit(generator, "a", video, window=9, overlap=9)
    with pytest.raises(ShapeError, match=r"13 frames in windows of 1, .*give a window of 5 or more"):
        vdit.edit(generator, "a", video, window=1)
    with pytest.raises(ConfigError, match="at least one text"):
        vdit.edit(generator, [], video)
    with pytest.raises(ConfigError, match=r"size=None, aspect=None: give one"):
        vdit.outpaint(generator, "a", video)
