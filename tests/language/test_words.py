"""Which words of a prompt must survive, and whether they do."""

import pytest

from vdit.language.words import added_opposites, important_words, lost_words


@pytest.mark.parametrize(("prompt", "words"), [
    ("two red balls roll to the left", ("two", "red", "balls", "left")),
    ("a dog runs on the grass", ("dog", "grass")),
    ("a man juggles three balls", ("man", "three", "balls")),
    ("red circle left", ("red", "circle", "left")),
    ("dogs chasing a cat", ("dogs", "cat")),
    ("coffee cups on a table", ("coffee", "cups", "table")),
    ("Make a blue cross go DOWN, please", ("blue", "cross", "down")),
    ("the building is painted white", ("building", "white")),
    ("a video of it", ()),
])  # fmt: skip
def test_colours_counts_directions_and_objects_are_important(prompt, words):
    assert important_words(prompt) == words


@pytest.mark.parametrize(("prompt", "text"), [
    ("two red balls roll to the left", "A pair of red balls rolls leftwards."),
    ("2 boxes", "Two boxes stand there."),
    ("a grey cat", "A gray cat sleeps."),
    ("a person swims", "A young woman swims."),
    ("the dog's bowl", "A dog has a bowl."),
    ("a black-and-white photo of wolves", "A wolf, black and white."),
])  # fmt: skip
def test_the_same_thing_in_other_words_survives(prompt, text):
    assert lost_words(prompt, text) == ()


@pytest.mark.parametrize(("prompt", "text", "lost"), [
    ("a red circle moves up", "A large blue circle moves up.", ("red",)),
    ("three dogs", "Some dogs play.", ("three",)),
    ("a boat and a lighthouse", "A boat at sea.", ("lighthouse",)),
    ("a car turns left", "A car turns right.", ("left",)),
])  # fmt: skip
def test_what_is_lost_is_named(prompt, text, lost):
    assert lost_words(prompt, text) == lost


@pytest.mark.parametrize(("prompt", "text", "added"), [
    ("a cross moves right", "A cross moves to the right at the left.", ("left",)),
    ("a cross moves right", "A cross moves from the left to the right.", ()),
    ("a ball goes up and down", "A ball goes down, then up.", ()),
    ("a ball", "A ball rolls left.", ()),
])  # fmt: skip
def test_the_opposite_direction_contradicts(prompt, text, added):
    assert added_opposites(prompt, text) == added
