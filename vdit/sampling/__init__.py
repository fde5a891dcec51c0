"""Sampling: how canvases are sampled, and the engine that goes on with a video."""

from vdit.sampling.config import BlockCache, SamplingConfig, Structure, sampling_config

__all__ = ["BlockCache", "SamplingConfig", "Structure", "sampling_config"]
