"""Inner loops, compiled by numba: what the letters and words of a caption say of its language, beside fastText.

N captions, C languages (columns), S classes of letters (`letters`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mc2.curation.compiled import compiled, compiled_without_nan, inlined
from mc2.curation.fasttext_kernel import exponentials
from mc2.curation.letters import LATIN, OTHER_SCRIPT

if TYPE_CHECKING:
    from mc2.curation.letters import Letters
    from mc2.curation.word_lists import WordTable

_HASH_START, _HASH_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_LEAST = np.float32(1e-6)  # a language that fastText does not list may be a tenth as likely as the least that it does
_DECADE = np.float32(np.log(10))
_CENTIBEL = np.float32(np.log(10) / 100)
# How a language stands to words. One without a list is taken to know each word a tenth as well as the language that knows it best; one that is no candidate
# as well as that, for its list is not loaded; and so is one without Latin letters, in whose captions Latin words may stand (brands and names).
LISTED, UNLISTED, NO_CANDIDATE, NO_LATIN = 0, 1, 2, 4
_NEVER = np.float32(-1e30)
STAYS, UNKNOWN_LANGUAGE, NO_METADATA = 0, 1, 2  # what `decide` says of a caption


@compiled
def decode(text: NDArray[np.uint8], at: int, end: int) -> tuple[Any, int]:
    """(code point, first byte of the next) of UTF-8 that is known to be right; never reads behind `end`."""
    byte = np.int64(text[at])
    if byte < 0x80:
        return byte, at + 1
    more = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    point = byte & (0x3F >> more)
    at += 1
    while more > 0 and at < end:
        point = point << 6 | np.int64(text[at]) & 0x3F
        at += 1
        more -= 1
    return point, at


@compiled
def hash_words(letters: Letters, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The hash of the lower-case code points of each word."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        h, at, end = _HASH_START, np.int64(offsets[i]), np.int64(offsets[i + 1])
        while at < end:
            point, at = decode(text, at, end)
            if point < len(letters.lower):
                h = (h ^ np.uint64(letters.lower[point])) * _HASH_PRIME
        hashes[i] = h
    return hashes


@compiled
def _slot(h: Any, mask: int) -> Any:
    """Where the search for a hash begins. FNV mixes short words badly; the golden ratio spreads them."""
    return np.int64((h * _GOLDEN) >> np.uint64(32)) & mask


@compiled
def hash_slots(hashes: NDArray[np.uint64], firsts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The slots of `WordTable` for words with these hashes and positions of their first numbers."""
    num_slots = 2
    while num_slots < 2 * len(hashes):
        num_slots *= 2
    slots = np.zeros(num_slots, np.uint64)
    for i in range(len(hashes)):
        slot = _slot(hashes[i], num_slots - 1)
        while slots[slot] != 0:
            slot = (slot + 1) & (num_slots - 1)
        slots[slot] = (hashes[i] << _HALF) | np.uint64(firsts[i] + 1)
    return slots


@compiled
def _words(
    letters: Letters,
    text: NDArray[np.uint8],
    at: int,
    end: int,
    classes: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    latin: NDArray[np.bool_],
) -> int:
    """Counts the letters of text[at:end] into classes (S), and writes each word's hash and whether its last letter is Latin; returns the number of words."""
    num, h, last = 0, _HASH_START, np.uint8(0)
    while at <= end:
        kind, point = np.uint8(0), np.int64(0)
        if at < end:
            point, at = decode(text, at, end)
            if point < len(letters.script):
                kind = letters.script[point]
        else:
            at += 1
        if kind > 0:
            classes[kind] += 1
            h = (h ^ np.uint64(letters.lower[point])) * _HASH_PRIME
            last = kind
        elif last > 0:
            hashes[num], latin[num] = h, last == LATIN
            num += 1
            h, last = _HASH_START, np.uint8(0)
    return num


@compiled
def _words_count(standing: NDArray[np.int8]) -> NDArray[np.int32]:
    """(4 x C) what of the sums in `_weigh_words` counts for a language, by how it stands to words."""
    counts = np.zeros((4, len(standing)), np.int32)
    for c in range(len(standing)):
        kind = standing[c]
        counts[0, c] = kind & NO_CANDIDATE > 0 and not kind & UNLISTED
        counts[1, c] = kind & UNLISTED > 0
        counts[2, c] = kind & (NO_LATIN | NO_CANDIDATE) > 0
        counts[3, c] = kind & UNLISTED > 0 and not kind & (NO_LATIN | NO_CANDIDATE)
    return counts


@compiled
def _weigh_words(
    table: WordTable,
    hashes: NDArray[np.uint64],
    latin: NDArray[np.bool_],
    standing: NDArray[np.int8],
    counts: NDArray[np.int32],
    centibels: NDArray[np.int32],
    gains: NDArray[np.float32],
) -> None:
    """Sets gains (C) to the nats that the words, given by their hashes, say for each language. counts (4 x C): see `_words_count`; centibels (C): room."""
    mask = len(table.slots) - 1
    centibels[:] = 0
    best, tenth, latin_best, latin_tenth = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
    for word in range(len(hashes)):
        slot = _slot(hashes[word], mask)
        while table.slots[slot] != 0 and (table.slots[slot] ^ (hashes[word] << _HALF)) >> _HALF != 0:
            slot = (slot + 1) & mask
        if table.slots[slot] == 0:
            continue  # in no list
        at = np.int64(table.slots[slot] & np.uint64(0xFFFFFFFF)) - 1
        largest_of_word = np.int32(table.numbers[at] & np.uint32(0xFFFF))
        if latin[word]:
            latin_best += largest_of_word
            latin_tenth += max(largest_of_word - np.int32(100), np.int32(0))
        else:
            best += largest_of_word
            tenth += max(largest_of_word - np.int32(100), np.int32(0))
        more = True
        while more:
            number = np.int64(table.numbers[at])
            more = number >> 31 == 0
            column = number >> 16 & 0x7FFF
            if not (latin[word] and standing[column] & NO_LATIN):
                centibels[column] += np.int32(number & 0xFFFF)
            at += 1
    for c in range(len(gains)):
        total = centibels[c] + best * counts[0, c] + tenth * counts[1, c] + latin_best * counts[2, c] + latin_tenth * counts[3, c]
        gains[c] = np.float32(total) * _CENTIBEL


