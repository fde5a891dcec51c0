"""What the parity tests of the transformers share: lively random weights, public files, our inputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vdit.data.patches import grid_position, patchify, token_grid


def enliven(torch, module, seed: int = 0):
    """Gives every parameter random values that keep activations of order one: no gate or table at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and "table" not in name and "modulation" not in name:
            parameter.copy_(0.7 * noise / math.sqrt(parameter[0].numel()))
        else:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * noise)
    return module.eval()


def saved(module, folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Saves a reference model in its public form; returns config.json and the tensors, read back."""
    module.save_pretrained(folder)
    (weights,) = folder.glob("*.safetensors")
    return json.loads((folder / "config.json").read_text()), load_file(weights)


def dense_inputs(latents: np.ndarray, patch: tuple[int, int, int], *, channels: int) -> dict[str, np.ndarray]:
    """Latents [b c t h w] of theirs -> one clip a row: values, condition (what lies past `channels`), places.

    One noise level a clip: `time` [b 1] is the caller's to add.
    """
    latents = np.moveaxis(np.asarray(latents), 1, -1)
    b, n = len(latents), math.prod(grid := token_grid(latents.shape, patch))
    inputs = {
        "values": patchify(latents[..., :channels], patch),
        "position": np.broadcast_to(grid_position(grid), (b, n, 3)),
        "segment_ids": np.ones((b, n), np.int32),
        "frame_index": np.zeros((b, n), np.int32),
        "frame_segment_ids": np.ones((b, 1), np.int32),
    }
    if latents.shape[-1] > channels:
        inputs["condition"] = patchify(latents[..., channels:], patch)
    return inputs
