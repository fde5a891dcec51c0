"""A mix of worlds: even, in turn, and each part as it is alone."""

import re
from collections import Counter

import numpy as np
import pytest

from vdit import worlds
from vdit.data import Clips, DataConfig, WorldsSource, open_source
from vdit.errors import ConfigError


def same(a, b):
    return np.array_equal(a.video, b.video) and (a.caption, a.detailed) == (b.caption, b.detailed)


@pytest.mark.parametrize("names", [("moving", "occluder"), ("steer", "bounce", "moving")])
def test_any_run_has_as_many_of_each_and_parts_are_as_alone(names):
    world = worlds.make("+".join(names), seed=3, size=(24, 24), frames=3)
    alone = [worlds.make(name, seed=3, size=(24, 24), frames=3) for name in names]
    n = len(names)
    for i in range(4 * n):
        sample = world[i]
        assert sample.meta["world"] == names[i % n]
        assert sample.meta["index"] == i // n
        assert same(sample, alone[i % n][i // n])
    shown = [world[i].meta["world"] for i in range(5, 5 + 3 * n)]
    assert Counter(shown) == {name: 3 for name in names}


def test_a_mix_is_a_world_like_the_others():
    world = worlds.make("moving+occluder", seed=1, count=7, frames=4)
    assert world.name == "moving+occluder"
    assert len(list(world)) == 7
    assert same(world[-1], world[6])
    with pytest.raises(IndexError, match="'moving\\+occluder' that has 7"):
        world[7]
    assert world.render(1, size=(33, 65), frames=3, fps=4.0).video.shape == (3, 33, 65, 3)
    assert not same(world[0], worlds.make("moving+occluder", seed=2, frames=4)[0])


def test_options_go_to_the_parts_that_have_them_and_to_one_by_its_name():
    world = worlds.make("moving+occluder+bounce",
                        **{"subset": "train", "sizes": (0.1, 0.11), "occluder.sizes": (0.09, 0.09), "fps": 4.0})
    moving, occluder, bounce = world.parts
    assert moving.subset == "train"
    assert (moving.sizes, occluder.sizes) == ((0.1, 0.11), (0.09, 0.09))
    assert [part.fps for part in (world, moving, occluder, bounce)] == [4.0] * 4
    assert bounce == worlds.make("bounce", fps=4.0, count=bounce.count)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("moving+occluded", {}, "world 'occluded' is unknown; the nearest: occluder"),
    ("moving+", {}, "world '' is unknown"),
    ("moving+moving", {}, "'moving' twice"),
    ("moving+occluder", {"subsets": "train"}, "no world of 'moving+occluder' has an option 'subsets'; the nearest"),
    ("moving+occluder", {"occluder.subset": "train"}, "world 'occluder' has no option 'subset'"),
    ("moving+occluder", {"bounce.balls": (1, 1)}, "'bounce.balls' is for a world that is not in 'moving+occluder'"),
    ("moving+occluder", {"moving.fps": 4.0}, "fps is the same for all of a mix"),
    ("moving", {"moving.subset": "train"}, "world 'moving' has no option 'moving.subset'"),
])  # fmt: skip
def test_unknown_parts_and_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        worlds.make(name, **options)


def test_the_data_config_mixes_worlds_by_name_and_options():
    options = ("subset=train", "occluder.sizes=(0.09,0.1)")
    source = WorldsSource(world="moving+occluder", count=9, options=options)
    config = DataConfig(source=source, pixel_budgets=(32 * 32,), frames=(5,))
    library = open_source(config).library
    assert library.world.parts[0].subset == "train"
    assert library.world.parts[1].sizes == (0.09, 0.1)
    samples = [Clips(library, config)[i] for i in range(9)]
    assert [("wall" in sample["captions"][0]) for sample in samples] == [False, True] * 4 + [False]
    assert samples[3]["id"] == "moving+occluder[3]"
    with pytest.raises(ConfigError, match=r"options has 'a..b=1'"):
        DataConfig(source=WorldsSource(options=("a..b=1",)))
