"""Which words of a prompt must survive a rewriting, and whether they do: colours, counts, directions, objects.

    lost_words("two red balls roll to the left", "A pair of red balls rolls leftwards.")    # ("two", "left")

Words are compared without endings of the plural; "two" is "2". Objects are told from verbs by their place in the
sentence, without a dictionary: what stands after an article, a number or a colour is an object, and the word with an
-s after it a verb. In doubt a word must survive. The check sees words, not sentences: it does not see that two colours
have changed places.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")

_LISTS = {
    "colours": """
        red orange yellow green cyan blue magenta white black grey gray brown pink purple violet turquoise teal gold
        golden silver beige crimson scarlet maroon navy indigo lilac ivory olive amber bronze coral khaki tan""",
    "numbers": """
        zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen eighteen nineteen twenty""",
    "directions": """
        left right up down upward upwards downward downwards forward forwards backward backwards away toward towards
        clockwise counterclockwise anticlockwise north south east west leftward rightward sideways""",
    # Words that carry no object of their own: of grammar, and of talking about videos.
    "grammar": """
        a an the this that these those some any each every no not and or but nor so as of in on at by with without to
        from into onto over under above below between among through across along around behind beside near inside
        outside off out after before during while when where which who whose whom what how why is are was were be been
        being am do does did has have had having can could will would shall should may might must it its he she they
        him his her their there here i you we me us my our your very too just only also then than like such more most
        much many few several lot lots both all other another same own if because about against per via upon it's
        there's""",
    "talk": """
        video clip footage shot scene frame frames image picture photo animation show shows showing shown please make
        makes making create creates generate view closeup still""",
    # Who may stand for a person of the prompt.
    "persons": """
        man woman boy girl child individual figure player worker dancer lady guy gentleman adult teenager baby kid""",
    "verbs": """
        go goes going gone move moves moving moved come comes coming get gets getting got take takes taking put puts
        let lets see sees seeing look looks looking stand stands standing sit sits sitting walk walks walking run runs
        running fly flies flying swim swims swimming roll rolls rolling fall falls falling bounce bounces bouncing play
        plays playing eat eats eating drive drives driving turn turns turning hold holds holding wear wears wearing
        ride rides riding jump jumps jumping dance dances dancing sleep sleeps sleeping travel travels glide glides
        slide slides""",
}
_BEGINS = ("a", "an", "the", "this", "that", "each", "every", "its", "his", "her")
COLOURS, DIRECTIONS, _GRAMMAR, _TALK, _VERBS = (
    frozenset(_LISTS[name].split()) for name in ("colours", "directions", "grammar", "talk", "verbs")
)
_PERSONS = frozenset(_LISTS["persons"].split())
NUMBERS = {word: str(value) for value, word in enumerate(_LISTS["numbers"].split())}
NUMBERS |= {"dozen": "12", "hundred": "100", "thousand": "1000"}
_OPPOSITES = {"left": "right", "up": "down", "forwards": "backwards", "clockwise": "counterclockwise"}
_OPPOSITES |= {other: one for one, other in _OPPOSITES.items()}
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "persons": "person", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "geese": "goose", "leaves": "leaf", "wolves": "wolf", "knives": "knife",
    "lives": "life", "shelves": "shelf", "loaves": "loaf", "oxen": "ox", "gray": "grey", "color": "colour",
    "colors": "colour", "backward": "backwards", "forward": "forwards", "toward": "towards", "upward": "up",
    "upwards": "up", "downward": "down", "downwards": "down", "leftward": "left", "rightward": "right",
    "leftwards": "left",
    "rightwards": "right", "golden": "gold", "humans": "person", "human": "person", "somebody": "person",
    "someone": "person",
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    return [word.casefold() for word in _WORD.findall(unicodedata.normalize("NFKC", text))]


def stem(word: str) -> str:
    """What a word is compared by: "boxes" -> "box", "two" -> "2", "grey" and "gray" -> "grey"."""
    word = re.sub(r"['’]s$", "", word.casefold())
    if word in NUMBERS:
        return NUMBERS[word]
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(ss|x|z|ch|sh|o)es$", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def important_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt that a rewriting must keep, each once, in their order.

    Args:
        prompt: a user's text.

    Returns:
        Its colours, counts, directions and objects, in lower case.
    """
    words = words_of(prompt)
    kept: dict[str, str] = {}
    noun = False  # whether the word before is of a noun: a verb may follow
    singular = False  # whether that noun began with "a", "the", "one": a verb with -s may follow
    article = False  # whether the word before begins a noun
    for place, word in enumerate(words):
        if word in COLOURS or word in NUMBERS or word.isdecimal() or word in DIRECTIONS:
            kept.setdefault(stem(word), word)
            article = article or word not in DIRECTIONS
            singular = word == "one"
        elif word in _GRAMMAR or word in _TALK:
            article = word in _BEGINS
            noun = noun and word in ("that", "which", "who", "is", "are")
            singular = article or (singular and noun)
        elif not article and (word in _VERBS or _is_verb(word, words[place - 1] if place else "", noun, singular)):
            noun = singular = False
        else:
            if len(word) > 1:
                kept.setdefault(stem(word), word)
            noun, article = True, False
    return tuple(kept.values())


def _is_verb(word: str, before: str, noun: bool, singular: bool) -> bool:
    """By form and place: "a man juggles", "dogs chasing", "is painted"; adverbs count as verbs: "slowly"."""
    if word.endswith("ly") and len(word) > 4:
        return True
    if before in ("is", "are", "was", "were", "to", "being", "been"):
        return word.endswith(("ing", "ed", "en"))
    if word.endswith("ing") and len(word) > 5:
        return noun
    return noun and singular and word.endswith("s") and not word.endswith(("ss", "us", "is"))


def lost_words(prompt: str, text: str) -> tuple[str, ...]:
    """The important words of a prompt that a text does not have.

    Args:
        prompt: a user's text.
        text: what was made of it.

    Returns:
        The words, as in the prompt; () where all have survived.
    """
    there = {stem(word) for word in words_of(text)}
    there |= {"2"} if "pair" in there else set()
    there |= {"person"} if there & _PERSONS else set()
    return tuple(word for word in important_words(prompt) if stem(word) not in there)


def added_opposites(prompt: str, text: str) -> tuple[str, ...]:
    """Directions of a text that contradict the prompt's: "left" where the prompt says "right" and not "left".

    Args:
        prompt: a user's text.
        text: what was made of it. "from left to right" does not contradict "right".

    Returns:
        The words, in lower case.
    """
    asked, words = {stem(word) for word in words_of(prompt)}, words_of(text)
    unwanted = {other for one, other in _OPPOSITES.items() if one in asked and other not in asked}
    found = []
    for place, word in enumerate(words):
        if stem(word) in unwanted and "from" not in words[max(0, place - 2) : place]:
            found.append(word)
    return tuple(dict.fromkeys(found))
