"""Which images leave, against the definition written as loops over images."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc2.curation.duplicates import REASONS, STAYS, ImageHashes, find_duplicates

# content, hash (None: no hash), takes part
Image = tuple[int, int | None, bool]
HASHES = [0, 0b1, 0b11, 0b111, 0b1111, 0b11111, 1 << 63, (1 << 63) | 1, 0xFFFF << 20, 0xFFFE << 20]
IMAGES = st.lists(st.tuples(st.integers(0, 6), st.sampled_from([*HASHES, None]), st.booleans()), max_size=12)


def arrays(images: list[Image]) -> ImageHashes:
    content = np.array([[content // 2, content % 2] for content, _, _ in images], np.uint64).reshape(-1, 2)
    look = np.array([look or 0 for _, look, _ in images], np.uint64)
    return ImageHashes(content, look, np.array([look is not None for _, look, _ in images], bool))


def near(one: Image, other: Image, radius: int | None) -> bool:
    return radius is not None and one[1] is not None and other[1] is not None and (one[1] ^ other[1]).bit_count() <= radius


def slow_verdicts(pool: list[Image], benchmark: list[Image], radius: int | None) -> list[tuple[str, int] | None]:
    """The three rules of the module, one image after the other."""
    verdicts: list[tuple[str, int] | None] = [None] * len(pool)
    members = [i for i, image in enumerate(pool) if image[2]]
    for i in members:
        same = [j for j, other in enumerate(benchmark) if other[0] == pool[i][0]]
        close = [j for j, other in enumerate(benchmark) if near(pool[i], other, radius)]
        if same or close:
            verdicts[i] = "benchmark_overlap", len(pool) + (same or close)[0]
    left = [i for i in members if verdicts[i] is None]
    for i in left:
        same = [j for j in left if j < i and pool[j][0] == pool[i][0]]
        if same:
            verdicts[i] = "exact_duplicate", same[0]
    kept: list[int] = []
    for i in [i for i in left if verdicts[i] is None]:
        close = [j for j in kept if near(pool[i], pool[j], radius)]
        if close:
            verdicts[i] = "near_duplicate", close[0]
        else:
            kept.append(i)
    return verdicts


@given(IMAGES, IMAGES, st.sampled_from([None, 0, 1, 2, 3]))
def test_the_same_verdicts_as_one_image_after_the_other(pool: list[Image], benchmark: list[Image], radius: int | None) -> None:
    takes_part = np.array([image[2] for image in pool], bool)
    found = find_duplicates(arrays(pool + benchmark), len(benchmark), radius, takes_part)
    rows = zip(found.reason.tolist(), found.duplicate_of.tolist(), strict=True)
    assert [None if reason == STAYS else (REASONS[reason], original) for reason, original in rows] == slow_verdicts(pool, benchmark, radius)


def test_images_without_a_byte_double_nothing() -> None:
    empty = int.from_bytes(hashlib.sha256(b"").digest()[:8]), int.from_bytes(hashlib.sha256(b"").digest()[8:16])
    content = np.array([empty, (0, 1), empty, (0, 1), empty], np.uint64)
    found = find_duplicates(ImageHashes(content, np.zeros(5, np.uint64), np.zeros(5, bool)), 1, None)
    assert [
        (REASONS[reason], int(original)) for reason, original in zip(found.reason, found.duplicate_of, strict=True) if reason != STAYS
    ] == [("exact_duplicate", 1)]
    assert found.reason[3] != STAYS


def test_what_stays_is_further_apart_than_the_radius_and_a_chain_does_not_leave() -> None:
    """0, 2, 4 and 6 bits set: each is two bits from the next, the first and the third stay."""
    chain: list[Image] = [(number, (1 << 2 * number) - 1, True) for number in range(4)]
    found = find_duplicates(arrays(chain), 0, radius=2)
    assert found.reason.tolist() == [-1, REASONS.index("near_duplicate"), -1, REASONS.index("near_duplicate")]
    assert found.duplicate_of.tolist() == [-1, 0, -1, 2]


@pytest.mark.parametrize("radius", [None, 3])
def test_no_images(radius: int | None) -> None:
    assert find_duplicates(arrays([]), 0, radius).reason.shape == (0,)
