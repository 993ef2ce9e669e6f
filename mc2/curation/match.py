"""Which entries occur in captions (RECIPE 1.4): one automaton per language, all overlapping matches, ids unique.

The caption gets a space at both ends and around each of , . ; : ? ! ` and an entry gets a space at an end that is a letter of a spaced script: whole words
there, plain substrings where the script has no spaces. Two gaps of the published rule are closed by default and kept by `rule="published"`: kana count as a
script without spaces, and the marks inside an entry get the same spaces as in captions ("St. Lucia" can match).
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.automaton import COPY, SPACE, SPACES_AROUND, VERSION, Automaton
from mc2.metadata.entries import Metadata
from mc2.metadata.tokens import KANA, UNSPACED

MatchRule = Literal["mc2", "published"]

SPACED_MARKS = ",.;:?!`"
_SPACING = str.maketrans({"\t": " ", "\n": " ", **{mark: f" {mark} " for mark in SPACED_MARKS}})

_TREATMENT_OF = {mark: SPACES_AROUND for mark in SPACED_MARKS} | {"\t": SPACE, "\n": SPACE}
BYTE_TREATMENT = np.array([_TREATMENT_OF.get(chr(byte), COPY) for byte in range(256)], np.uint8)  # the same rule for the bytes of UTF-8


def spaced_caption(caption: str) -> str:
    """The caption as it is searched. The automaton does this by itself, by `BYTE_TREATMENT`."""
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
    ranges = UNSPACED if rule == "published" else UNSPACED + KANA
    return any(first <= ord(character) <= last for first, last in ranges) or unicodedata.category(character)[0] == "P"


class Matcher:
    """Entry ids of captions of one language."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton

    @classmethod
    def build(cls, entries: Sequence[str], rule: MatchRule = "mc2") -> Matcher:
        """The matcher of an entry list; an id is the entry's position."""
        return cls(Automaton.build(spaced_entries(entries, rule)))

    def __call__(self, captions: pa.Array, rows: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(number of ids of each caption, all ids one after the other: sorted and unique in each caption) of the captions `rows`, all by default."""
        return self.automaton.find(captions, np.arange(len(captions)) if rows is None else rows, BYTE_TREATMENT)


# --- the cache ----------------------------------------------------------------------------------------------------------


def automaton_file(cache: Path, metadata: Metadata, language: str, rule: MatchRule) -> Path:
    """Where the automaton of a language is kept: the name ends with a mark that stands for all that it depends on."""
    return cache / f"{language}-{_mark(metadata, language, rule)}.automaton"


def _mark(metadata: Metadata, language: str, rule: MatchRule) -> str:
    return storage.fingerprint([metadata.sha256[language], rule, VERSION])


def load_matcher(cache: Path, metadata: Metadata, language: str, rule: MatchRule) -> Matcher:
    """The matcher of a language: its automaton is mapped from the cache, and built for it first where the cache has none, or a damaged one.

    Errors: ValueError if it must be built and the entry list has changed since the metadata were built, or the disk is full.
    """
    path, mark = automaton_file(cache, metadata, language, rule), _mark(metadata, language, rule)
    try:
        return Matcher(Automaton.open(path, mark))
    except (FileNotFoundError, ValueError):
        Automaton.build(spaced_entries(metadata.entries(language), rule)).save(path, mark)
        return Matcher(Automaton.open(path, mark))
