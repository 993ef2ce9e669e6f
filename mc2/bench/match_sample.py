"""Captions and entries for measurements of matching: frequent words of 14 languages and pairs of them, as wordfreq has them.

Entries of a language: its most frequent words, and as many pairs of words drawn by frequency. Captions: words drawn by frequency, about 56 characters, with
a comma and a full stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mc2.metadata.entries import EntryList, Metadata, write_language, write_manifest

LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")  # those of the package `emoji`
JOINED = ("ja", "zh")
WORDS_OF_CAPTION, WORDS_OF_JOINED_CAPTION = 9.6, 34.0  # mean
MAX_WORDS = 60_000


@dataclass(frozen=True)
class Words:
    """Words of a language, the most frequent first, and the share of each. `space` stands between two."""

    words: list[str]
    shares: np.ndarray[tuple[int], np.dtype[np.float64]]
    space: str

    @classmethod
    @lru_cache(maxsize=len(LANGUAGES))
    def of(cls, language: str) -> Words:
        import wordfreq

        frequency = wordfreq.get_frequency_dict(language)
        words = sorted(frequency, key=lambda word: (-frequency[word], word))[:MAX_WORDS]
        shares = np.array([frequency[word] for word in words])
        return cls(words, shares / shares.sum(), "" if language in JOINED else " ")

    def draw(self, rng: np.random.Generator, number: int) -> list[str]:
        return [self.words[i] for i in rng.choice(len(self.words), number, p=self.shares)]


def write_entries(folder: Path, num_entries: int, seed: int = 0) -> Metadata:
    """A metadata folder with so many entries, shared equally among the languages."""
    rows = {}
    for code, number in zip(LANGUAGES, _shares(num_entries), strict=True):
        rng, words = np.random.default_rng([seed, *code.encode()]), Words.of(code)
        entries = dict.fromkeys(words.words[: number // 2])
        while len(entries) < number:
            drawn = words.draw(rng, 2 * number)
            entries |= dict.fromkeys(first + words.space + second for first, second in zip(drawn[::2], drawn[1::2], strict=True))
        chosen = sorted(list(entries)[:number])
        rows[code] = write_language(folder, code, EntryList(chosen, ["unigrams"] * number, {}))
    write_manifest(folder, rows, {"seed": seed})
    return Metadata.open(folder)


def sample_captions(num_captions: int, seed: int = 0) -> list[str]:
    """Captions in a random order, equally many of each language."""
    captions = []
    for code, number in zip(LANGUAGES, _shares(num_captions), strict=True):
        rng, words = np.random.default_rng([seed + 1, *code.encode()]), Words.of(code)
        lengths = 1 + rng.poisson((WORDS_OF_JOINED_CAPTION if code in JOINED else WORDS_OF_CAPTION) - 1, number)
        drawn = words.draw(rng, int(lengths.sum()))
        ends = np.cumsum(lengths)
        captions += [_caption(drawn[first:end], words.space) for first, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]
    return [captions[i] for i in np.random.default_rng(seed).permutation(len(captions))]


def _caption(words: list[str], space: str) -> str:
    text = space.join(words)
    half = text.find(space, len(text) // 2) if space else len(text) // 2
    return (f"{text[:half]},{text[half:]}" if 0 < half < len(text) else text).capitalize() + "."


def _shares(number: int) -> list[int]:
    """The number in equal parts, one a language; the first ones take the rest."""
    part, rest = divmod(number, len(LANGUAGES))
    return [part + (i < rest) for i in range(len(LANGUAGES))]
