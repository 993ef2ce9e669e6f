"""All close pairs of 64-bit hashes against a comparison of all with all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc2.curation.hamming import block_masks, close_pairs
from mc2.curation.image_hash import HashArray

RADIUS = st.integers(0, 8)


def random_hashes(number: int, seed: int = 0) -> HashArray:
    return np.random.default_rng(seed).integers(0, 2**64, number, np.uint64)


def flipped(value: int, bits: set[int]) -> int:
    return value ^ sum(1 << bit for bit in bits)


def slow_pairs(hashes: list[int], radius: int) -> list[list[int]]:
    return [[i, j] for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if (hashes[i] ^ hashes[j]).bit_count() <= radius]


@given(RADIUS, st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 63), max_size=6)), max_size=40), st.integers(0, 2**32))
def test_the_same_pairs_as_all_with_all(radius: int, members: list[tuple[int, set[int]]], seed: int) -> None:
    """Three centres and hashes a few bits away from them: distances on both sides of every radius."""
    centres = random_hashes(3, seed).tolist()
    hashes = [flipped(centres[centre], bits) for centre, bits in members]
    assert close_pairs(np.array(hashes, np.uint64), radius).tolist() == slow_pairs(hashes, radius)


@pytest.mark.parametrize("radius", range(9))
def test_pairs_at_exactly_the_radius_wherever_the_bits_are(radius: int) -> None:
    """Among 20,000 random hashes, so that the blocks are those of a larger number: every planted pair is found, one bit further none."""
    rng, hashes = np.random.default_rng(radius), random_hashes(20_000)
    for i in range(1000):
        bits = rng.choice(64, radius + i % 2, replace=False).tolist()
        hashes[10_000 + i] = flipped(int(hashes[i]), set(bits))
    assert close_pairs(hashes, radius).tolist() == [[i, 10_000 + i] for i in range(0, 1000, 2)]


@pytest.mark.parametrize("num_hashes", [10, 10**6, 10**9])
@pytest.mark.parametrize("radius", range(9))
def test_masks_leave_no_choice_of_bits_uncovered(num_hashes: int, radius: int) -> None:
    """However `radius` bits are chosen, at least one mask has none of them: tried at the edges of the blocks and at random."""
    masks, rng = block_masks(num_hashes, radius), np.random.default_rng(0)
    for _ in range(300):
        differing = np.uint64(flipped(0, set(rng.choice(64, radius, replace=False).tolist())))
        assert any(mask & differing == 0 for mask in masks)


def test_more_hashes_get_longer_keys() -> None:
    bits = [min(int(mask).bit_count() for mask in block_masks(number, 3)) for number in (10**4, 10**6, 10**8, 10**9)]
    assert bits == sorted(bits)
    assert 2 ** bits[-1] >= 10**9


def test_a_radius_out_of_range() -> None:
    for radius in (-1, 9):
        with pytest.raises(ValueError, match=rf"found a radius of {radius} bits, need 0 to 8 of 64"):
            close_pairs(random_hashes(3), radius)


def test_hashes_that_do_not_tell_images_apart() -> None:
    with pytest.raises(ValueError, match=r"more than 1,000 pairs of 64 different hashes within 2 bits.*take a smaller radius"):
        close_pairs(np.uint64(1) << np.arange(64, dtype=np.uint64), 2, max_pairs=1000)
