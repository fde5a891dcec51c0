"""What is wrong with a caption that a model wrote: language models refuse, repeat themselves, and change the language.

    check_caption("A dog runs over grass.", CaptionRules(), words=60)      # None
    check_caption("I'm sorry, but I can't help.", CaptionRules(), words=60)    # "a refusal"
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import unicodedata

from vdit import paths
from vdit.errors import ConfigError, LanguageError
from vdit.language.prompts import FIELDS

_JSON_DEPTH = 4
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_REFUSAL = re.compile(
    r"\b(i['’]?m|i am|we['’]re|we are) (really |very |so )?(sorry|afraid|unable|not able)\b|"
    r"\b(i|we) (can['’]?t|cannot|can not|won['’]?t|will not|do not|don['’]?t|am unable to|could not|couldn['’]?t) "
    r"(assist|help|provide|describe|see|view|watch|comply|identify|answer|fulfil|access|analy)|"
    r"\bas an? (ai|artificial|language model|assistant|large)\b|"
    r"\b(against|violates?) (my|our|the) (guidelines|policy|policies|content)|\bno (video|frames?|images?) "
    r"(was|were|is|are|has been) (provided|given|attached|visible)|\bplease (provide|upload|share|attach)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"</?(html|body|div|p|span|head|script|br|table)\b|<\|[\w ]+\|>|```|\\u[0-9a-f]{4}", re.IGNORECASE)

# The commonest words that one language has and the others here have not. Enough to tell sentences apart, not words.
_COMMON = {
    "en": "the a and is are of with on in that this to at from there its while as by it they their over into was an",
    "de": "der die das und ist ein eine einen mit auf im den dem von sich nicht zu auch wird sind über während vor",
    "fr": "le la les et est un une des du dans avec sur qui pas au aux sont en il elle pour tandis que par",
    "es": "el la los las y es un una de con en que por se del al su para está mientras hay sobre",
    "it": "il lo la gli e è un una di con che per si del della nel sono su mentre al alla",
    "pt": "o a os as e é um uma de com em que por se do da no na está ao enquanto para são",
    "nl": "de het een en is van met op in dat die zijn niet aan er naar wordt terwijl over te",
}
_COMMON_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
LANGUAGES = (*_COMMON_WORDS, "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """What a caption must be.

    Attributes:
        language: "en", "de", "fr", "es", "it", "pt", "nl", or "any" for no check.
        short_words: most words of the short caption.
        detailed_words: most words of the detailed one.
        camera_words: most words about the camera.
    """

    language: str = "en"
    short_words: int = 40
    detailed_words: int = 300
    camera_words: int = 30

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ConfigError(f"language={self.language!r}: vdit tells {', '.join(LANGUAGES)} apart; 'any' checks none")
        for name in ("short_words", "detailed_words", "camera_words"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 1 or more")


def check_caption(text: str, rules: CaptionRules, *, words: int) -> str | None:
    """What is wrong with a caption, in few words; None if nothing is.

    Args:
        text: the caption.
        rules: its language.
        words: the most that it may have.
    """
    found = _WORD.findall(text)
    if not found:
        return "empty"
    if _REFUSAL.search(text):
        return "a refusal"
    if _MARKUP.search(text) or text.lstrip()[:1] in ("{", "["):
        return "markup"
    if any(unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs") and c not in "\n\t" for c in text) or "\ufffd" in text:
        return "characters of no text"
    if repeats(text):
        return "a repetition"
    if len(found) > words:
        return f"too long ({len(found)} words, at most {words})"
    if rules.language != "any" and (other := other_language(text, rules.language)):
        return f"another language ({other})"
    return None


def repeats(text: str) -> bool:
    """Whether a text goes round in circles: one run of 1 to 16 words three times or more in a row, or few new words."""
    words = [word.casefold() for word in re.findall(r"\w+", text)]
    for size in range(1, 17):
        times = 4 if size < 3 else 3  # "very very very" is said
        run = 0
        for i in range(size, len(words)):
            run = run + 1 if words[i] == words[i - size] else 0
            if run >= size * (times - 1):
                return True
    triples = collections.Counter(zip(words, words[1:], words[2:]))
    return len(words) >= 60 and len(triples) < 0.45 * (len(words) - 2)


def other_language(text: str, language: str) -> str | None:
    """The language or script that a text is written in, where that is surely not `language`; else None.

    A text of another script is told by its letters, one of Latin letters by its commonest words, from eight words up.
    """
    scripts = collections.Counter(unicodedata.name(c, "?").split()[0].title() for c in text if c.isalpha())
    foreign = {script: n for script, n in scripts.items() if script not in ("Latin", "Modifier", "Feminine")}
    if sum(foreign.values()) > 0.3 * max(1, sum(scripts.values())):
        return max(foreign, key=lambda script: foreign[script])
    words = [word.casefold() for word in _WORD.findall(text)]
    if len(words) < 8:
        return None
    counts = {name: sum(word in common for word in words) for name, common in _COMMON_WORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    sure = counts[best] >= max(3, 0.15 * len(words)) and counts[best] >= 1.5 * counts[language] + 1
    return best if best != language and sure else None


def read_answer(text: str, asked: str) -> dict[str, str]:
    """The caption's fields in a model's answer.

    Args:
        text: the answer.
        asked: "caption" for a JSON object with "short", "detailed" and "camera", or the one field that was asked for.

    Returns:
        Field -> text, without line breaks.

    Raises:
        LanguageError: there is no such object; the message says in few words what is wrong.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    if asked != "caption":
        return {asked: _line(text.strip('"'))}
    if not text:
        raise LanguageError("empty")
    if "{" not in text:
        raise LanguageError("a refusal" if _REFUSAL.search(text) else "no JSON")
    inside = text[text.index("{") : text.rindex("}") + 1] if "}" in text else ""
    try:
        value = paths.parse_json(inside or text, name="it", depth=_JSON_DEPTH, error=LanguageError)
    except LanguageError:
        raise LanguageError("JSON that breaks off" if not inside or _unfinished(text) else "no JSON") from None
    if not isinstance(value, dict):
        raise LanguageError("no JSON object")
    value = {key.casefold(): item for key, item in value.items()}
    missing = [field for field in FIELDS if not isinstance(value.get(field), str)]
    if missing:
        raise LanguageError(f"JSON without {missing[0]!r}")
    return {field: _line(value[field]) for field in FIELDS}


def _unfinished(text: str) -> bool:
    """Whether a JSON text ends before it is whole."""
    try:
        json.loads(text[text.index("{") :])
    except json.JSONDecodeError as reason:
        return reason.pos >= len(text) - text.index("{") - 1 or "Unterminated" in reason.msg
    except RecursionError:
        return False
    return False


def _line(text: str) -> str:
    return " ".join(text.split())
