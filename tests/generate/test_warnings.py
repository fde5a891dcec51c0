"""What is given and has no effect, or is rounded, is said: a VditWarning, one line in the commands."""

import warnings

import pytest

from tests import tiny
from vdit.cli import sample
from vdit.cli.batch import PromptSpec
from vdit.cli.parser import Parser, duration
from vdit.errors import VditWarning
from vdit.generate.generator import Generator, window_of
from vdit.generate.verbs import rollout
from vdit.sampling.canvas import Grouping
from vdit.sampling.sliding import Window


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Nothing of its weights is used."""
    config = tiny.experiment(stride=4)
    return Generator(experiment=config, params=None, vae=None, tokenizer=tiny.Letters(), mesh=None)


def test_a_negative_prompt_without_guidance(generator):
    with pytest.warns(VditWarning, match="negative prompt 'blurred' has no effect: guidance is 1"):
        generator.check_negative("blurred", generator.method(guidance=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.check_negative("blurred", generator.method(guidance=3.0))
        generator.check_negative("", generator.method(guidance=1.0))


def test_windows_and_contexts_that_are_rounded(generator):
    grouping = Grouping(first=1, step=4)
    with pytest.warns(VditWarning, match="context=6 is rounded down to 4"):
        assert Window.of(grouping, window=17, context=6).context == 1
    whole = window_of(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert window_of(generator, whole) == whole
        Window.of(grouping, window=17, context=8)
    with pytest.warns(VditWarning, match=f"window={whole + 1} is rounded down to {whole}"):
        assert window_of(generator, whole + 1) == whole


def test_prompts_after_the_end(generator):
    with pytest.warns(VditWarning, match="1 of 2 prompts have no effect, the first of them 'never seen'"):
        rollout(generator, [(0.0, "a"), (60.0, "never seen")], frames=1, fps=8)
    with pytest.warns(VditWarning, match="anchor has no effect"):
        rollout(generator, "a", frames=1, anchor=True)


def test_durations_of_samples(generator):
    grouping = Grouping.of(generator.experiment.vae, generator.experiment.backbone)
    wanted = grouping.first + 3 * grouping.step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample._made_frames(duration(str(wanted)), generator, 8.0) == wanted
        assert sample._made_frames(duration("1s"), generator, wanted) == wanted
    with pytest.warns(VditWarning, match=f"{wanted + 1} frames, {wanted} are made"):
        assert sample._made_frames(duration("1s"), generator, wanted + 1) == wanted


def test_a_seed_that_no_prompt_takes():
    parser = Parser()
    sample.add_arguments(parser)
    options = parser.parse_args(["run", "--seed", "5"])
    with pytest.warns(VditWarning, match="--seed has no effect on 1 of 2 prompts"):
        requests = sample._requests(options, [PromptSpec(prompt="a", seed=7), PromptSpec(prompt="b")])
    assert [request.seed for request in requests] == [7, 5]
