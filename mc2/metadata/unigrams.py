"""Unigrams from the frequency lists that wordfreq ships: 42 languages, at once, without a download.

The published rule takes the top 10 % of all words of a Wikipedia, at most 251,465 (RECIPE 1.2). wordfreq's lists have that cut behind them: "small" has the
words seen at least once in a million, 30,000 to 60,000 a language, "large" (21 languages) at least once in a hundred million. A tenth of the small list would
leave 3,000 words, so the fraction is 1 by default, and the cap is the published one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Literal

from mc2 import languages

MAX_UNIGRAMS = 251_465

Wordlist = Literal["small", "large", "best"]

_SMASHED_NUMBER = re.compile(r"\d[\d.,]")  # wordfreq writes every number of several digits as zeros: "00", "0000s"


def wordlist_codes(wordlist: Wordlist) -> dict[str, str]:
    """Canonical language code -> wordfreq's own code, for the languages that have this list ("no" -> "nb")."""
    import wordfreq

    return {languages.canonical(code): code for code in sorted(wordfreq.available_languages(wordlist))}


def wordfreq_version() -> str:
    """The version of the installed package: the words depend on it."""
    return version("wordfreq")


def unigrams(language: str, wordlist: Wordlist = "small", fraction: float = 1.0, most: int = MAX_UNIGRAMS) -> list[str]:
    """The most frequent words of a language, most frequent first: the top `fraction` of the list, at most `most`.

    Each word also stands with a capital first letter, where the script has one: wordfreq folds the case, matching keeps it, and a list counted on Wikipedia
    has both ("Fuchs" in German, "Fox" at the start of a caption). Both forms count for the limits.
    """
    import wordfreq

    words = [word for word in wordfreq.iter_wordlist(wordlist_codes(wordlist)[language], wordlist) if not _SMASHED_NUMBER.search(word)]
    forms = list(itertools.chain.from_iterable(map(_forms, words)))
    return forms[: min(most, round(fraction * len(forms)))]


def _forms(word: str) -> Iterator[str]:
    yield word
    capital = word[0].title() + word[1:]  # title case, not upper case: "ǆ" becomes "ǅ"
    if capital != word:
        yield capital
