"""`mc2 metadata build | join | show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mc2.engines.options import make_engine
from mc2.metadata.segmenters import SegmenterChoice
from mc2.metadata.selection import Limits
from mc2.metadata.unigrams import Wordlist

DEFAULT_LIMITS = Limits()


def build(
    out: Path,
    wikipedia: list[str] | str | None = None,
    page_views: list[str] | str | None = None,
    wordnet: Path | None = None,
    titles: Path | None = None,
    unigram_languages: list[str] | None = None,
    wordlist: Wordlist = "small",
    limits: Limits = DEFAULT_LIMITS,
    segmenter: SegmenterChoice = "best",
    counts: Path | None = None,
    memory_gb: float = 4.0,
    more_languages: list[str] | None = None,
    progress: bool = True,
    **engine_options: Any,
) -> None:
    """Entry lists of all languages: numbers, wordnets, the words and pairs of words of the Wikipedias that you give, wordfreq's words for the others, titles.

    Args:
        out: Folder to write.
        wikipedia: A file or folder with the text of Wikipedias, or many, as [dumps/, de=folder]: dumps (dewiki-20240501-pages-articles-multistream.xml.bz2, which are
            read in parallel), wikiextractor's folders, parquet with a column text. The language is in the name, or given before "=".
        page_views: A folder of Wikimedia's page view files (pageviews-20240501-130000.gz), or many: the most viewed titles of every language are taken.
        wordnet: Folder of wordnets: NLTK's omw-1.4 and wordnet, or those of the wn package.
        titles: JSON file {language: [title, ...]} of more entries: titles of articles, names of places or products.
        unigram_languages: Languages that get wordfreq's words, as [de, ja]; by default all 42 but those of the Wikipedias.
        wordlist: wordfreq's list: "small" (30,000 to 60,000 words a language, 42 languages), "large" (21 languages), or "best" of the two for each language.
        limits: How many entries of each source.
        segmenter: Who finds the words of languages without spaces: "best" is one package for each (`pip install 'mc2[segment]'`), "icu" one fast dictionary for
            all, "simple" takes every character for a word.
        counts: Folder for the counts of Wikipedias and page views, `counts` in OUT by default. Another build with other limits may use it again.
        memory_gb: Memory for the sum over one language; beyond it the disk is used. A process that counts takes less than 1 GB, or what
            is given up to 2 GB where it sums page views.
        more_languages: Languages that your language identification knows beside those of lid.176, as [zu, ha]: their Wikipedias and page views give to them.
        progress: Show progress bars.
    """
    from mc2 import languages, storage
    from mc2.metadata.build import build_metadata

    given = storage.read_json(titles) if titles else {}
    if not isinstance(given, dict) or not all(
        isinstance(value, list) and all(isinstance(title, str) for title in value) for value in given.values()
    ):
        raise ValueError(f"{titles}: found other JSON, need {{language: [title, ...]}}")
    metadata = build_metadata(
        out,
        unigram_languages,
        given,
        wikipedia=[wikipedia] if isinstance(wikipedia, str) else wikipedia or (),
        page_views=[page_views] if isinstance(page_views, str) else page_views or (),
        wordnet=wordnet,
        wordlist=wordlist,
        limits=limits,
        segmenter=segmenter,
        counts=counts,
        memory_gb=memory_gb,
        more_languages=more_languages or (),
        engine=make_engine(out / ".logs", progress=progress, **engine_options),
        progress=progress,
    )
    print(f"{out}: {sum(metadata.num_entries.values()):,} entries in {len(metadata.sha256)} languages, fingerprint {metadata.fingerprint}")
    if skipped := storage.read_json(out / "done.json")["results"]["skipped"]:
        print(f"skipped Wikipedias whose language lid.176 does not know: {', '.join(skipped)}")
        if more := [code for code in map(languages.language_to_know, skipped) if code]:
            print(f"give those that your model knows: --more_languages '[{', '.join(more)}]'")


def join(folder: Path, out: Path, language: str = "mul") -> None:
    """The entries of all languages as one list, for the ablation without languages: `mc2 curate run --language.assume mul`.

    Args:
        folder: Folder of `mc2 metadata build`.
        out: Folder to write.
        language: The code that the list gets.
    """
    from mc2.metadata.join import join_languages

    metadata = join_languages(folder, out, language)
    print(f"{out}: {sum(metadata.num_entries.values()):,} entries under {language!r}, fingerprint {metadata.fingerprint}")


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
    from mc2.usage import call

    call({"build": build, "join": join, "show": show}, argv[1:], "mc2 metadata", "Entry lists per language.")
    return 0
