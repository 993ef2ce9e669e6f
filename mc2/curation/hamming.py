"""All pairs of 64-bit hashes that differ in few bits, without comparing all with all.

The 64 bits are cut into b blocks. Two hashes that differ in at most r bits differ in at most r blocks, so they agree in b - r whole blocks: sorting by each of
the C(b, r) choices of b - r blocks brings every such pair together (Manku, Jain and Das Sarma 2007). Nothing is missed, and what else comes together is
compared. Sorting dominates while a choice has more bits than log2 of the number of hashes: the time is then C(b, r) n log n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mc2.curation.image_hash import NUM_BITS, HashArray

PairArray: TypeAlias = NDArray[np.int64]

MAX_RADIUS = 8
_SORT_COST = 3  # sorting one hash takes about as long as comparing this many candidates
_BATCH = 1 << 22  # candidates compared at once


def close_pairs(hashes: HashArray, radius: int, max_pairs: int = 1 << 28) -> PairArray:
    """(P, 2) positions i < j of all pairs that differ in at most `radius` bits, in lexicographic order.

    Memory: 40 bytes for each hash, 100 for each pair while they are sorted. Errors: ValueError for a radius below 0 or above 8 (the choices grow with C(b, r)), and for more pairs than
    `max_pairs`.
    """
    check_radius(radius)
    masks = block_masks(len(hashes), radius)
    found: list[PairArray] = [np.zeros((0, 2), np.int64)]
    num_pairs = 0
    for number, mask in enumerate(masks):
        for first, second in _neighbours(hashes & mask):
            difference = hashes[first] ^ hashes[second]
            close = np.bitwise_count(difference) <= radius
            first, second, difference = first[close], second[close], difference[close]
            new = np.ones(len(first), bool)  # not already found with an earlier mask
            for earlier in masks[:number]:
                new &= (difference & earlier) != 0
            found.append(np.sort(np.stack([first[new], second[new]], axis=1), axis=1))
            num_pairs += int(new.sum())
            if num_pairs > max_pairs:
                raise ValueError(
                    f"near duplicates: found more than {max_pairs:,} pairs of {len(hashes):,} different hashes within {radius} bits, need fewer; "
                    "take a smaller radius, or an encoder that tells these images apart"
                )
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def check_radius(radius: int) -> None:
    """Errors: ValueError for a radius that is out of range."""
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"near duplicates: found a radius of {radius} bits, need 0 to {MAX_RADIUS} of {NUM_BITS}")


def block_masks(num_hashes: int, radius: int) -> list[np.uint64]:
    """The choices of blocks, as masks, for the number of blocks that is expected to take the least time on hashes without pattern."""

    def cost(num_blocks: int) -> float:
        candidates = num_hashes**2 / 2 / 2.0 ** (NUM_BITS * (num_blocks - radius) // num_blocks)
        return math.comb(num_blocks, radius) * (_SORT_COST * num_hashes + candidates)

    num_blocks = min(range(radius + 1, 2 * radius + 4), key=cost)
    edges = [NUM_BITS * block // num_blocks for block in range(num_blocks + 1)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, num_blocks - radius)]


def _neighbours(keys: HashArray) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of all pairs of equal keys, in batches."""
    order = np.argsort(keys)
    keys = keys[order]
    first, distance = np.flatnonzero(keys[:-1] == keys[1:]), 1
    while len(first):
        for start in range(0, len(first), _BATCH):
            part = first[start : start + _BATCH]
            yield order[part], order[part + distance]
        distance += 1
        first = first[first + distance < len(keys)]
        first = first[keys[first] == keys[first + distance]]
