"""Drop rules, merge order, and the folder of entry lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mc2.metadata.entries import MERGE_ORDER, NUMBERS, EntryList, Metadata, drop_reason, merge_entries, write_language, write_manifest


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("fox", None),
        ("7", None),
        ("🦊", None),
        ("C++", None),
        ("x" * 256, None),
        ("x" * 257, "long"),
        ("x " * 129, "long"),
        ("", "empty"),
        ("...", "punctuation"),
        ("。、", "punctuation"),
        ("$ +", "punctuation"),
        ("a\ud800", "not_utf8"),
    ],
)
def test_drop_rules(entry: str, reason: str | None) -> None:
    assert drop_reason(entry) == reason


def test_the_first_source_wins() -> None:
    candidates = {
        "titles": ["fox", "Berlin", "7"],
        "unigrams": ["fox", "cat", "  cat\t", "..."],
        "numbers": NUMBERS[:10],
        "wordnet": ["cat"],
    }
    merged = merge_entries(candidates)
    assert dict(zip(merged.entries, merged.sources, strict=True)) == {
        **dict.fromkeys(NUMBERS[:10], "numbers"), "cat": "wordnet", "fox": "unigrams", "Berlin": "titles",
    }  # fmt: skip
    assert merged.drops == {"punctuation": 1}
    assert MERGE_ORDER == ("numbers", "wordnet", "unigrams", "bigrams", "titles")


@given(st.dictionaries(st.sampled_from(MERGE_ORDER), st.lists(st.text(max_size=4), max_size=12)))
def test_merge_against_a_slow_merge(candidates: dict[str, list[str]]) -> None:
    slow: dict[str, str] = {}
    for source in MERGE_ORDER:
        for entry in candidates.get(source, []):
            entry = entry.replace("\t", " ").replace("\n", " ").replace("\r", " ").strip()
            if drop_reason(entry) is None and entry not in slow:
                slow[entry] = source
    merged = merge_entries(candidates)
    assert list(merged.entries) == sorted(slow, key=lambda entry: entry.encode())
    assert list(merged.sources) == [slow[entry] for entry in merged.entries]


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found sources \['trigrams'\], need some of"):
        merge_entries({"trigrams": []})


def write(folder: Path) -> Metadata:
    merged = EntryList(["a", "b\x0bc", "é\u2028f", "狐"], ["numbers", "titles", "titles", "unigrams"], {"long": 2})
    write_manifest(folder, {"fr": write_language(folder, "fr", merged)}, {"from": "a test"})
    return Metadata.open(folder)


def test_what_is_written_is_read_also_with_odd_line_ends_inside(tmp_path: Path) -> None:
    metadata = write(tmp_path)
    assert metadata.entries("fr") == ["a", "b\x0bc", "é\u2028f", "狐"]
    assert metadata.num_entries == {"fr": 4}
    assert metadata.sha256["fr"] == hashlib.sha256((tmp_path / "fr.txt").read_bytes()).hexdigest()
    assert pq.read_table(tmp_path / "fr.sources.parquet")["source"].to_pylist() == ["numbers", "titles", "titles", "unigrams"]


def test_a_changed_or_missing_list_is_noticed(tmp_path: Path) -> None:
    metadata = write(tmp_path)
    (tmp_path / "fr.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"fr\.txt: is missing or has changed since it was built"):
        metadata.entries("fr")
    (tmp_path / "fr.txt").unlink()
    with pytest.raises(ValueError, match=r"fr\.txt: is missing"):
        metadata.entries("fr")


def test_a_folder_without_metadata_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metadata here .* run `mc2 metadata build"):
        Metadata.open(tmp_path)
