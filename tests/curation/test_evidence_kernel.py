"""What words, letters and hints say of a language: the compiled loops against a slow version written from the rule."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import wordfreq

from mc2.curation.evidence_kernel import LISTED, NO_CANDIDATE, NO_LATIN, NO_METADATA, STAYS, UNKNOWN_LANGUAGE, UNLISTED, decide, weigh
from mc2.curation.letters import letters, script_tables
from mc2.curation.word_lists import FLOOR_DECADES, arrow_text, word_table

LISTS = ("de", "en", "ru", None, None, None, "nl")
STANDING = (LISTED, LISTED, LISTED | NO_LATIN, UNLISTED, NO_CANDIDATE, UNLISTED | NO_LATIN, LISTED)
CAPTIONS = (
    "Der Hund und die Katze",
    "the dog, THE dog and the cat",
    "собака and кошка",
    "xqzzw vvvkq",
    "",
    "in de die was hand",
    "Дом Haus house huis",
)


def words_of(caption: str) -> list[str]:
    """Runs of letters and marks, in lower case."""
    spaced = "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in caption)
    return spaced.lower().split()


def decades(word: str, column: int) -> float | None:
    """What a list says of a word, None if it does not have it."""
    code = LISTS[column]
    frequency = wordfreq.get_frequency_dict(code, "small").get(word) if code else None
    return None if frequency is None else max(np.log10(frequency) + FLOOR_DECADES, 0.0)


def slow_gain(caption: str, column: int) -> float:
    """Decades that the words of a caption say for a column, by the rule in `evidence_kernel`."""
    total, standing = 0.0, STANDING[column]
    for word in words_of(caption):
        said = [value for value in (decades(word, c) for c in range(len(LISTS))) if value is not None]
        if not said:
            continue
        latin = "LATIN" in unicodedata.name(word[-1])
        if standing & NO_CANDIDATE or (standing & NO_LATIN and latin):
            total += max(said)
        elif standing & UNLISTED:
            total += max(max(said) - 1, 0.0)
        else:
            total += decades(word, column) or 0.0
    return total


def weighed(hint: tuple[float, ...] = (0.0,) * len(LISTS)) -> np.ndarray:
    text, offsets = arrow_text(pa.array(CAPTIONS, pa.large_string()))
    posterior = np.full((len(CAPTIONS), len(LISTS)), 0.1, np.float32)
    none = script_tables(["de"] * len(LISTS))[0][:0]
    hints, hint_of = np.array([hint], np.float32), np.zeros(len(CAPTIONS), np.int32)
    weigh(letters(), word_table(LISTS), text, offsets, none, none, np.array(STANDING, np.int8), hints, hint_of, posterior)
    return posterior


def test_words_count_as_the_slow_version_says() -> None:
    gains = np.array([[slow_gain(caption, column) for column in range(len(LISTS))] for caption in CAPTIONS])
    assert gains[0, 0] > gains[0, 1] + 2  # the rule has something to say here
    expected = 10.0 ** (gains - gains.max(axis=1, keepdims=True))
    np.testing.assert_allclose(weighed(), expected / expected.sum(axis=1, keepdims=True), rtol=2e-3, atol=1e-7)


def test_a_hint_multiplies() -> None:
    with_hint, without = weighed((float(np.log(10)), *[0.0] * (len(LISTS) - 1))), weighed()
    odds = (with_hint[:, 0] / with_hint[:, 1:].sum(axis=1)) / (without[:, 0] / without[:, 1:].sum(axis=1))
    np.testing.assert_allclose(odds, 10, rtol=1e-3)


@pytest.mark.parametrize(
    ("row", "language", "score", "drop"),
    [
        ((0.2, 0.5, 0.3, 0.0), 1, 0.5, STAYS),
        ((0.4, 0.4, 0.1, 0.1), 0, 0.4, STAYS),  # the first of equal ones
        ((0.3, 0.1, 0.5, 0.1), 0, 0.3, STAYS),  # a candidate, though another language is before it
        ((0.1, 0.1, 0.5, 0.3), 2, 0.5, NO_METADATA),
        ((0.2, 0.1, 0.15, 0.1), 0, 0.2, UNKNOWN_LANGUAGE),
        ((0.0, 0.0, 0.0, 0.0), -1, 0.0, UNKNOWN_LANGUAGE),
    ],
)
def test_decide(row: tuple[float, ...], language: int, score: float, drop: int) -> None:
    found, certain, reason = np.zeros(1, np.int16), np.zeros(1, np.float32), np.zeros(1, np.uint8)
    decide(np.array([row], np.float32), 2, np.float32(0.25), found, certain, reason)
    assert (found[0], certain[0], reason[0]) == (language, np.float32(score), drop)
