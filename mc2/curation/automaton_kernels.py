"""The loops of `mc2.curation.automaton` as machine code. Imported inside functions: numba takes more than a second.

Legend: P sorted patterns; pattern p is data[starts[p]:starts[p + 1]]. S slots of the double array `nodes` (S, 2): base and parent. The child of slot s by byte c
is the slot (base >> 1) ^ c, if that slot's parent is s. The lowest bit of a base says that a pattern ends here; the child by END is the leaf that has it. The
base of a leaf is negative, the complement of a position in `records`: only this pattern (and those equal to it) goes on from here.
A record: number of the pattern (4 bytes, little-endian; the highest bit says that the next record is of an equal pattern), size of the tail (2 bytes), tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc2.curation.automaton import COPY, SPACE
from mc2.curation.compiled import compiled, inlined

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Flags = NDArray[np.bool_]

END = 0xFF  # a byte that UTF-8 never has
BASE, PARENT, NEXT, LAST = 0, 1, 2, 3  # columns of the nodes; the last two, of the ring of free slots, only while they are built
FREE, ROOT = -1, -2  # in place of a parent
BLOCK = 256  # slots that differ in their last byte only: all children of a node are in one block
HEAD = 6  # bytes of a record before the tail
MORE = 1 << 31
OPEN_BLOCKS = 16  # an older block takes no more nodes: to try its last gaps costs more time than they save memory

# --- build --------------------------------------------------------------------------------------------------------------


@compiled
def equal_to_next(data: Bytes, starts: Longs) -> Flags:
    """(P) whether the next pattern is equal."""
    equal = np.zeros(len(starts) - 1, np.bool_)
    for p in range(len(equal) - 1):
        size = starts[p + 1] - starts[p]
        equal[p] = starts[p + 2] - starts[p + 1] == size
        for i in range(size if equal[p] else 0):
            if data[starts[p] + i] != data[starts[p + 1] + i]:
                equal[p] = False
                break
    return equal


@compiled
def build_nodes(data: Bytes, starts: Longs, equal: Flags) -> tuple[Ints, Ints]:
    """The nodes (S, 2), whose leaves have numbers of patterns yet, and of each pattern the number of bytes that are in them; the rest is its tail.

    A node is a range of patterns with a common prefix, from the root (all of them) downwards.
    """
    num = len(equal)
    nodes, num_slots = _with_block(np.zeros((BLOCK, 4), np.int32), 0)  # slot 0 is the root, and the head of the ring
    depths = np.zeros(num, np.int32)
    stack, height = np.zeros((1024, 4), np.int64), 1  # slot, first pattern, the one behind the last, depth
    stack[0, 2] = num
    labels, firsts = np.zeros(BLOCK, np.int32), np.zeros(BLOCK + 1, np.int64)
    while height and num:
        height -= 1
        slot, low, high, depth = stack[height]
        count = _children(data, starts, low, high, depth, labels, firsts)
        base = _fitting_base(nodes, labels, count)
        if base == FREE:
            nodes, num_slots = _with_block(nodes, num_slots)
            base = (num_slots - BLOCK) ^ labels[0]
        nodes[slot, BASE] = base << 1 | (labels[0] == END)
        if height + count > len(stack):
            stack = _twice(stack)
        for k in range(count):
            child, first, last = base ^ labels[k], firsts[k], firsts[k + 1]
            _take(nodes, child, slot)
            taken = depth + (labels[k] != END)
            if _all(equal, first, last - 1):
                nodes[child, BASE] = ~first
                for p in range(first, last):
                    depths[p] = taken
            else:
                stack[height, 0], stack[height, 1], stack[height, 2], stack[height, 3] = child, first, last, taken
                height += 1
    return nodes[:num_slots, :2], depths


@compiled
def _twice(rows: NDArray[np.signedinteger[Any]]) -> NDArray[np.signedinteger[Any]]:
    """The rows (N, 4), with as many more behind them."""
    larger = np.zeros((2 * len(rows), 4), rows.dtype)
    for i in range(len(rows)):
        for k in range(4):
            larger[i, k] = rows[i, k]
    return larger


@compiled
def _all(flags: Flags, first: int, behind: int) -> bool:
    """True if all of flags[first:behind] are."""
    while first < behind and flags[first]:
        first += 1
    return first >= behind


@compiled
def _children(data: Bytes, starts: Longs, low: int, high: int, depth: int, labels: Ints, firsts: Longs) -> int:
    """Number of children of the node of patterns low..high; their bytes go to `labels`, their first patterns to `firsts` (and `high` behind them).

    Patterns that end here come first, as the sorting puts them.
    """
    count, label = 0, -1
    for p in range(low, high):
        own = END if starts[p + 1] - starts[p] == depth else data[starts[p] + depth]
        if own != label:
            label = own
            labels[count], firsts[count] = label, p
            count += 1
    firsts[count] = high
    return count


@compiled
def _fitting_base(nodes: Ints, labels: Ints, count: int) -> Any:
    """A base under which the slots of all `count` labels are free, or FREE."""
    slot = nodes[0, NEXT]
    while slot != 0:
        base = slot ^ labels[0]
        fits = True
        for k in range(1, count):
            fits = fits and nodes[base ^ labels[k], PARENT] == FREE
        if fits:
            return base
        slot = nodes[slot, NEXT]
    return FREE


@compiled
def _with_block(nodes: Ints, num_slots: int) -> tuple[Ints, int]:
    """The nodes with one block of free slots more, and the number of slots; the oldest open block is closed."""
    if num_slots == len(nodes):
        nodes = _twice(nodes)
    for slot in range(max(1, num_slots - OPEN_BLOCKS * BLOCK), num_slots - (OPEN_BLOCKS - 1) * BLOCK):
        if nodes[slot, PARENT] == FREE:
            _take(nodes, slot, FREE)
    for slot in range(max(1, num_slots), num_slots + BLOCK):
        last = nodes[0, LAST]
        nodes[slot, PARENT], nodes[slot, LAST], nodes[slot, NEXT] = FREE, last, 0
        nodes[last, NEXT] = nodes[0, LAST] = slot
    if num_slots == 0:
        nodes[0, PARENT] = ROOT
    return nodes, num_slots + BLOCK


@compiled
def _take(nodes: Ints, slot: int, parent: int) -> None:
    """Give a free slot to a parent; with FREE for one, only take it out of the ring."""
    following, last = nodes[slot, NEXT], nodes[slot, LAST]
    nodes[last, NEXT], nodes[following, LAST] = following, last
    nodes[slot, PARENT] = parent


@compiled
def build_records(data: Bytes, starts: Longs, equal: Flags, depths: Ints, numbers: Ints, nodes: Ints) -> Bytes:
    """The records of the patterns, of which `numbers` are reported; the leaves of the nodes get their positions."""
    positions = np.zeros(len(depths) + 1, np.int64)
    for p in range(len(depths)):
        tail = 0 if p > 0 and equal[p - 1] else starts[p + 1] - starts[p] - depths[p]
        positions[p + 1] = positions[p] + HEAD + tail
    records = np.zeros(positions[-1], np.uint8)
    for p in range(len(depths)):
        position, size = positions[p], positions[p + 1] - positions[p] - HEAD
        number = numbers[p] | (MORE if equal[p] else 0)
        for i in range(4):
            records[position + i] = (number >> 8 * i) & 0xFF
        records[position + 4], records[position + 5] = size & 0xFF, size >> 8
        for i in range(size):
            records[position + HEAD + i] = data[starts[p] + depths[p] + i]
    for slot in range(len(nodes)):
        if nodes[slot, PARENT] != FREE and nodes[slot, BASE] < 0:
            nodes[slot, BASE] = ~positions[~nodes[slot, BASE]]
    return records


# --- find ---------------------------------------------------------------------------------------------------------------

MANY = 4096  # matches of one caption from which on they are made unique in between, so that memory is bounded by the number of patterns


@compiled
def find(nodes: Ints, records: Bytes, treatment: Bytes, data: Bytes, starts: Longs, rows: Longs) -> tuple[Ints, Ints]:
    """(number of patterns in each of the R captions `rows`, their numbers one after the other; sorted and unique in each caption).

    Caption r is data[starts[r]:starts[r + 1]], valid UTF-8. treatment (256): what becomes of a byte of a caption (`mc2.curation.automaton`).
    """
    lengths = np.zeros(len(rows), np.int32)
    found, total = np.zeros(16 * len(rows) + MANY, np.int32), 0
    text = np.zeros(0, np.uint8)
    root = nodes[0, BASE] >> 1
    for r in range(len(rows)):
        start, stop = starts[rows[r]], starts[rows[r] + 1]
        if len(text) < 3 * (stop - start) + 2:
            text = np.zeros(4 * (stop - start) + 4096, np.uint8)
        size = _spaced(data, start, stop, treatment, text)
        first, many = total, total + MANY
        for place in range(size):
            slot = root ^ text[place]
            if nodes[slot, PARENT] != 0:  # most places, where the script has spaces
                continue
            behind = _walk(nodes, records, slot, text, size, place + 1, found, total)
            if behind > len(found):  # there was no room: once more
                larger = np.zeros(2 * behind, np.int32)
                for i in range(total):
                    larger[i] = found[i]
                found = larger
                behind = _walk(nodes, records, slot, text, size, place + 1, found, total)
            total = behind
            if total > many:
                total = _sorted_unique(found, first, total)
                many = max(total + MANY, 2 * total - first)
        total = _sorted_unique(found, first, total)
        lengths[r] = total - first
    return lengths, found[:total]


@inlined
def _spaced(data: Bytes, start: int, stop: int, treatment: Bytes, text: Bytes) -> int:
    """Write the caption as it is searched to `text`: with a space at both ends and around marks. Returns its number of bytes."""
    text[0] = 32
    size = 1
    for i in range(start, stop):
        byte = data[i]
        kind = treatment[byte]
        if kind == COPY:
            text[size] = byte
            size += 1
        elif kind == SPACE:
            text[size] = 32
            size += 1
        else:
            text[size] = text[size + 2] = 32
            text[size + 1] = byte
            size += 3
    text[size] = 32
    return size + 1


@inlined
def _walk(nodes: Ints, records: Bytes, slot: int, text: Bytes, size: int, place: int, found: Ints, total: int) -> int:
    """Write the numbers of all patterns that go on from a node with a place of the text behind the `total` that are found, as far as there is room; the new
    total."""
    while True:
        base = nodes[slot, BASE]
        if base < 0:
            position = ~base
            tail = records[position + 4] | records[position + 5] << 8
            if tail > size - place:
                return total
            for i in range(tail):
                if records[position + HEAD + i] != text[place + i]:
                    return total
            total = _add(records, position, found, total)
            return total
        if base & 1:
            total = _add(records, ~nodes[(base >> 1) ^ END, BASE], found, total)
        if place == size:
            return total
        child = (base >> 1) ^ text[place]
        if nodes[child, PARENT] != slot:
            return total
        slot = child
        place += 1


@inlined
def _add(records: Bytes, position: int, found: Ints, total: int) -> int:
    """Write the number of a pattern and of its equals, as far as there is room; the new total."""
    while True:
        high = records[position + 3]
        if total < len(found):
            found[total] = records[position] | records[position + 1] << 8 | records[position + 2] << 16 | (high & 0x7F) << 24
        total += 1
        if high < 0x80:
            return total
        position += HEAD + (records[position + 4] | records[position + 5] << 8)


@inlined
def _sorted_unique(values: Ints, first: int, behind: int) -> int:
    """Sort values[first:behind] in place, the unique ones to the front; the position behind them. By insertion, as there is nearly always a dozen of them."""
    gap = 1
    while gap < (behind - first) // 32:
        gap = 3 * gap + 1
    while gap > 1:  # many: Shell's sort
        for i in range(first + gap, behind):
            value, k = values[i], i
            while k >= first + gap and values[k - gap] > value:
                values[k] = values[k - gap]
                k -= gap
            values[k] = value
        gap //= 3
    for i in range(first + 1, behind):
        value, k = values[i], i
        while k > first and values[k - 1] > value:
            values[k] = values[k - 1]
            k -= 1
        values[k] = value
    count = first
    for i in range(first, behind):
        if count == first or values[i] != values[count - 1]:
            values[count] = values[i]
            count += 1
    return count


@compiled
def place_lists(lengths: Ints, values: Ints, rows: Longs, starts: Longs, out: Ints) -> None:
    """Copy the lists of the R captions `rows`, which lie one after the other, to their places `starts` among those of all captions."""
    position = 0
    for r in range(len(rows)):
        start = starts[rows[r]]
        for i in range(lengths[r]):
            out[start + i] = values[position + i]
        position += lengths[r]
