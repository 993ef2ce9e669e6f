"""Words of a text, as n-grams are counted over them (RECIPE 1.3)."""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from functools import lru_cache

BREAK = "\0"  # stands between two words that make no bigram: at punctuation, at the end of a line, at the end of a text
MAX_WORD_CHARACTERS = 256  # the limit of an entry; longer "words" are data, and a break

# First and last code points of the scripts that are written without spaces. Each of these characters is a word of the simple tokenizer.
UNSPACED = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # CJK ideographs
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Burmese
    (0x1780, 0x17FF), (0x19E0, 0x19FF),  # Khmer
)  # fmt: skip
KANA = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))  # with the iteration marks; the published ranges lack them

TSHEG = "\u0f0b\u0f0c"  # parts the syllables of a Tibetan word: no punctuation, whatever Unicode says

# Zero-width spaces and the Ethiopic word space part words; marks of direction and soft hyphens belong to no word. Joiners (Persian, Indic) stay.
_AS_SPACE = re.compile("[\u1361\u200b\ufeff]")
_AS_NOTHING = re.compile("[\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")


def is_punctuation(character: str) -> bool:
    """ASCII punctuation (with + $ < = > ^ | ~ and the grave accent) and the Unicode categories P*, but not the Tibetan tsheg."""
    return character in string.punctuation or (unicodedata.category(character)[0] == "P" and character not in TSHEG)


def is_unspaced(character: str) -> bool:
    """True for a letter of a script that is written without spaces."""
    return any(first <= ord(character) <= last for first, last in UNSPACED + KANA)


def visible(text: str) -> str:
    """The text without invisible marks; zero-width spaces become spaces."""
    return _AS_NOTHING.sub("", _AS_SPACE.sub(" ", text))


def pieces(text: str) -> list[str]:
    """The stretches of a text between punctuation and line ends, which no bigram crosses."""
    return [piece for piece in _breaks(text).split(text) if piece and not piece.isspace()]


def simple_words(text: str) -> list[str]:
    """What white space parts, and every character of an unspaced script by itself, with a BREAK where there was punctuation or a line end."""
    text = _breaks(text).sub(f" {BREAK} ", text)
    return (text if text.isascii() else _unspaced().sub(r" \g<0> ", text)).split()


def join_words(first: str, second: str) -> str:
    """A bigram as it stands in a text: with a space, unless one of the touching characters is of an unspaced script ("東京" + "都", but "New York" in Thai too)."""
    return f"{first}{'' if is_unspaced(first[-1]) or is_unspaced(second[0]) else ' '}{second}"


def _breaks(text: str) -> re.Pattern[str]:
    """Punctuation and line ends. The pattern of the characters below U+10000 is a table and twelve times faster than that of all."""
    return _breaks_below(sys.maxunicode + 1 if _ASTRAL.search(text) else 0x10000)


@lru_cache(maxsize=2)
def _breaks_below(end: int) -> re.Pattern[str]:
    """Made at the first use, which takes a tenth of a second."""
    marks = "".join(re.escape(chr(code)) for code in range(end) if is_punctuation(chr(code)))
    return re.compile(f"[{marks}{BREAK}\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


@lru_cache(maxsize=1)
def _unspaced() -> re.Pattern[str]:
    return re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED + KANA) + "]")
