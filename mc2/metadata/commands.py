"""`mc2 metadata build | show`."""

from __future__ import annotations

from pathlib import Path

from mc2.metadata.unigrams import MAX_UNIGRAMS, Wordlist


def build(
    out: Path,
    unigram_languages: list[str] | None = None,
    titles: Path | None = None,
    wordlist: Wordlist = "small",
    unigram_fraction: float = 1.0,
    max_unigrams: int = MAX_UNIGRAMS,
    progress: bool = True,
) -> None:
    """Entry lists of all languages from what is installed: numbers, wordfreq's words, and titles that you give.

    Args:
        out: Folder to write.
        unigram_languages: Languages that get wordfreq's words, as [de, ja]; all 42 by default.
        titles: JSON file {language: [title, ...]} of more entries: titles of articles, names of places or products.
        wordlist: wordfreq's list: "small" (30,000 to 60,000 words a language, 42 languages), "large" (21 languages), or "best" of the two for each language.
        unigram_fraction: Share of the list that is taken, most frequent first. Published: 0.1 of all words of a Wikipedia; wordfreq's lists are cut already.
        max_unigrams: At most this many unigrams for a language.
        progress: Show a progress bar.
    """
    from mc2 import storage
    from mc2.metadata.build import build_metadata

    given = storage.read_json(titles) if titles else {}
    if not isinstance(given, dict) or not all(
        isinstance(value, list) and all(isinstance(title, str) for title in value) for value in given.values()
    ):
        raise ValueError(f"{titles}: found other JSON, need {{language: [title, ...]}}")
    metadata = build_metadata(out, unigram_languages, given, wordlist, unigram_fraction, max_unigrams, progress)
    print(f"{out}: {sum(metadata.num_entries.values()):,} entries in {len(metadata.sha256)} languages, fingerprint {metadata.fingerprint}")


def show(folder: Path, language: str | None = None, number: int = 20) -> None:
    """What is in a metadata folder: the languages with their sources, or entries of one language.

    Args:
        folder: Folder of `mc2 metadata build`.
        language: Show entries of this language.
        number: How many entries to show, evenly spread over the list.
    """
    from rich.console import Console
    from rich.table import Table

    from mc2 import languages, storage
    from mc2.metadata.entries import MERGE_ORDER, Metadata

    metadata = Metadata.open(folder)
    console = Console()
    if language is not None:
        code = languages.metadata_code(language)
        if code not in metadata.sha256:
            raise ValueError(f"{folder}: has no metadata for {code!r}, need one of {', '.join(sorted(metadata.sha256))}")
        entries = metadata.entries(code)
        for entry in entries[:: max(1, len(entries) // max(1, number))][:number]:
            console.print(entry, markup=False, highlight=False)
        return
    rows = storage.read_json(folder / "manifest.json")["languages"]
    used = [source for source in MERGE_ORDER if any(source in row["sources"] for row in rows.values())]
    table = Table(title=f"{len(rows)} languages, fingerprint {metadata.fingerprint}", title_justify="left")
    table.add_column("language", no_wrap=True, max_width=24)
    for heading in ("entries", *used, "dropped"):
        table.add_column(heading, justify="right", no_wrap=True)
    for code, row in sorted(rows.items(), key=lambda item: (-item[1]["entries"], item[0])):
        sources = (f"{row['sources'].get(source, 0):,}" for source in used)
        table.add_row(f"{code} {languages.name(code)}", f"{row['entries']:,}", *sources, f"{sum(row['drops'].values()):,}")
    console.print(table)


def main(argv: list[str]) -> int:
    """Run `mc2 metadata ...`; argv begins with "metadata"."""
    from jsonargparse import auto_cli

    auto_cli(
        {"build": build, "show": show}, args=argv[1:], prog="mc2 metadata", as_positional=False, description="Entry lists per language."
    )
    return 0
