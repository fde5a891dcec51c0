"""From a model's folder to videos.

Names are imported when they are first used: a process that only reads files (vdit.serve.intake) loads no model code.
"""

from vdit.lazy import exports

_HOMES = {"Generator": "generator", "load": "loading", "load_vae": "loading", "open_generator": "loading"}

__all__ = ["Generator", "load", "load_vae", "open_generator"]

__getattr__, __dir__ = exports(__name__, _HOMES)
