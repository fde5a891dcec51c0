"""Reference VAEs with random weights, and ours filled with the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.pretrained.load import fill
from vdit.models.vae import VAE, VAEConfig


def randomise(torch, module, seed: int = 0):
    """Every parameter drawn, none idle: products keep the size of what they take, scales lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if (parameter.ndim == 1 and "norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.1 * noise)
    return module.eval()


def numpy_state(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


class Ours:
    """Our VAE with a state dict of theirs, taking and giving torch's layout [b c t h w]."""

    def __init__(self, config: VAEConfig, rules, state):
        self.config, self.vae, self.params = config, VAE(config), fill(rules, state)
        self._encode = jax.jit(lambda params, x, cache: self._apply(params, x, cache, "encode_chunk"))
        self._decode = jax.jit(lambda params, z, cache: self._apply(params, z, cache, "decode_chunk"))

    def _apply(self, params, x, cache, method):
        return self.vae.apply({"params": params}, x, cache, method=method)

    def encode(self, video, splits: tuple[int, ...] = (), params=None) -> np.ndarray:
        """Mean and log variance, one after the other in channels; splits: frames at which a chunk begins."""
        parts, cache = [], None
        for chunk in np.split(_theirs_to_ours(video), splits, axis=1):
            gaussian, cache = self._encode(params or self.params, chunk, cache)
            parts.append(jnp.concatenate([gaussian.mean, gaussian.logvar], -1))
        return _ours_to_theirs(jnp.concatenate(parts, 1))

    def decode(self, latents, splits: tuple[int, ...] = (), params=None) -> np.ndarray:
        parts, cache = [], None
        for chunk in np.split(_theirs_to_ours(latents), splits, axis=1):
            frames, cache = self._decode(params or self.params, chunk, cache)
            parts.append(frames)
        return _ours_to_theirs(jnp.concatenate(parts, 1))


def swap_two_of_one_shape(state: dict[str, np.ndarray], first: str, second: str) -> dict[str, np.ndarray]:
    assert state[first].shape == state[second].shape
    return state | {first: state[second], second: state[first]}


def _theirs_to_ours(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), 1, -1)


def _ours_to_theirs(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)
