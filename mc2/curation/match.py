"""Which entries occur in a caption (RECIPE 1.4): one Aho-Corasick automaton per language, all overlapping matches, ids unique.

The caption gets a space at both ends and around each of , . ; : ? ! ` and an entry gets a space at an end that is a letter of a spaced script: whole words
there, plain substrings where the script has no spaces. Two gaps of the published rule are closed by default and kept by `rule="published"`: kana count as a
script without spaces, and the marks inside an entry get the same spaces as in captions ("St. Lucia" can match).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import daachorse
import numpy as np
from numpy.typing import NDArray

from mc2 import storage
from mc2.metadata.entries import Metadata

MatchRule = Literal["mc2", "published"]

SPACED_MARKS = ",.;:?!`"
_SPACING = str.maketrans({"\t": " ", "\n": " ", **{mark: f" {mark} " for mark in SPACED_MARKS}})

# First and last code points of the scripts that are written without spaces.
_UNSPACED = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # CJK ideographs
    (0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Burmese
    (0x1780, 0x17FF), (0x19E0, 0x19FF),  # Khmer
)  # fmt: skip
_KANA = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))  # with the iteration marks


def spaced_caption(caption: str) -> str:
    """The caption as the automaton reads it."""
    return f" {caption.translate(_SPACING)} "


def spaced_entries(entries: Sequence[str], rule: MatchRule = "mc2") -> list[str]:
    """The patterns that entries are searched as."""
    ends = {entry[0] for entry in entries} | {entry[-1] for entry in entries}  # few characters, many entries
    space = {character: "" if _needs_no_space(character, rule) else " " for character in ends}
    spacing = _SPACING if rule == "mc2" else {}
    return [f"{space[e[0]]}{e if e.isalnum() else e.translate(spacing)}{space[e[-1]]}" for e in entries]


def _needs_no_space(character: str, rule: MatchRule) -> bool:
    if character.isascii():
        return character in string.punctuation
    ranges = _UNSPACED if rule == "published" else _UNSPACED + _KANA
    return any(first <= ord(character) <= last for first, last in ranges) or unicodedata.category(character)[0] == "P"


class Matcher:
    """Entry ids of captions of one language."""

    def __init__(self, automaton: daachorse.CharwiseDoubleArrayAhoCorasick) -> None:
        self._find = automaton.find_overlapping

    @classmethod
    def build(cls, entries: Sequence[str], rule: MatchRule = "mc2") -> Matcher:
        """The matcher of an entry list; an id is the entry's position."""
        return cls(_build(entries, rule))

    def __call__(self, caption: str) -> NDArray[np.int32]:
        """Sorted unique ids of the entries that occur in the caption."""
        ids = {match[2] for match in self._find(spaced_caption(caption))}
        return np.array(sorted(ids), dtype=np.int32)


def _build(entries: Sequence[str], rule: MatchRule) -> daachorse.CharwiseDoubleArrayAhoCorasick:
    return daachorse.CharwiseDoubleArrayAhoCorasick(spaced_entries(entries, rule))


# --- the cache ----------------------------------------------------------------------------------------------------------


def automaton_file(cache: Path, metadata: Metadata, language: str, rule: MatchRule) -> Path:
    """Where the automaton of a language is kept: the name holds everything that it depends on."""
    mark = storage.fingerprint([metadata.sha256[language], rule, version("daachorse")])
    return cache / f"{language}-{mark}.daachorse"


def build_automaton(cache: Path, metadata: Metadata, language: str, rule: MatchRule) -> None:
    """Build and keep the automaton of a language, unless it is there. The library's own serialisation: plain arrays, checked when they are read."""
    path = automaton_file(cache, metadata, language, rule)
    if not path.exists():
        storage.write_bytes(path, _build(metadata.entries(language), rule).serialize())


def load_matcher(cache: Path, metadata: Metadata, language: str, rule: MatchRule) -> Matcher:
    """The matcher of a language, from the cache or built anew where the cache has none or a broken one."""
    path = automaton_file(cache, metadata, language, rule)
    try:
        return Matcher(daachorse.CharwiseDoubleArrayAhoCorasick.deserialize(path.read_bytes()))
    except (FileNotFoundError, ValueError):
        return Matcher.build(metadata.entries(language), rule)
