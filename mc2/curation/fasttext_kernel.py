"""The inner loops of fastText's classifier, compiled by numba: from the UTF-8 of captions to probabilities of labels, some microseconds each.

What a caption turns into is fastText's own rule (src/dictionary.cc, 0.9): words end at space, \\n, \\r, \\t, \\v, \\f and \\0; a word of the dictionary gives
its own row of the input matrix; every word gives the rows of the n-grams of characters of "<word>"; n-grams of words give rows too where the model has them;
the line ends with the word "</s>". N captions; for D, L, R, O see `fasttext_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mc2.curation.compiled import compiled, inlined

if TYPE_CHECKING:
    from mc2.curation.fasttext_model import Features

_FNV_START, _FNV_PRIME, _32_BITS = np.uint64(2166136261), np.uint64(16777619), np.uint64(0xFFFFFFFF)
_WORD_PRIME = np.uint64(116049371)
_END_OF_LINE = np.frombuffer(b"</s>", np.uint8)
_END_OF_LINE_HASH = np.uint64(0xFFFFFFFFD79C9359)  # of </s>, extended from 32 signed bits
_LABEL = np.frombuffer(b"__label__", np.uint8)
_LEAST = np.float32(1e-5)  # fastText adds this to every probability before its logarithm, and lists no label below it


_SEPARATOR = np.isin(np.arange(256), [0, 9, 10, 11, 12, 13, 32])  # ends a word
_LESS, _GREATER = np.uint32(60), np.uint32(62)  # "<" and ">" stand around a word


class Room(NamedTuple):
    """Where a caption is taken apart: its words with their < and >, character by character, C characters in all."""

    bytes_4C: NDArray[np.uint32]  # the bytes of each character, as they are hashed
    sizes: NDArray[np.uint32]  # how many it has
    left: NDArray[np.int32]  # characters to the end of its word, itself included
    inner: NDArray[np.int32]  # 1, or 0 for < and >, which are no n-grams by themselves
    hashes: NDArray[np.uint32]  # of the n-grams that begin with it
    buckets: NDArray[np.uint32]  # of those n-grams
    words: NDArray[np.uint64]  # hashes of the words


@compiled
def _room(num_bytes: int) -> Room:
    """Enough for a text of so many bytes: one of single letters and spaces has a word for two bytes and three characters for a letter."""
    num = 2 * num_bytes + 4
    return Room(
        np.zeros((4, num), np.uint32),
        np.zeros(num, np.uint32),
        np.zeros(num, np.int32),
        np.zeros(num, np.int32),
        np.zeros(num, np.uint32),
        np.zeros(num, np.uint32),
        np.zeros(num, np.uint64),
    )


@compiled
def _hash_byte(h: Any, byte: Any) -> Any:
    """FNV-1a, 32 bits, one byte on."""
    return ((h ^ _signed(byte)) * _FNV_PRIME) & _32_BITS


@compiled
def _signed(byte: Any) -> Any:
    """A byte as fastText hashes it: signed, in 32 bits."""
    return np.uint64(np.int64(np.int8(byte))) & _32_BITS


@compiled
def scan_dictionary(data: NDArray[np.uint8], at: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """First byte and end of each of `size` words, their counts, and where the dictionary ends; -1 if it does not."""
    starts, ends, counts = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size, np.int64)
    for i in range(size):
        starts[i] = at
        while at < len(data) and data[at] != 0:
            at += 1
        ends[i] = at
        if at + 10 > len(data):
            return starts, ends, counts, -1
        count = np.int64(0)
        for byte in range(8):
            count |= np.int64(data[at + 1 + byte]) << (8 * byte)
        counts[i] = count
        at += 10  # zero, count, type
    return starts, ends, counts, at


@compiled
def build_slots(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """An open-addressing table of the words: 2^k slots, at most half of them taken, each with hash << 32 | number + 1, or 0 for a free one."""
    num_slots = 2
    while num_slots < 2 * len(starts):
        num_slots *= 2
    slots = np.zeros(num_slots, np.uint64)
    for i in range(len(starts)):
        h = _FNV_START
        for at in range(starts[i], ends[i]):
            h = _hash_byte(h, data[at])
        slot = np.int64(h) & (num_slots - 1)
        while slots[slot] != 0:
            slot = (slot + 1) & (num_slots - 1)
        slots[slot] = h << np.uint64(32) | np.uint64(i + 1)
    return slots


@inlined
def _find_word(f: Features, h: Any, text: NDArray[np.uint8], start: int, end: int) -> Any:
    """Number of the word or label text[start:end] with hash h, -1 if the dictionary has none."""
    mask, found = len(f.slots) - 1, np.int64(-1)
    slot = np.int64(h) & mask
    while found < 0 and f.slots[slot] != 0:
        if f.slots[slot] >> np.uint64(32) == h:
            number = np.int64(f.slots[slot] & _32_BITS) - 1
            first, size = f.word_starts[number], end - start
            i = 0
            while i < size and f.word_bytes[first + i] == text[start + i]:  # stops at the word's end: it has a zero, the text has none
                i += 1
            if i == size and f.word_bytes[first + size] == 0:
                found = number
        slot = (slot + 1) & mask
    return found


@inlined
def _has_row(f: Features, bucket: Any) -> Any:
    """1 if the bucket has a row of the input matrix, 0 if pruning left none."""
    return (f.kept[bucket >> np.uint64(6)] >> (bucket & np.uint64(63))) & np.uint64(1)


@inlined
def _row_of_bucket(f: Features, bucket: Any) -> Any:
    """Row of the input matrix of a bucket that has one."""
    x = f.kept[bucket >> np.uint64(6)] & ((np.uint64(1) << (bucket & np.uint64(63))) - np.uint64(1))  # then: the number of its bits
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    x = (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return f.num_words + f.kept_before[bucket >> np.uint64(6)] + np.int64(x)


@inlined
def _starts_with(text: NDArray[np.uint8], start: int, end: int, what: NDArray[np.uint8]) -> bool:
    if end - start < len(what):
        return False
    for i in range(len(what)):  # noqa: SIM110  (numba knows no `all` of a generator)
        if text[start + i] != what[i]:
            return False
    return True


@inlined
def _add_character(room: Room, num: int, byte: Any, inner: int) -> int:
    """Puts a character that begins with a byte behind the first `num`; returns their new number."""
    room.bytes_4C[0, num] = byte
    room.sizes[num], room.inner[num] = 1, inner
    return num + 1


@inlined
def _character_ngrams(f: Features, room: Room, num: int, most_bytes: int, rows: NDArray[np.int64], count: int) -> int:
    """Appends the rows of the n-grams of the first `num` characters, which have at most so many bytes, to rows[:count]; returns the new count.

    All n-grams of one length are hashed together, byte by byte: loops without branches, which a processor does for many characters at a time.
    """
    hashes, buckets, sizes, left = room.hashes, room.buckets, room.sizes, room.left
    first = count
    hashes[:num] = np.uint32(_FNV_START)
    for n in range(f.maxn):  # the n-gram that begins with character c gets its character c + n
        for byte in range(most_bytes):
            values = room.bytes_4C[byte]
            for c in range(num - n):
                h = np.uint32((hashes[c] ^ values[c + n]) * np.uint32(_FNV_PRIME))
                hashes[c] = h if np.uint32(byte) < sizes[c + n] else hashes[c]
        if n + 1 >= f.minn:
            _remainders(hashes, num - n, f.bucket, buckets)
            reach = left if n > 0 else room.inner
            for c in range(num - n):  # each is written; the next one takes the place of one that is no n-gram or has no row
                rows[count] = buckets[c]
                count += int(reach[c] > n) & int(_has_row(f, np.uint64(buckets[c])))
    for i in range(first, count):
        rows[i] = _row_of_bucket(f, np.uint64(rows[i]))
    return count


@inlined
def _remainders(values: NDArray[np.uint32], num: int, divisor: int, remainders: NDArray[np.uint32]) -> None:
    """values % divisor, by a product with 1 / divisor: many at a time, where a division is one after the other. The quotient may be one off."""
    inverse = 1 / np.float64(divisor)
    for i in range(num):
        rest = np.int64(values[i]) - np.int64(np.float64(values[i]) * inverse) * divisor
        rest = rest + divisor if rest < 0 else rest
        remainders[i] = np.uint32(rest - divisor if rest >= divisor else rest)


@compiled
def _word_ngrams(f: Features, hashes: NDArray[np.uint64], num_words: int, rows: NDArray[np.int64], count: int) -> int:
    """Appends the rows of the n-grams of words, given as hashes extended from 32 signed bits; returns the new count."""
    for i in range(num_words):
        h = hashes[i]
        for j in range(i + 1, min(num_words, i + f.word_ngrams)):
            h = h * _WORD_PRIME + hashes[j]
            bucket = h % np.uint64(f.bucket)
            if _has_row(f, bucket):
                rows[count] = _row_of_bucket(f, bucket)
                count += 1
    return count


@compiled
def _caption_rows(f: Features, text: NDArray[np.uint8], at: int, end: int, room: Room, rows: NDArray[np.int64]) -> int:
    """Rows of the input matrix of the caption text[at:end]; returns how many there are."""
    count, num_words, num_characters, most_bytes = 0, 0, 0, 1
    while True:
        while at < end and _SEPARATOR[text[at]]:
            at += 1
        if at == end:
            break
        start, first, h = at, num_characters, _FNV_START
        num_characters = _add_character(room, num_characters, _LESS, 0)
        while at < end and not _SEPARATOR[text[at]]:
            value = _signed(text[at])
            h = ((h ^ value) * _FNV_PRIME) & _32_BITS
            last = num_characters - 1
            if (text[at] & 0xC0) != 0x80 or room.sizes[last] == 4:
                num_characters = _add_character(room, num_characters, np.uint32(value), 1)
            else:
                room.bytes_4C[room.sizes[last], last] = np.uint32(value)
                room.sizes[last] += np.uint32(1)
                most_bytes = max(most_bytes, int(room.sizes[last]))
            at += 1
        number = _find_word(f, h, text, start, at)
        if number >= f.num_words or (number < 0 and _starts_with(text, start, at, _LABEL)):
            num_characters = first
            continue  # a label in the text is no word
        if at - start == len(_END_OF_LINE) and _starts_with(text, start, at, _END_OF_LINE):
            num_characters = first
            break  # fastText reads no further
        num_characters = _add_character(room, num_characters, _GREATER, 0)
        for c in range(first, num_characters):
            room.left[c] = num_characters - c
        room.words[num_words] = h | np.uint64(0xFFFFFFFF00000000) if h >> np.uint64(31) else h
        num_words += 1
        if number >= 0:
            rows[count] = number
            count += 1
    if f.maxn > 0 and f.bucket > 0:
        count = _character_ngrams(f, room, num_characters, most_bytes, rows, count)
    if f.end_of_line >= 0:
        rows[count] = f.end_of_line
        count += 1
    if f.word_ngrams > 1 and f.bucket > 0:
        room.words[num_words] = _END_OF_LINE_HASH
        count = _word_ngrams(f, room.words, num_words + 1, rows, count)
    return count


@compiled
def hidden_layer(
    f: Features, matrix: NDArray[np.float32], text: NDArray[np.uint8], offsets: NDArray[np.int64], hidden: NDArray[np.float32]
) -> None:
    """The mean of the input rows of each caption text[offsets[i]:offsets[i + 1]], into hidden (N x D); zeros where there is no row."""
    longest = np.int64(0)
    for i in range(len(offsets) - 1):
        longest = max(longest, np.int64(offsets[i + 1] - offsets[i]))
    room = _room(longest)
    most_per_character = max(f.maxn, 1) + max(f.word_ngrams, 1)
    rows = np.empty(
        (2 * longest + 2) * most_per_character, np.int64
    )  # a word of one byte has three with its < and >, and a space behind it
    for i in range(len(offsets) - 1):
        count = _caption_rows(f, text, np.int64(offsets[i]), np.int64(offsets[i + 1]), room, rows)
        mean = hidden[i]
        mean[:] = 0
        for j in range(count):
            row = rows[j]
            for d in range(len(mean)):
                mean[d] += matrix[row, d]
        for d in range(len(mean)):
            mean[d] /= max(count, 1)


@compiled
def _outputs(hidden: NDArray[np.float32], output: NDArray[np.float32], values: NDArray[np.float32]) -> None:
    """hidden (D) @ output (D x O), in an order of sums that a processor can do side by side."""
    values[:] = 0
    for d in range(len(hidden)):
        h = hidden[d]
        for o in range(len(values)):
            values[o] += h * output[d, o]


@compiled
def exponentials(values: NDArray[np.float32], powers: NDArray[np.int32]) -> None:
    """exp of each, in place, within 2e-7 of it: 2^k times a polynomial. A library's exp is slower and differs from machine to machine.

    `powers` is room for 2^k, as the bits of float32.
    """
    for o in range(len(values)):
        x = min(max(values[o], np.float32(-87)), np.float32(87))
        k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
        r = x - k * np.float32(0.693359375) - k * np.float32(-2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        values[o] = p * r * r + r + np.float32(1)
        powers[o] = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))
    scale = powers.view(np.float32)
    for o in range(len(values)):
        values[o] *= scale[o]


@compiled
def tree_probabilities(
    hidden: NDArray[np.float32],
    output: NDArray[np.float32],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    column: NDArray[np.int32],
    probabilities: NDArray[np.float32],
) -> None:
    """Hierarchical softmax: the product along the path from the root, 0 below 1e-5, where fastText lists no label.

    column (L): the column of probabilities (N x columns) that a label's probability is added to.
    """
    num_labels = len(left) + 1
    values, powers, reach = np.empty(len(left), np.float32), np.empty(len(left), np.int32), np.empty(2 * num_labels - 1, np.float32)
    for i in range(len(hidden)):
        _outputs(hidden[i], output, values)
        exponentials(values, powers)
        reach[2 * num_labels - 2] = 1
        for node in range(len(left) - 1, -1, -1):
            p = reach[num_labels + node]
            p = p if p >= _LEAST else np.float32(0)
            to_left = np.float32(1) / (np.float32(1) + values[node])
            reach[left[node]] = p * (to_left + _LEAST)
            reach[right[node]] = p * (np.float32(1) - to_left + _LEAST)
        probabilities[i, :] = 0
        for label in range(num_labels):
            probabilities[i, column[label]] += reach[label] if reach[label] >= _LEAST else np.float32(0)


@compiled
def softmax_probabilities(
    hidden: NDArray[np.float32], output: NDArray[np.float32], column: NDArray[np.int32], probabilities: NDArray[np.float32]
) -> None:
    """Softmax with fastText's own 1e-5 added; `column` and `probabilities` as above."""
    values, powers = np.empty(len(column), np.float32), np.empty(len(column), np.int32)
    for i in range(len(hidden)):
        _outputs(hidden[i], output, values)
        values -= values.max()
        exponentials(values, powers)
        total = np.float32(0)
        for label in range(len(values)):
            total += values[label]
        probabilities[i, :] = 0
        for label in range(len(values)):
            probabilities[i, column[label]] += values[label] / total + _LEAST
