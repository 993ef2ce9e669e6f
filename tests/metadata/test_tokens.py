"""Words of a text, against a slow reading character by character."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc2.metadata.tokens import BREAK, join_words, pieces, simple_words, visible

# Letters of one script each, digits, marks, spaces: spaced and unspaced ones, astral ones, line ends
SAMPLES = "aZé9न्ग\u0301한가ԱაБ אب猫〇々あアｱ𠀀กໂཀ་ကខំ᧠ ..,。、།။'’-—«»_\t\n\r\u2028\u00a0𝔸🦊$+€"
UNSPACED_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "HALFWIDTH KATAKANA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER")


def slow_words(text: str) -> list[str]:
    """A second derivation: by the names of the characters, one after the other."""
    found: list[str] = []
    word = ""
    for character in f"{text} ":
        punctuation = (unicodedata.category(character).startswith("P") or character in string.punctuation) and character != "་"
        line_end = len(f"a{character}b".splitlines()) > 1
        unspaced = unicodedata.name(character, "").startswith(UNSPACED_NAMES) and not punctuation
        if character.isspace() or punctuation or unspaced:
            found += [word] if word else []
            word = ""
            if unspaced:
                found.append(character)
            if (punctuation or line_end) and found[-1:] != [BREAK]:
                found.append(BREAK)
        else:
            word += character
    return found


def without_repeated_breaks(words: list[str]) -> list[str]:
    return [word for position, word in enumerate(words) if word != BREAK or words[position - 1 : position] != [BREAK]]


@settings(deadline=None)  # the first text with an astral character pays for a pattern
@given(st.text(st.sampled_from(SAMPLES), max_size=30))
def test_against_a_slow_reading(text: str) -> None:
    assert without_repeated_breaks(simple_words(text)) == without_repeated_breaks(slow_words(text))


def test_what_the_recipe_says() -> None:
    assert simple_words("Das Haus, St. Lucia's") == ["Das", "Haus", BREAK, "St", BREAK, "Lucia", BREAK, "s"]
    assert simple_words("東京のcat กา") == ["東", "京", "の", "cat", "ก", "า"]
    assert simple_words("한국어 text\nnext") == ["한국어", "text", BREAK, "next"]
    assert pieces("a b. c\n\nd, ...") == ["a b", " c", "d"]


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [("New", "York", "New York"), ("東京", "都", "東京都"), ("iPhone", "手机", "iPhone手机"), ("한국", "말", "한국 말")],
)
def test_a_bigram_stands_as_in_a_text(first: str, second: str, joined: str) -> None:
    assert join_words(first, second) == joined


def test_invisible_marks() -> None:
    assert visible("ສະ\u200bບາຍ x\u200ey\u00adz نمی\u200cخواهم") == "ສະ ບາຍ xyz نمی\u200cخواهم"
