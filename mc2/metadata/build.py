"""Metadata of all languages from what is installed or given: numbers, wordfreq unigrams, titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mc2 import languages, storage
from mc2.metadata.entries import NUMBERS, Metadata, merge_entries, write_language, write_manifest
from mc2.metadata.unigrams import MAX_UNIGRAMS, Wordlist, unigrams, wordfreq_version, wordlist_codes


def build_metadata(
    out: str | Path,
    unigram_languages: Sequence[str] | None = None,
    titles: Mapping[str, Sequence[str]] | None = None,
    wordlist: Wordlist = "small",
    unigram_fraction: float = 1.0,
    max_unigrams: int = MAX_UNIGRAMS,
    progress: bool = True,
) -> Metadata:
    """Write the entry lists of all languages that have unigrams or titles, and return them. A finished folder is returned as it is.

    Args:
        out: Folder to write; it may hold the unfinished or finished work of the same call.
        unigram_languages: Languages that get wordfreq's words; all that wordfreq has by default.
        titles: Language -> titles (of articles, of territories ...). Languages that share metadata are joined ("yue" gives to "zh").
        wordlist: wordfreq's list: "small" (1.7 M words in 42 languages), "large" (8.6 M in 21), or "best" of the two for each language.
        unigram_fraction: Share of the list that is taken, most frequent first (published: 0.1 of all words of a Wikipedia; wordfreq's lists are cut already).
        max_unigrams: At most this many unigrams for a language.
        progress: Show a progress bar.

    Errors: ValueError for an unknown language, a language without a word list, a limit out of range, or a folder of another run.
    """
    if not 0 < unigram_fraction <= 1 or max_unigrams < 0:
        raise ValueError(
            f"metadata: found unigram_fraction {unigram_fraction} and max_unigrams {max_unigrams}, need 0 < fraction <= 1 and a cap of at least 0"
        )
    words_for = _unigram_languages(unigram_languages, wordlist)
    titles_of = _titles_by_language(titles or {})
    inputs: dict[str, Any] = {
        "unigram_languages": words_for,
        "titles": storage.fingerprint(titles_of),
        "wordlist": wordlist,
        "wordfreq": wordfreq_version(),
        "unigram_fraction": unigram_fraction,
        "max_unigrams": max_unigrams,
    }
    with storage.Stage(Path(out), "metadata", inputs) as stage:
        if not stage.done:
            rows = {}
            for code in _shown(sorted({*words_for, *titles_of}), progress):
                words = unigrams(code, wordlist, unigram_fraction, max_unigrams) if code in words_for else []
                merged = merge_entries({"numbers": NUMBERS, "unigrams": words, "titles": titles_of.get(code, ())})
                rows[code] = write_language(stage.folder, code, merged)
            mark = write_manifest(stage.folder, rows, inputs)
            stage.finish({"fingerprint": mark, "languages": len(rows)})
    return Metadata.open(out)


def _unigram_languages(wanted: Sequence[str] | None, wordlist: Wordlist) -> list[str]:
    available = wordlist_codes(wordlist)
    if wanted is None:
        return sorted(available)
    codes = sorted({languages.metadata_code(code) for code in wanted})
    missing = [code for code in codes if code not in available]
    if missing:
        raise ValueError(
            f"metadata: wordfreq has no {wordlist!r} list for {', '.join(missing)}; need some of {', '.join(sorted(available))}"
        )
    return codes


def _titles_by_language(titles: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for code in sorted(titles):
        if isinstance(titles[code], str):
            raise ValueError(f"metadata: found one string as the titles of {code!r}, need a list of strings")
        joined.setdefault(languages.metadata_code(code), []).extend(titles[code])
    return joined


def _shown(codes: list[str], progress: bool) -> Any:
    if not progress:
        return codes
    from rich.console import Console
    from rich.progress import track

    return track(codes, "metadata", console=Console(stderr=True))
