"""How often each language uses a word: the lists of wordfreq (42 languages) as one table that the compiled code reads.

A list has the words that are seen at least once in a million. What it says of a word is frequency / floor in centibels (hundredths of a decade, as wordfreq
keeps them), with a floor of a tenth of that for words that are not in the list, so every number is positive and a missing word says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FLOOR_DECADES = 7
_NO_TEXT = np.frombuffer(b"\0", np.uint8)  # read-only, as Arrow's buffers are: numba compiles once more for what can be written


class WordTable(NamedTuple):
    """Words by the hash of their lower-case letters, in an open-addressing table of 2^k slots, at most half of them taken.

    Few bytes, as every word of every caption is looked up here: a slot has half of the hash (another half says where the search begins) and the position of the
    word's first number. The numbers of one word lie together, the largest first; the words that are said most come first.
    """

    slots: NDArray[np.uint64]  # hash & 2^32 - 1 above 1 + position; 0 for a free slot
    numbers: NDArray[np.uint32]  # from the highest bit: 1 for the last of a word; 15 bits of language; 16 bits of centibels


def listed_languages() -> dict[str, str]:
    """Canonical code -> wordfreq's own, of the languages that have a list; Bosnian, Croatian and Serbian (in Latin letters) share one."""
    from mc2.metadata.unigrams import wordlist_codes

    codes = wordlist_codes("small")
    return {**dict.fromkeys(("bs", "hr", "sr"), codes["sh"]), **codes}


@lru_cache(maxsize=2)
def word_table(codes: Sequence[str | None]) -> WordTable:
    """The table of languages given by wordfreq's codes, None for a language without list; a language's column is its position."""
    from mc2.curation.evidence_kernel import hash_slots, hash_words
    from mc2.curation.letters import letters

    listed = [(column, *_words(code)) for column, code in enumerate(codes) if code]
    hashes = np.concatenate([np.zeros(0, np.uint64), *(hash_words(letters(), *buffers) for _, buffers, _ in listed)])
    columns = np.concatenate([np.zeros(0, np.uint32), *(np.full(len(gains), column, np.uint32) for column, _, gains in listed)])
    gains = np.concatenate([np.zeros(0, np.int64), *(gains for _, _, gains in listed)])
    order = np.lexsort((columns, -gains, hashes))  # by word, its largest number first
    hashes, numbers, gains = hashes[order], (columns << np.uint32(16) | gains.astype(np.uint32))[order], gains[order]
    firsts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(firsts, len(hashes)))
    numbers[firsts + sizes - 1] |= np.uint32(1 << 31)
    words = np.lexsort((hashes[firsts], -gains[firsts]))  # most said first
    starts = np.cumsum(sizes[words]) - sizes[words]
    order = np.repeat(firsts[words] - starts, sizes[words]) + np.arange(len(hashes))
    return WordTable(hash_slots(hashes[firsts][words], starts), numbers[order])


def _words(code: str) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.int64]]:
    """(bytes, offsets) of the words of a list, and the centibels that each of them says."""
    import wordfreq

    by_centibel = wordfreq.get_frequency_list(code, "small")
    wordfreq.get_frequency_list.cache_clear()  # megabytes of strings
    words = pa.array([word for group in by_centibel for word in group], pa.string())
    centibels = np.repeat(100 * FLOOR_DECADES - np.arange(len(by_centibel)), [len(group) for group in by_centibel])
    return arrow_text(words), np.maximum(centibels, 0)


def arrow_text(strings: pa.StringArray | pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(bytes, N + 1 offsets) of N strings; the bytes are not copied. Nulls are empty."""
    _, offsets, text = strings.buffers()
    if not len(strings) or text is None or not text.size:
        return _NO_TEXT, np.zeros(len(strings) + 1, np.int64)
    dtype = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    return np.frombuffer(text, np.uint8), np.frombuffer(offsets, dtype)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
