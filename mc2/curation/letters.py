"""Which script every character belongs to, and which scripts a language is written in: arrays for the compiled code, made from Unicode's properties.

Han characters are three classes: those that only Chinese uses every day, those that only Japanese does, and those of both. Every day: the first level of the
national standards (GB 2312 and Big 5; JIS X 0208), which Python's codecs know.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mc2 import languages

NUM_CODE_POINTS = 0x32400  # behind the last letter of Unicode 17; the planes of private use have none
NO_LETTER, MARK, OTHER_SCRIPT = 0, 1, 2  # a mark that all scripts share belongs to its word, and says nothing

# ISO 15924 codes of the classes 3, 4, ...; the three of Han come last.
SCRIPTS = (
    "Latn", "Cyrl", "Arab", "Grek", "Hebr", "Armn", "Geor", "Deva", "Beng", "Gujr", "Guru", "Knda", "Mlym", "Orya", "Sinh", "Taml", "Telu", "Thaa", "Thai",
    "Laoo", "Mymr", "Khmr", "Tibt", "Ethi", "Hira", "Kana", "Hang", "Tfng", "Olck", "Mtei", "Nkoo", "Syrc", "Cans", "Cher", "Mong", "Java", "Bali",
    "Hani", "Hans", "Jpan",
)  # fmt: skip
FIRST_SCRIPT = OTHER_SCRIPT + 1
LATIN = FIRST_SCRIPT  # the first of the scripts

# Scripts besides the one that CLDR takes for the usual (in CLDR's own spelling for several at once: Jpan, Kore, Hans, Hant).
SEVERAL = {"Jpan": ("Hira", "Kana", "Hani", "Jpan"), "Kore": ("Hang", "Hani"), "Hans": ("Hani", "Hans"), "Hant": ("Hani", "Hans")}
MORE_SCRIPTS = {
    "ace": ("Arab",), "az": ("Cyrl", "Arab"), "bjn": ("Arab",), "bs": ("Cyrl",), "cr": ("Latn",), "crh": ("Latn",), "diq": ("Arab",), "gom": ("Latn",),
    "iu": ("Latn",), "jv": ("Java",), "kk": ("Arab", "Latn"), "kr": ("Arab",), "ks": ("Deva",), "ku": ("Arab",), "ky": ("Arab",), "min": ("Arab",),
    "mn": ("Mong",), "mni": ("Mtei",), "ms": ("Arab",), "pa": ("Arab",), "sat": ("Beng", "Deva"), "sd": ("Deva",), "sh": ("Cyrl",), "shi": ("Latn", "Tfng"),
    "sr": ("Latn",), "taq": ("Tfng",), "tzm": ("Latn",), "tg": ("Arab",), "tk": ("Cyrl",), "tt": ("Latn",), "ug": ("Cyrl", "Latn"), "uz": ("Cyrl",), "zgh": ("Latn",),
}  # fmt: skip


class Letters(NamedTuple):
    """For each code point: the class (`SCRIPTS`), and its lower case."""

    script: NDArray[np.uint8]
    lower: NDArray[np.int32]


@lru_cache(maxsize=1)
def letters() -> Letters:
    """The tables for all code points."""
    import regex

    text = "".join(map(chr, range(NUM_CODE_POINTS)))
    script = np.zeros(NUM_CODE_POINTS, np.uint8)
    unnamed = {"Hans", "Jpan"}
    for kind, pattern in [(OTHER_SCRIPT, r"\p{L}+"), (MARK, r"\p{M}+")] + [
        (FIRST_SCRIPT + i, rf"[\p{{Script={name}}}&&[\p{{L}}\p{{M}}]]+") for i, name in enumerate(SCRIPTS) if name not in unnamed
    ]:
        for match in regex.finditer(pattern, text, flags=regex.VERSION1):
            script[match.start() : match.end()] = kind
    script[ord("ー")] = FIRST_SCRIPT + SCRIPTS.index("Kana")  # Unicode: common to both kana
    chinese, japanese = _first_level("gb2312", 0xB0, 0xD7) | _first_level("big5", 0xA4, 0xC6), _first_level("euc_jp", 0xB0, 0xCF)
    script[sorted(chinese - japanese)] = FIRST_SCRIPT + SCRIPTS.index("Hans")
    script[sorted(japanese - chinese)] = FIRST_SCRIPT + SCRIPTS.index("Jpan")
    lower = np.frombuffer(
        text.replace("İ", "i").lower().encode("utf-32-le", "surrogatepass"), np.int32
    )  # the one letter that would become two
    return Letters(script, lower)


def _first_level(codec: str, first: int, last: int) -> set[int]:
    """Han characters whose first byte is in the range."""
    pairs = b"\n".join(bytes([lead, trail]) for lead in range(first, last + 1) for trail in [*range(0x40, 0x7F), *range(0xA1, 0xFF)])
    return {ord(character) for character in pairs.decode(codec, "ignore") if 0x4E00 <= ord(character) <= 0x9FFF}


def scripts_of(language: str) -> set[str]:
    """The scripts of a canonical code, or of a code with a script ("ar-Latn"); empty where nobody knows."""
    code, _, written = language.partition("-")
    usual = written or languages.script(code)
    more = () if written else MORE_SCRIPTS.get(code, ())
    return {name for script in (usual, *more) for name in SEVERAL.get(script, (script,))} - {"Zyyy"}


def script_tables(codes: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(own, foreign), each (classes x languages): 1 where letters of the class are the language's own, or speak against it.

    Latin letters in the midst of another script speak against nothing: names and brands are written so everywhere. A language of unknown script has all.
    """
    own = np.zeros((FIRST_SCRIPT + len(SCRIPTS), len(codes)), np.float32)
    for column, code in enumerate(codes):
        used = scripts_of(code)
        known = [FIRST_SCRIPT + SCRIPTS.index(name) for name in used if name in SCRIPTS]
        own[known if known else slice(OTHER_SCRIPT, None), column] = 1
        if used - set(SCRIPTS):
            own[OTHER_SCRIPT, column] = 1
    foreign = 1 - own
    foreign[[NO_LETTER, MARK, LATIN]] = 0
    return own, foreign