@compiled
def _weigh_letters(
    own: NDArray[np.float32],
    foreign: NDArray[np.float32],
    classes: NDArray[np.int32],
    has_own: NDArray[np.float32],
    against: NDArray[np.float32],
    gains: NDArray[np.float32],
) -> None:
    """Takes 5 decades times the share of foreign letters from gains (C), and all from a language that has none of the letters. The others (C) are room."""
    has_own[:] = 0
    against[:] = 0
    total = np.float32(0)
    for kind in range(OTHER_SCRIPT, len(own)):
        if classes[kind] > 0:
            number = np.float32(classes[kind])
            total += number
            for c in range(len(gains)):
                has_own[c] += own[kind, c]
                against[c] += number * foreign[kind, c]
    loss = np.float32(5) * _DECADE / max(total, np.float32(1))
    for c in range(len(gains)):
        gains[c] = gains[c] - loss * against[c] if has_own[c] > 0 else _NEVER


@compiled_without_nan
def largest(values: NDArray[np.float32]) -> Any:
    """The largest of numbers none of which is nan: the order of comparisons does not matter, so that a processor does many at a time."""
    best = values[0]
    for c in range(1, len(values)):
        best = max(best, values[c])
    return best


@inlined
def _sum(values: NDArray[np.float32]) -> Any:
    """The sum, of every fourth number first: one after the other, each addition would wait for the one before."""
    first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    whole = len(values) & ~3
    for c in range(0, whole, 4):
        first += values[c]
        second += values[c + 1]
        third += values[c + 2]
        fourth += values[c + 3]
    for c in range(whole, len(values)):
        first += values[c]
    return (first + second) + (third + fourth)


@compiled
def weigh(
    letters: Letters,
    table: WordTable,
    text: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    own: NDArray[np.float32],
    foreign: NDArray[np.float32],
    standing: NDArray[np.int8],
    hint_gains: NDArray[np.float32],
    hint_of: NDArray[np.int32],
    probabilities: NDArray[np.float32],
) -> None:
    """Turns fastText's probabilities (N x C) into those that count letters, words and hints too: each row sums to 1, or is 0 where no language is left.

    own, foreign (S x C): see `letters.script_tables`; no rows where scripts are not to count. standing (C): how words count, the sum of the constants on top.
    hint_gains (H x C): nats; hint_of (N): the row of each caption's hint.
    """
    num_columns = probabilities.shape[1]
    classes, gains = np.zeros(256, np.int32), np.empty(num_columns, np.float32)
    has_own, against, powers = np.empty(num_columns, np.float32), np.empty(num_columns, np.float32), np.empty(num_columns, np.int32)
    counts, centibels = _words_count(standing), np.empty(num_columns, np.int32)
    longest = np.diff(offsets).max() if len(probabilities) else 0
    hashes, latin = np.empty(longest // 2 + 1, np.uint64), np.empty(longest // 2 + 1, np.bool_)
    for i in range(len(probabilities)):
        classes[:] = 0
        num_words = _words(letters, text, np.int64(offsets[i]), np.int64(offsets[i + 1]), classes, hashes, latin)
        _weigh_words(table, hashes[:num_words], latin[:num_words], standing, counts, centibels, gains)
        gains += hint_gains[hint_of[i]]
        row = probabilities[i]
        if len(own) > 0:
            _weigh_letters(own, foreign, classes, has_own, against, gains)
        best = largest(gains)
        for c in range(num_columns):
            row[c] = row[c] + _LEAST if gains[c] > _NEVER else np.float32(0)
            gains[c] -= best
        exponentials(gains, powers)
        for c in range(num_columns):
            row[c] *= gains[c]
        mass = _sum(row)
        if mass > 0:
            share = np.float32(1) / mass
            for c in range(num_columns):
                row[c] *= share


@compiled
def decide(
    posterior: NDArray[np.float32],
    num_candidates: int,
    least: Any,
    language: NDArray[np.int16],
    score: NDArray[np.float32],
    drop: NDArray[np.uint8],
) -> None:
    """The columns of `language_id.Identified`: the best candidate (the first columns) if it has the least score, else why not, and the best of all languages."""
    for i in range(len(posterior)):
        row = posterior[i]
        best = _argmax(row, num_candidates)
        if row[best] >= least:
            language[i], score[i], drop[i] = best, row[best], STAYS
        else:
            best = _argmax(row, len(row))
            language[i], score[i] = best if row[best] > 0 else -1, row[best]
            drop[i] = UNKNOWN_LANGUAGE if best < num_candidates else NO_METADATA


@inlined
def _argmax(row: NDArray[np.float32], num: int) -> Any:
    """Position of the largest of the first `num`, the first of equal ones."""
    best = 0
    for c in range(1, num):
        if row[c] > row[best]:
            best = c
    return best
