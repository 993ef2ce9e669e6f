"""The rules of the balance against slow plain Python, and the file against what was saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc2 import storage
from mc2.curation import balance
from mc2.curation.balance import Balance, balance_languages, draw_caption
from mc2.records import PackedCaption

COUNTS = st.lists(st.integers(0, 500), min_size=1, max_size=40)


def slow_tail_share(counts: Sequence[int], threshold: int) -> float:
    return sum(count for count in counts if count < threshold) / sum(counts)


def slow_head_threshold(counts: Sequence[int], share: float) -> int:
    best, best_distance, running = 1, float("inf"), 0
    for count in sorted(count for count in counts if count > 0):
        running += count
        if abs(running - share * sum(counts)) < best_distance:
            best, best_distance = count, abs(running - share * sum(counts))
    return best


def slow_keep_probability(entries: Sequence[int], entry_prob: Sequence[float]) -> float:
    all_fail = 1.0
    for entry in entries:
        all_fail *= 1 - entry_prob[entry]
    return 1 - all_fail


@given(COUNTS.filter(any), st.integers(1, 600))
def test_tail_share(counts: list[int], threshold: int) -> None:
    assert balance.tail_share(np.array(counts), threshold) == pytest.approx(slow_tail_share(counts, threshold))


@given(COUNTS, st.floats(0, 1))
def test_head_threshold_is_the_count_with_the_nearest_cumulative_share(counts: list[int], share: float) -> None:
    assert balance.head_threshold(np.array(counts), share) == slow_head_threshold(counts, share)


def test_of_two_equally_near_counts_the_smaller_is_taken() -> None:
    """1, 1, 2, 2: cumulative shares of 1/3 (count 1) and 2/3 (count 2) are equally near to 1/2; as floating numbers they are not."""
    assert balance.head_threshold(np.array([2, 1, 0, 2, 1]), 0.5) == 1
    assert balance.head_threshold(np.array([7]), 0.0) == 7  # one entry: its share is 1, and there is no other
    assert balance.head_threshold(np.array([1, 99, 100]), 0.0) == 1
    assert balance.head_threshold(np.array([1, 99, 100]), 1.0) == 100


@given(COUNTS, st.integers(1, 600))
def test_entry_probabilities(counts: list[int], threshold: int) -> None:
    expected = [threshold / max(count, threshold) for count in counts]
    np.testing.assert_allclose(balance.entry_probabilities(np.array(counts), threshold), expected)


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=5), max_size=8), st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_keep_probability_of_one_and_of_many(captions: list[list[int]], entry_prob: list[float]) -> None:
    slow = [slow_keep_probability(caption, entry_prob) for caption in captions]
    prob = np.array(entry_prob)
    one = [balance.keep_probability(np.array(caption, np.int32), prob) for caption in captions]
    flat = np.array([entry for caption in captions for entry in caption], np.int32)
    many = balance.keep_probabilities(prob[flat], np.array([len(caption) for caption in captions], np.int64))
    np.testing.assert_allclose(one, slow, atol=1e-12)
    np.testing.assert_allclose(many, slow, atol=1e-12)


def test_by_hand() -> None:
    """English 1, 2, 3, 4, 10 of 20 matches, t_en = 4: the tail is 1 + 2 + 3 = 30 %. German 5, 5, 30: shares 12.5 %, 25 %, 100 %, the nearest is 25 %: t = 5."""
    counts = {"en": np.array([1, 2, 3, 4, 10]), "de": np.array([5, 30, 0, 5])}
    result = balance_languages(counts, english_threshold=4)
    assert result.tail_share == 0.3
    assert result.languages["en"].threshold == 3  # inclusive on the way back
    assert result.languages["de"].threshold == 5
    np.testing.assert_allclose(result.languages["de"].entry_prob, [1, 5 / 30, 1, 1])
    assert result.languages["de"].arithmetic() == {
        "entries": 4, "entries_seen": 3, "matches": 40, "threshold": 5, "head_entries": 1, "tail_entries": 2, "head_matches": 30, "tail_matches": 10,
    }  # fmt: skip


def test_english_keeps_its_threshold_under_the_rule_of_the_published_code() -> None:
    counts = {"en": np.array([1, 2, 3, 4, 10]), "de": np.array([5, 30, 0, 5])}
    result = balance_languages(counts, 4, "published_code")
    assert result.languages["en"].threshold == 4
    assert result.languages["de"].threshold == 5


def test_a_language_without_matches_has_no_say() -> None:
    result = balance_languages({"en": np.array([3, 9]), "fr": np.zeros(3, np.int64)}, 5)
    assert result.languages["fr"].threshold == 1
    np.testing.assert_array_equal(result.languages["fr"].entry_prob, 1)


def test_errors_name_the_cure() -> None:
    german = {"de": np.array([5, 30])}
    with pytest.raises(ValueError, match="the tail share comes from English; set `tail_share`"):
        balance_languages(german, 100)
    given = balance_languages(german, share=0.06)
    assert (given.languages["de"].threshold, given.english_threshold) == (5, None)
    with pytest.raises(ValueError, match="tail share of 6"):
        balance_languages(german, share=6)
    with pytest.raises(ValueError, match=r"English threshold 100 and the tail share 0\.06, need one of them"):
        balance_languages(german, 100, share=0.06)
    assert balance_languages({"en": np.array([1, 20])}, 15, "published_code", share=0.06).languages["en"].threshold == 15
    with pytest.raises(ValueError, match="English threshold of 0"):
        balance_languages(german, 0)


# --- draws --------------------------------------------------------------------------------------------------------------

CAPTIONS = [PackedCaption("a", "en", (0, 1)), PackedCaption("b", "de", (2,)), PackedCaption("c", "en", (1,))]
PROBABILITIES = {"en": np.array([0.5, 0.2]), "de": np.array([1.0, 1.0, 0.3])}


def test_draws_have_the_frequencies_of_the_rule() -> None:
    drawn = Counter(draw_caption(f"key{i}", CAPTIONS, PROBABILITIES, seed=1, epoch=0) for i in range(30_000))
    keep = [1 - 0.5 * 0.8, 0.3, 0.2]
    for index, share in enumerate(keep):
        assert drawn[index] / 30_000 == pytest.approx(share / 3, abs=0.01)  # 0.01 is more than three standard deviations
    assert drawn[None] / 30_000 == pytest.approx(1 - sum(keep) / 3, abs=0.01)


def test_draws_depend_on_nothing_but_the_key() -> None:
    keys = [f"key{i}" for i in range(200)]
    first = {key: draw_caption(key, CAPTIONS, PROBABILITIES, 1, 0) for key in keys}
    assert {key: draw_caption(key, CAPTIONS, PROBABILITIES, 1, 0) for key in reversed(keys)} == first
    assert {key: draw_caption(key, CAPTIONS, PROBABILITIES, 1, 1) for key in keys} != first
    assert {key: draw_caption(key, CAPTIONS, PROBABILITIES, 2, 0) for key in keys} != first


def test_an_entry_draws_the_same_number_in_every_caption() -> None:
    """Keyed by the entry: a caption with more entries is accepted whenever one with fewer is."""
    prob = np.full(6, 0.3)
    for i in range(300):
        few, many = (balance.accept(f"k{i}", entries, prob, 0, 0) for entries in ([1, 4], [0, 1, 4, 5]))
        assert many or not few


@given(
    st.lists(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=4), max_size=4), max_size=6), st.integers(0, 5), st.integers(0, 3)
)
def test_draws_of_many_are_those_of_each(pairs: list[list[list[int]]], seed: int, epoch: int) -> None:
    prob = {"en": np.array([0.1, 0.3, 0.5, 0.7, 0.9, 1.0])}
    keys = [f"key{number}" for number in range(len(pairs))]
    captions = [(number, np.array(entries, np.int32)) for number, pair in enumerate(pairs) for entries in pair]
    uniforms = [storage.keyed_uniforms(seed, "balance", epoch, keys[number], entries) for number, entries in captions]
    flat = np.concatenate([np.zeros(0, np.int32), *(entries for _, entries in captions)])
    lengths = np.array([len(entries) for _, entries in captions], np.int64)
    accepted = balance.accepted_captions(prob["en"][flat], np.concatenate([np.zeros(0), *uniforms]), lengths)
    assert accepted.tolist() == [balance.accept(keys[number], entries, prob["en"], seed, epoch) for number, entries in captions]
    pair = np.array([number for number, _ in captions], np.int64)
    drawn = balance.draw_captions(keys, pair, accepted, seed, epoch).tolist()
    packed = [[PackedCaption("", "en", tuple(entries)) for entries in entries_of] for entries_of in pairs]
    single = {key: draw_caption(key, packed[number], prob, seed, epoch) for number, key in enumerate(keys)}
    first = {number: sum(map(len, pairs[:number])) for number in range(len(pairs))}
    assert drawn == [first[number] + index for number, index in enumerate(single.values()) if index is not None]


def test_entry_of_probability_one_is_always_accepted_and_no_entry_never() -> None:
    one = {"en": np.ones(1)}
    assert all(draw_caption(f"k{i}", [PackedCaption("a", "en", (0,))], one, 0, 0) == 0 for i in range(100))
    assert draw_caption("k", [PackedCaption("a", "en", ())], one, 0, 0) is None
    assert draw_caption("k", [], one, 0, 0) is None


@pytest.mark.parametrize("caption", [PackedCaption("a", "fr", (0,)), PackedCaption("a", "en", (7,))])
def test_captions_of_another_balance_are_refused(caption: PackedCaption) -> None:
    with pytest.raises(ValueError, match="need the balance that the shards were packed with"):
        draw_caption("k", [caption], PROBABILITIES, 0, 0)


# --- files --------------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Balance:
    result = balance_languages({"en": np.array([1, 2, 3, 4, 10]), "de": np.array([5, 30, 0, 5])}, 4)
    result.save(folder, {"en": list("abcde"), "de": list("fghi")}.__getitem__)
    return result


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    result, loaded = saved(tmp_path), Balance.load(tmp_path)
    assert (loaded.tail_share, loaded.english_threshold, loaded.english_rule) == (0.3, 4, "paper")
    for code in ("en", "de"):
        np.testing.assert_array_equal(loaded.probabilities[code], result.probabilities[code])
        np.testing.assert_array_equal(loaded.languages[code].counts, result.languages[code].counts)
        assert loaded.languages[code].threshold == result.languages[code].threshold


def test_the_json_shows_the_arithmetic(tmp_path: Path) -> None:
    saved(tmp_path)
    value = storage.read_json(tmp_path / "balance.json")
    assert value["tail_share"] == 0.3
    assert value["languages"]["de"]["threshold"] == 5
    assert value["languages"]["de"]["head_matches"] + value["languages"]["de"]["tail_matches"] == value["languages"]["de"]["matches"]


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"balance\.json: not found"):
        Balance.load(tmp_path)
    saved(tmp_path)
    (tmp_path / "de.parquet").write_bytes((tmp_path / "en.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"de\.parquet: does not belong to balance\.json"):
        Balance.load(tmp_path)
    (tmp_path / "de.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"de\.parquet: cannot be read"):
        Balance.load(tmp_path)
