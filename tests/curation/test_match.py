"""The matcher against brute force, and the rules of RECIPE 1.4 by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc2.curation.match import Matcher, MatchRule, automaton_file, build_automaton, load_matcher, spaced_caption, spaced_entries
from mc2.metadata.entries import EntryList, Metadata, write_language, write_manifest

# Few letters of many scripts, so that matches happen: Latin, a combining mark, digits, marks, Cyrillic, Arabic, Devanagari, Thai, Han, kana, astral, emoji.
LETTERS = "abA\u0301 1.,!?`'-ябسلकि\u0e01\u0e32雪中々キツの゛ー\U00020000🦊\U0001f3fd\t\n\u00a0\u200d"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=30)
ENTRIES = st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=5).map(str.strip).filter(bool), unique=True, max_size=25).map(
    sorted
)


def slow_match(entries: list[str], caption: str, rule: MatchRule) -> list[int]:
    return [i for i, entry in enumerate(entries) if spaced_entries([entry], rule)[0] in spaced_caption(caption)]


@settings(max_examples=500)
@given(ENTRIES, TEXTS, st.sampled_from(["mc2", "published"]))
def test_against_brute_force(entries: list[str], caption: str, rule: MatchRule) -> None:
    ids = Matcher.build(entries, rule)(caption)
    assert ids.dtype == "int32"
    assert ids.tolist() == slow_match(entries, caption, rule)


@settings(max_examples=200)
@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=10))
def test_pieces_of_any_unicode_text_against_brute_force(caption: str, cuts: list[tuple[int, int]]) -> None:
    caption = caption.encode("utf-8", "replace").decode()
    entries = sorted({caption[start : start + length].strip() for start, length in cuts} - {""})
    assert Matcher.build(entries)(caption).tolist() == slow_match(entries, caption, "mc2")


def found(entries: list[str], caption: str, rule: MatchRule = "mc2") -> list[str]:
    return [entries[i] for i in Matcher.build(entries, rule)(caption)]


@pytest.mark.parametrize(
    ("entry", "caption", "matches"),
    [
        ("fox", "a fox", True),
        ("fox", "foxes", False),  # whole words where the script has spaces
        ("fox", "A fox, running", True),
        ("fox", "(fox)", False),  # a bracket is not among the marks that get spaces
        ("fox", "Fox", False),  # case-sensitive
        ("red fox", "the red\tfox!", True),
        ("red fox", "the red\nfox", True),
        ("лиса", "рыжая лиса.", True),
        ("狐", "白狐狸", True),  # plain substrings where it has not
        ("แมว", "ลูกแมวสีขาว", True),
        ("ខ្មែរ", "ភាសាខ្មែរ", True),
        ("USA狐", "xUSA狐狸", False),  # each end by its own letter
        ("-fox-", "a-fox-b", True),  # punctuation at the ends needs no space
        ("🦊", "a 🦊 here", True),
    ],
)
def test_rules_by_hand(entry: str, caption: str, matches: bool) -> None:
    assert bool(found([entry], caption)) == matches
    assert bool(found([entry], caption, "published")) == matches


@pytest.mark.parametrize(
    ("entry", "caption"),
    [("キツネ", "赤いキツネと"), ("たぬき", "かわいいたぬきです"), ("人々", "街の人々が"), ("St. Lucia", "flag of St. Lucia")],
)
def test_gaps_of_the_published_rule_that_are_closed(entry: str, caption: str) -> None:
    assert found([entry], caption)
    assert not found([entry], caption, "published")


def test_all_overlapping_entries_once_each() -> None:
    assert found(["house", "house boat", "boat", "boat house"], "house boat house boat house") == [
        "house",
        "house boat",
        "boat",
        "boat house",
    ]


# --- the cache ----------------------------------------------------------------------------------------------------------


def metadata(folder: Path, entries: list[str]) -> Metadata:
    row = write_language(folder, "en", EntryList(entries, ["titles"] * len(entries), {}))
    write_manifest(folder, {"en": row}, {})
    return Metadata.open(folder)


def test_the_cached_automaton_finds_the_same(tmp_path: Path) -> None:
    opened = metadata(tmp_path, ["cat", "fox"])
    build_automaton(tmp_path / "cache", opened, "en", "mc2")
    assert load_matcher(tmp_path / "cache", opened, "en", "mc2")("a fox").tolist() == [1]


def test_other_entries_or_another_rule_never_meet_an_old_automaton(tmp_path: Path) -> None:
    one, two = metadata(tmp_path / "one", ["cat", "fox"]), metadata(tmp_path / "two", ["fox"])
    names = {
        automaton_file(tmp_path, one, "en", "mc2"),
        automaton_file(tmp_path, one, "en", "published"),
        automaton_file(tmp_path, two, "en", "mc2"),
    }
    assert len(names) == 3


@pytest.mark.parametrize("damage", [b"", b"no automaton", None])
def test_a_broken_or_missing_automaton_is_built_anew(tmp_path: Path, damage: bytes | None) -> None:
    opened = metadata(tmp_path, ["cat", "fox"])
    build_automaton(tmp_path / "cache", opened, "en", "mc2")
    path = automaton_file(tmp_path / "cache", opened, "en", "mc2")
    path.unlink() if damage is None else path.write_bytes(damage)
    assert load_matcher(tmp_path / "cache", opened, "en", "mc2")("a fox").tolist() == [1]
