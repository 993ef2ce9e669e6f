"""Metadata from wordfreq and titles, checked with wordfreq's own public functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import wordfreq

from mc2.metadata.build import build_metadata
from mc2.metadata.selection import Limits
from mc2.metadata.unigrams import MAX_UNIGRAMS, unigrams, wordlist_codes

TITLES = {"de": ["Österreich", "St. Lucia", "Haus"], "yue": ["香港"], "zh": ["香港", "澳門"], "zu": ["iNingizimu Afrika"]}


def test_all_languages_of_wordfreq_have_a_canonical_code() -> None:
    codes = wordlist_codes("best")
    assert len(codes) == len(wordfreq.available_languages("best")) == 42
    assert codes["no"] == "nb"
    assert codes["tl"] == "fil"


def test_unigrams_are_the_most_frequent_words_in_both_cases() -> None:
    top = wordfreq.top_n_list("de", 10, wordlist="small")
    assert unigrams("de", most=20) == [form for word in top for form in (word, word.capitalize())]
    assert "Fuchs" in set(unigrams("de"))


def test_scripts_without_case_have_one_form() -> None:
    words = unigrams("ja")
    assert len(words) == len(set(words))
    assert words[:3] == wordfreq.top_n_list("ja", 3, wordlist="small")


def test_limits() -> None:
    whole = unigrams("is")
    assert unigrams("is", fraction=0.1) == whole[: round(len(whole) / 10)]
    assert len(unigrams("en", "large")) == MAX_UNIGRAMS


def test_numbers_of_wordfreq_are_no_words() -> None:
    """wordfreq writes 1984 as 0000: such entries would never match what they stand for."""
    assert not [word for word in unigrams("en") if "00" in word]


def test_build(tmp_path: Path) -> None:
    metadata = build_metadata(tmp_path / "metadata", ["de", "nb"], TITLES, limits=Limits(max_unigrams=1000), progress=False)
    assert sorted(metadata.sha256) == ["de", "no", "zh", "zu"]
    german = set(metadata.entries("de"))
    assert {"0", "99", "der", "Der", "Österreich", "St. Lucia"} <= german
    assert set(metadata.entries("zh")) == {*map(str, range(100)), "香港", "澳門"}
    for code in metadata.sha256:
        assert metadata.entries(code) == sorted(metadata.entries(code), key=str.encode)


def test_the_same_call_gives_the_same_bytes_and_a_finished_folder_stays(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_metadata(tmp_path / name, ["is"], TITLES, limits=Limits(max_unigrams=500), progress=False)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir() if path.name != ".lock"}
    build_metadata(tmp_path / "one", ["is"], dict(reversed(TITLES.items())), limits=Limits(max_unigrams=500), progress=False)
    assert times == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir() if path.name != ".lock"}


def test_an_unfinished_folder_is_finished(tmp_path: Path) -> None:
    whole = build_metadata(tmp_path / "whole", [], TITLES, progress=False)
    build_metadata(tmp_path / "part", [], TITLES, progress=False)
    for name in ("done.json", "manifest.json", "zu.txt"):
        (tmp_path / "part" / name).unlink()
    assert build_metadata(tmp_path / "part", [], TITLES, progress=False).fingerprint == whole.fingerprint


def test_another_run_is_never_mixed_in(tmp_path: Path) -> None:
    build_metadata(tmp_path, [], TITLES, progress=False)
    with pytest.raises(ValueError, match=r"belongs to another run .*titles"):
        build_metadata(tmp_path, [], {**TITLES, "de": ["Wien"]}, progress=False)


def test_wrong_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown language code 'xx'"):
        build_metadata(tmp_path, [], {"xx": ["a"]})
    with pytest.raises(ValueError, match="wordfreq has no 'large' list for hu; need some of ar, bn"):
        build_metadata(tmp_path, ["hu"], wordlist="large")
    with pytest.raises(ValueError, match="found one string as the titles of 'de'"):
        build_metadata(tmp_path, [], {"de": "Wien"})
    with pytest.raises(ValueError, match="found unigram_fraction 2"):
        build_metadata(tmp_path, [], limits=Limits(unigram_fraction=2))
    with pytest.raises(ValueError, match=r"found memory_gb 0, need at least 0\.5"):
        build_metadata(tmp_path, [], memory_gb=0)
    with pytest.raises(ValueError, match="no_views: not found; need page view files"):
        build_metadata(tmp_path, [], page_views=[tmp_path / "no_views"])
    assert not list(tmp_path.iterdir())
