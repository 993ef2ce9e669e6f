"""Which images of a pool leave as duplicates: pure rules on the hashes of all images, in the order of the pool.

1. benchmark_overlap   the same bytes as a benchmark image, or a hash within the radius of one: all such images leave
2. exact_duplicate     the same bytes as an earlier image of those that are left
3. near_duplicate      a hash within the radius of an earlier image that itself stays

"The first stays" instead of connected components: what stays differs pairwise by more than the radius, and nothing leaves for the sake of a chain of images
each of which resembles the next. Radius 0 means equal hashes.

Shapes: N images of the pool, M of the benchmarks. Positions of benchmark images count on from N.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mc2.curation.hamming import PairArray, close_pairs
from mc2.curation.image_hash import HashArray

BoolArray: TypeAlias = NDArray[np.bool_]
Positions: TypeAlias = NDArray[np.int64]

STAYS = -1
EMPTY = np.frombuffer(hashlib.sha256(b"").digest(), ">u8")[:2].astype(np.uint64)  # the content of what is no image: it doubles nothing
REASONS = ("exact_duplicate", "near_duplicate", "benchmark_overlap")  # the numbers in `Verdicts.reason`


@dataclass(frozen=True)
class ImageHashes:
    """Content and look of images, in order. `content` (N, 2): the first 128 bits of the SHA-256. `look` (N,): the 64-bit hash, where `has_look`."""

    content: NDArray[np.uint64]
    look: HashArray
    has_look: BoolArray

    def __len__(self) -> int:
        return len(self.look)


@dataclass(frozen=True)
class Verdicts:
    """Per image of the pool the reason why it leaves (a position in REASONS, -1 if it stays) and the position of the image that it doubles."""

    reason: NDArray[np.int8]
    duplicate_of: Positions


def find_duplicates(images: ImageHashes, num_benchmark: int, radius: int | None, takes_part: BoolArray | None = None) -> Verdicts:
    """Verdicts on the first N of N + M images; the last M = `num_benchmark` are those of benchmarks. `radius` None: equal bytes only.

    takes_part: (N,) False for images that leave for other reasons: they get no verdict and nothing is a duplicate of them.
    """
    total, pool_size = len(images), len(images) - num_benchmark
    takes_part = np.ones(pool_size, bool) if takes_part is None else takes_part
    is_benchmark = np.arange(total) >= pool_size
    active = (is_benchmark | np.concatenate([takes_part, np.zeros(num_benchmark, bool)])) & (images.content != EMPTY).any(axis=1)
    reason, duplicate_of = np.full(pool_size, STAYS, np.int8), np.full(pool_size, STAYS, np.int64)

    def drop(name: str, positions: Positions, originals: Positions) -> None:
        reason[positions], duplicate_of[positions] = REASONS.index(name), originals
        active[positions] = False

    group = content_groups(images.content)
    drop("benchmark_overlap", *_doubles(group, active & is_benchmark, active & ~is_benchmark))
    looks = _Looks(images, active, radius) if radius is not None else None
    if looks is not None:
        drop("benchmark_overlap", *looks.overlap(is_benchmark))
    members = active & ~is_benchmark
    drop("exact_duplicate", *_doubles(group, members, members))
    if looks is not None:
        drop("near_duplicate", *looks.near_duplicates(active & ~is_benchmark))
    return Verdicts(reason, duplicate_of)


def content_groups(content: NDArray[np.uint64]) -> Positions:
    """(N,) the position of the first image with the same bytes."""
    order = np.lexsort((content[:, 1], content[:, 0]))  # stable: the first of a group is the first in the pool
    ordered = content[order]
    starts = np.concatenate([np.ones(min(1, len(order)), bool), (ordered[1:] != ordered[:-1]).any(axis=1)])
    group = np.empty(len(order), np.int64)
    group[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1] if len(order) else 0
    return group


def _doubles(group: Positions, originals: BoolArray, candidates: BoolArray) -> tuple[Positions, Positions]:
    """The candidates that have a label in common with an original other than themselves, and the first such original."""
    first = np.full(int(group.max(initial=-1)) + 1, len(group), np.int64)
    positions = np.flatnonzero(originals)[::-1]
    first[group[positions]] = positions  # the last assignment wins: the first original
    candidate = np.flatnonzero(candidates)
    original = first[group[candidate]]
    found = (original < len(group)) & (original != candidate)
    return candidate[found], original[found]


class _Looks:
    """The different hashes of the active images, and the pairs of them within the radius."""

    def __init__(self, images: ImageHashes, active: BoolArray, radius: int) -> None:
        chosen = np.flatnonzero(active & images.has_look)
        values, label = np.unique(images.look[chosen], return_inverse=True)
        self.num_images, self.num_hashes = len(images), len(values)
        self.label = np.full(len(images), STAYS, np.int64)
        self.label[chosen] = label
        self.pairs = close_pairs(values, radius)

    def first(self, images: BoolArray) -> Positions:
        """(H,) per hash the first of the images that has it; the number of all images where none has."""
        first = np.full(self.num_hashes, self.num_images, np.int64)
        positions = np.flatnonzero(images & (self.label != STAYS))[::-1]
        first[self.label[positions]] = positions
        return first

    def _images_of(self, images: BoolArray, original: Positions) -> tuple[Positions, Positions]:
        """The images whose hash has an original other than themselves, with it."""
        positions = np.flatnonzero(images & (self.label != STAYS))
        found = original[self.label[positions]]
        double = (found < self.num_images) & (found != positions)
        return positions[double], found[double]

    def overlap(self, is_benchmark: BoolArray) -> tuple[Positions, Positions]:
        original = self.first(is_benchmark)
        both = np.concatenate([self.pairs, self.pairs[:, ::-1]])
        found = original.copy()
        np.minimum.at(found, both[:, 0], original[both[:, 1]])
        return self._images_of(~is_benchmark, found)

    def near_duplicates(self, images: BoolArray) -> tuple[Positions, Positions]:
        first = self.first(images)
        keeper = first_stays(first, self.pairs[(first[self.pairs] < self.num_images).all(axis=1)])
        return self._images_of(images, keeper)


def first_stays(order: Positions, pairs: PairArray) -> Positions:
    """(H,) per item the `order` of the item that stays for it: its own if it stays, else that of the earliest neighbour that stays.

    `order` is different for all items that occur in `pairs`; an item stays if none of its earlier neighbours does.
    """
    keeper = order.copy()
    ordered = np.sort(order[pairs], axis=1)
    ordered = ordered[np.lexsort((ordered[:, 0], ordered[:, 1]))]
    gone: dict[int, int] = {}
    for earlier, later in ordered.tolist():  # all pairs in which `earlier` is the later one came before
        if later not in gone and earlier not in gone:
            gone[later] = earlier
    if gone:
        lost = np.fromiter(gone, np.int64, len(gone))
        by_order = np.argsort(order)
        keeper[by_order[np.searchsorted(order[by_order], lost)]] = np.fromiter(gone.values(), np.int64, len(gone))
    return keeper
