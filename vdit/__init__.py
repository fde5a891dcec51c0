"""vdit: train, sample and measure video diffusion transformers in JAX.

    import vdit
    clip = vdit.read_video("in.mp4")            # .frames uint8 [t h w 3], .times float64 [t], .fps
    generator = vdit.load("runs/clips")
    videos = generator(["a dog runs"], frames=17, size=(64, 96))
    vdit.write_video("out.mp4", videos[0], fps=8)

Names are imported when they are first used, so `import vdit` is quick and starts no accelerator.
"""

import importlib

from vdit import errors

__version__ = "0.1.0"

_LAZY = {
    "Clip": "vdit.pixels",
    "Row": "vdit.types",
    "animate": "vdit.generate.verbs",
    "connect": "vdit.generate.verbs",
    "extend": "vdit.generate.verbs",
    "loop": "vdit.generate.verbs",
    "edit": "vdit.generate.verbs",
    "inpaint": "vdit.generate.verbs",
    "outpaint": "vdit.generate.verbs",
    "rollout": "vdit.generate.verbs",
    "Simulator": "vdit.generate.simulator",
    "Structure": "vdit.sampling.config",
    "Generator": "vdit.generate",
    "LoRAFile": "vdit.pretrained.lora",
    "load": "vdit.generate",
    "open_expander": "vdit.generate.expansion",
    "playground": "vdit.serve.notebook",
    "read_video": "vdit.video.read",
    "write_video": "vdit.video.read",
}

__all__ = ["__version__", "errors", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'vdit' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
