"""What an object prints in a terminal or a notebook: short, and something that helps."""

import dataclasses
import importlib
import pkgutil
import re

import flax.linen as nn
import numpy as np

import vdit
from tests import tiny
from vdit import reprs
from vdit.pixels import Clip
from vdit.reprs import shown_bytes
from vdit.sampling.canvas import Canvas, canvas_tokens
from vdit.sampling.programs import Reference

# A field of these may hold arrays, trees of them, or a whole config: the generated repr would print all of it.
LARGE = {"Array", "ndarray", "PyTree", "Experiment", "Generator", "Network", "SamplingConfig", "Mapping", "bytes"}
LARGE |= {"TrainConfig", "TrainState", "VAEConfig", "TextConfig", "DiTConfig", "DataConfig", "Row"}
LARGE |= {"Canvas", "Schedule"}


def public_dataclasses():
    for module in pkgutil.walk_packages(vdit.__path__, "vdit."):
        if not module.name.startswith(("vdit.cli", "vdit.dist", "vdit.plan", "vdit.quickstart")):
            for name, cls in vars(importlib.import_module(module.name)).items():
                own = isinstance(cls, type) and cls.__module__ == module.name and not name.startswith("_")
                if own and dataclasses.is_dataclass(cls) and not issubclass(cls, nn.Module):
                    yield cls


def test_whatever_holds_much_has_a_short_repr():
    long = []
    for cls in public_dataclasses():
        words = set(re.findall(r"\w+", " ".join(str(field.type) for field in dataclasses.fields(cls))))
        if words & LARGE and "__create_fn__" in cls.__repr__.__qualname__:
            long.append(f"{cls.__module__}.{cls.__name__}")
    assert long == []


def objects():
    """Of each kind that a user of the Python API has in hand."""
    generator = tiny.generator(stride=2, window=9, actions=2)
    yield from (generator, generator.experiment, generator.vae, generator.method())
    yield from (generator.experiment.backbone, generator.experiment.vae, generator.experiment.network)
    yield generator.task(generator.method(), 9, tiny.SIZE)
    yield vdit.Simulator(generator, "a", steps=1)
    yield Clip(frames=np.zeros((9, 64, 96, 3), np.uint8), times=np.arange(9.0), fps=8.0)
    yield Reference(video=np.zeros((1, 5, 16, 16, 3), np.float32), level=np.ones((1, 5, 1, 1), np.float32))
    canvas = Canvas(latents=np.zeros((1, 2, 4, 4, 4), np.float32), level=np.ones((1, 2, 1, 1), np.float32))
    yield from (canvas, canvas_tokens(canvas, (1, 2, 2)), generator.tokens(["a"] * 64))


def test_reprs_are_short_and_say_what_it_is():
    for one in objects():
        text = repr(one)
        assert len(text) <= reprs.LONGEST
        assert "\n" not in text
        assert type(one).__name__ in text
        assert " at 0x" not in text
        if dataclasses.is_dataclass(one):
            page = one._repr_html_()
            assert page.count("<tr>") == len(dataclasses.fields(one))
            assert len(page) < 6000


def test_a_repr_shows_what_differs_from_the_default():
    experiment = tiny.experiment()
    assert "name='tiny'" in repr(experiment)
    assert "width=16" in repr(experiment.backbone)
    assert "mlp_ratio" not in repr(experiment.backbone), "as it is by default"
    clip = Clip(frames=np.zeros((2, 4, 6, 3), np.uint8), times=np.arange(2.0), fps=8.0)
    assert repr(clip) == "Clip(frames=uint8 [2 4 6 3], times=float64 [2], fps=8.0)"
    tree = {"a": {"kernel": np.zeros((100, 100))}, "b": [np.zeros(5)]}
    assert reprs.shown(tree) == "<2 arrays of 10 k numbers under a, b>"
    assert reprs.shown(["long" * 99]).endswith(")]")
    assert len(reprs.shown({str(key): "x" * 99 for key in range(1000)})) < 200


def test_bytes_are_shown_in_the_unit_that_suits_them():
    numbers = (0, 1023, 1024, 1010 << 10, 3.4 * 2**30, 3 << 50)
    assert [*map(shown_bytes, numbers)] == ["0 bytes", "1023 bytes", "1 KiB", "1010 KiB", "3.4 GiB", "3072 TiB"]
