"""Metadata of random words: its sizes, scripts and bytes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mc2 import languages
from mc2.bench.synthetic_metadata import ENGLISH_ENTRIES, MAX_ENTRIES, language_sizes, synthetic_metadata
from mc2.metadata.entries import NUMBERS, drop_reason


def test_sizes_of_the_published_build() -> None:
    sizes = language_sizes(27_000_000, 300)
    assert sum(sizes) == 27_000_000
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[1]) == (ENGLISH_ENTRIES, MAX_ENTRIES)
    tail = [size for size in sizes if size < MAX_ENTRIES]
    assert len(tail) > 200
    assert tail[-1] * 300 == pytest.approx(tail[0] * (300 - len(tail) + 1), rel=0.01)  # falls with the rank


def test_the_folder(tmp_path: Path) -> None:
    metadata = synthetic_metadata(tmp_path / "one", num_entries=30_000, num_languages=40)
    assert sum(metadata.num_entries.values()) == 30_000
    assert len(metadata.sha256) == 40
    lengths = []
    for code in metadata.sha256:
        entries = metadata.entries(code)
        assert entries == sorted(set(entries))
        assert set(NUMBERS) < set(entries) or set(NUMBERS) == set(entries)
        assert not any(map(drop_reason, entries))
        lengths += [len(entry) for entry in entries if code == "en" and not entry.isdigit()]
    assert 10 < sum(lengths) / len(lengths) < 15
    again = synthetic_metadata(tmp_path / "two", num_entries=30_000, num_languages=40)
    assert again.sha256 == metadata.sha256
    assert synthetic_metadata(tmp_path / "three", num_entries=30_000, num_languages=40, seed=1).fingerprint != metadata.fingerprint


def test_scripts(tmp_path: Path) -> None:
    metadata = synthetic_metadata(tmp_path, num_entries=50_000, num_languages=200)
    prefixes = {"ru": "CYRILLIC", "th": "THAI", "zh": "CJK", "ko": "HANGUL", "ar": "ARABIC", "hi": "DEVANAGARI", "de": "LATIN"}
    assert set(prefixes) <= set(metadata.sha256)
    for code, prefix in prefixes.items():
        letters = {letter for entry in metadata.entries(code) for letter in entry if letter.isalpha()}
        assert {unicodedata.name(letter).split()[0] for letter in letters} == {prefix}
    assert languages.OTHER not in metadata.sha256


@pytest.mark.parametrize(
    ("num_entries", "num_languages", "message"),
    [(1000, 400, "found 400 languages, need 1 to 317"), (99, 1, "need 100 to 500,000"), (10**8, 10, "found 100,000,000 entries for 10")],
)
def test_what_cannot_be(tmp_path: Path, num_entries: int, num_languages: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_metadata(tmp_path, num_entries, num_languages)
