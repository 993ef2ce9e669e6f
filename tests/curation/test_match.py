"""The matcher against brute force and against another library, and the rules of RECIPE 1.4 by hand."""

from __future__ import annotations

from pathlib import Path

import daachorse
import numpy as np
import pyarrow as pa
import pytest
import wordfreq
from hypothesis import given, settings
from hypothesis import strategies as st

from mc2.curation.automaton import Automaton
from mc2.curation.match import BYTE_TREATMENT, Matcher, MatchRule, automaton_file, load_matcher, spaced_caption, spaced_entries
from mc2.metadata.entries import EntryList, Metadata, write_language, write_manifest

# Few letters of many scripts, so that matches happen: Latin, a combining mark, digits, marks, Cyrillic, Arabic, Devanagari, Thai, Han, kana, astral, emoji.
# Among them what a walk over bytes could take for something else: NUL, the byte order mark, the last code point, letters with bytes in common.
LETTERS = "abA\u0301 1.,!?`'-ябسلकि\u0e01\u0e32雪中々キツの゛ー\U00020000🦊\U0001f3fd\t\n\u00a0\u200d\0\ufeff\U0010ffff"
TEXTS = st.text(st.sampled_from(LETTERS), max_size=30)
ENTRIES = st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=5).map(str.strip).filter(bool), unique=True, max_size=25).map(
    sorted
)


def slow_match(entries: list[str], caption: str, rule: MatchRule) -> list[int]:
    return [i for i, entry in enumerate(entries) if spaced_entries([entry], rule)[0] in spaced_caption(caption)]


def ids_of(matcher: Matcher, captions: list[str]) -> list[list[int]]:
    lengths, ids = matcher(pa.array(captions, pa.string()))
    assert lengths.dtype == ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@settings(max_examples=500, deadline=None)  # the first one compiles
@given(ENTRIES, st.lists(TEXTS, min_size=1, max_size=4), st.sampled_from(["mc2", "published"]))
def test_against_brute_force(entries: list[str], captions: list[str], rule: MatchRule) -> None:
    assert ids_of(Matcher.build(entries, rule), captions) == [slow_match(entries, caption, rule) for caption in captions]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), min_size=1, max_size=10))
def test_pieces_of_any_unicode_text_against_brute_force(caption: str, cuts: list[tuple[int, int]]) -> None:
    caption = caption.encode("utf-8", "replace").decode()
    entries = sorted({caption[start : start + length].strip() for start, length in cuts} - {""})
    assert ids_of(Matcher.build(entries), [caption]) == [slow_match(entries, caption, "mc2")]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_many_entries_against_another_library(language: str) -> None:
    """20,000 frequent words and pairs of them, in any order, some of them equal as patterns; captions of such words."""
    rng, space = np.random.default_rng(0), "" if language == "zh" else " "
    words = sorted(wordfreq.get_frequency_dict(language))[:10_000]
    pairs = [words[a] + space + words[b] for a, b in rng.integers(len(words), size=(10_000, 2))]
    patterns = spaced_entries([*pairs, *words, *words[:100]])
    captions = [space.join(words[i] for i in rng.zipf(1.3, 12) % len(words)) + "!" for _ in range(500)]
    unique = list(dict.fromkeys(patterns))
    library = daachorse.CharwiseDoubleArrayAhoCorasick(unique)
    found = [{unique[match[2]] for match in library.find_overlapping(spaced_caption(caption))} for caption in captions]
    lengths, ids = Automaton.build(patterns).find(pa.array(captions), np.arange(len(captions)), BYTE_TREATMENT)
    positions: dict[str, list[int]] = {}
    for i, pattern in enumerate(patterns):
        positions.setdefault(pattern, []).append(i)
    slow = [sorted(i for pattern in patterns_found for i in positions[pattern]) for patterns_found in found]
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == slow
    assert sum(lengths) > 3 * len(captions)


def test_chosen_rows_and_a_slice_of_an_array() -> None:
    matcher, captions = Matcher.build(["cat", "fox"]), pa.array(["a fox", "cat", "", "fox cat", "cat fox cat"])
    lengths, ids = matcher(captions.slice(1), np.array([3, 1, 0]))
    assert (lengths.tolist(), ids.tolist()) == ([2, 0, 1], [0, 1, 0])
    assert [part.tolist() for part in matcher(captions.slice(0, 0))] == [[], []]
    with pytest.raises(ValueError, match="found 1 nulls among 2 texts, need none"):
        matcher(pa.array(["a fox", None]))


def test_a_language_without_entries() -> None:
    assert ids_of(Matcher.build([]), ["a fox", ""]) == [[], []]


def test_a_caption_of_ten_megabytes() -> None:
    """Entries that contain each other at every place: the longest walks and the most matches that there can be."""
    entries = ["雪" * length for length in range(1, 257)]
    assert ids_of(Matcher.build(entries), ["雪" * 40_000, "雪" * 100]) == [list(range(256)), list(range(100))]
    assert ids_of(Matcher.build(["fox", "x" * 256]), ["fox " * 2_500_000, "x" * 10_000_000]) == [[0], []]


def found(entries: list[str], caption: str, rule: MatchRule = "mc2") -> list[str]:
    return [entries[i] for i in ids_of(Matcher.build(entries, rule), [caption])[0]]


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


def test_the_cached_automaton_is_built_once_and_finds_the_same(tmp_path: Path) -> None:
    opened = metadata(tmp_path, ["cat", "fox"])
    assert ids_of(load_matcher(tmp_path / "cache", opened, "en", "mc2"), ["a fox"]) == [[1]]
    (tmp_path / "en.txt").unlink()
    assert ids_of(load_matcher(tmp_path / "cache", opened, "en", "mc2"), ["a fox"]) == [[1]]
    with pytest.raises(ValueError, match=r"en\.txt: is missing or has changed since it was built"):
        load_matcher(tmp_path / "cache", opened, "en", "published")


def test_other_entries_or_another_rule_never_meet_an_old_automaton(tmp_path: Path) -> None:
    one, two = metadata(tmp_path / "one", ["cat", "fox"]), metadata(tmp_path / "two", ["fox"])
    names = {
        automaton_file(tmp_path, one, "en", "mc2"),
        automaton_file(tmp_path, one, "en", "published"),
        automaton_file(tmp_path, two, "en", "mc2"),
    }
    assert len(names) == 3


def test_a_damaged_automaton_is_built_anew(tmp_path: Path) -> None:
    """Cut anywhere, longer, with any byte changed, or the automaton of other entries under this name."""
    opened, other = metadata(tmp_path / "one", ["cat", "fox", "foxes"]), metadata(tmp_path / "two", ["fox"])
    for one in (opened, other):
        load_matcher(tmp_path, one, "en", "mc2")
    path = automaton_file(tmp_path, opened, "en", "mc2")
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in (0, 7, 47, 48, 100, len(whole) - 1)] + [b"no automaton", whole + b"\0"]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in [*range(48), *range(48, len(whole), 97)]]
    for data in [*damaged, automaton_file(tmp_path, other, "en", "mc2").read_bytes()]:
        path.write_bytes(data)
        assert ids_of(load_matcher(tmp_path, opened, "en", "mc2"), ["a fox"]) == [[1]]
        assert path.read_bytes() == whole
