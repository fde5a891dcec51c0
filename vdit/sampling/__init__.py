"""Sampling: how canvases are sampled, and the engine that goes on with a video."""

from vdit.lazy import exports

# Imported on first use, so that a config alone does not wait for jax.
_HOMES = {
    "BlockCache": "config",
    "Canvas": "canvas",
    "EditedVideo": "sliding",
    "Grouping": "canvas",
    "PromptSchedule": "sliding",
    "Prompts": "canvas",
    "Reference": "programs",
    "SamplingConfig": "config",
    "SlidingCanvas": "sliding",
    "SlidingState": "sliding",
    "Structure": "config",
    "Window": "sliding",
    "sampling_config": "config",
    "tokenize": "canvas",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = exports(__name__, _HOMES)
