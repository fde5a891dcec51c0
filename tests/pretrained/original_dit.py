"""The class-conditional DiT as its paper and its public checkpoints have it, said again in PyTorch.

The original repository is no package; this is the reference that its layout of weights is held against. Names of
the parameters are those of the public checkpoints (Peebles and Xie, 2023).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class OriginalDiT(nn.Module):
    """Latents [b c h w], times [b], classes [b] (`classes` itself is "no class") -> [b 2c h w]."""

    def __init__(self, *, side: int, patch: int, channels: int, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict({"mlp": _two_layers(256, width)})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.pos_embed = nn.Parameter(torch.tensor(positions(side // patch, width))[None], requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, 2 * channels * patch * patch),
                "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)),
            }
        )

    def forward(self, latents, time, label):
        x = self.x_embedder["proj"](latents)
        b, _, h, w = x.shape
        x = x.flatten(2).mT + self.pos_embed
        c = self.t_embedder["mlp"](waves(time)) + self.y_embedder["embedding_table"](label)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, -1)
        x = self.final_layer["linear"](normed(x) * (1 + scale) + shift)
        x = x.reshape(b, h, w, self.patch, self.patch, 2 * self.channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(b, 2 * self.channels, h * self.patch, w * self.patch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        b, n, d = x.shape
        qkv = self.attn["qkv"](normed(x) * (1 + scale) + shift).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
        x = x + gate * self.attn["proj"](y.transpose(1, 2).reshape(b, n, d))
        y = F.gelu(self.mlp["fc1"](normed(x) * (1 + mlp_scale) + mlp_shift), approximate="tanh")
        return x + mlp_gate * self.mlp["fc2"](y)


def _two_layers(features: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


def normed(x):
    """Layer normalisation without scale or shift, epsilon 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def waves(time, features: int = 256):
    """[cos | sin] of time at frequencies 10000^(-i / half), i = 0 ... half - 1."""
    half = features // 2
    angle = time[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angle.cos(), angle.sin()], -1)


def positions(side: int, width: int) -> np.ndarray:
    """[side*side width]: [sin | cos] of the column over half of the width, then of the row."""
    frequency = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = (x.reshape(-1, 1) * frequency for x in np.indices((side, side)))
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], -1).astype(np.float32)
