"""What a build of metadata is given, checked before any work: which languages get words from where, and what all of it is called in the manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from mc2 import languages, storage
from mc2.metadata.entries import drop_reason
from mc2.metadata.ngrams import part_mark
from mc2.metadata.segmenters import SegmenterChoice
from mc2.metadata.selection import Limits
from mc2.metadata.unigrams import Wordlist, wordfreq_version, wordlist_codes
from mc2.metadata.wikipedia import Part, find_parts
from mc2.metadata.wordnet import wordnet_files


@dataclass(frozen=True)
class Given:
    """What the user names: the arguments of `build_metadata` that say where entries come from."""

    unigram_languages: Sequence[str] | None
    titles: Mapping[str, Sequence[str]]
    wikipedia: Sequence[str | Path]
    page_views: Sequence[str | Path]
    wordnet: str | Path | None
    wordlist: Wordlist
    segmenter: SegmenterChoice
    limits: Limits
    more_languages: Sequence[str] = ()


@dataclass(frozen=True)
class Sources:
    """All that the entries depend on.

    wordfreq: languages that get its words. titles: language -> titles. parts: mark -> part of a Wikipedia whose language is known. skipped: codes of the others.
    more_languages: that the language identification tells apart beside those of lid.176.
    """

    wordfreq: Sequence[str]
    titles: Mapping[str, Sequence[str]]
    parts: Mapping[str, Part]
    skipped: Sequence[str]
    page_views: Sequence[Path]
    wordnet: Path | None
    wordlist: Wordlist
    segmenter: SegmenterChoice
    limits: Limits
    more_languages: Sequence[str]

    @property
    def known(self) -> frozenset[str]:
        """Languages that the language identification tells apart."""
        return languages.LID176 | frozenset(self.more_languages)

    @property
    def languages(self) -> set[str]:
        """Languages of all sources but page views and WordNet."""
        return {*self.wordfreq, *self.titles, *(part_language(part, self.known) for part in self.parts.values())}

    def parts_of(self, language: str) -> dict[str, Part]:
        return {mark: part for mark, part in self.parts.items() if part_language(part, self.known) == language}

    def inputs(self) -> storage.JSON:
        """What a finished folder must have been made of."""
        return {
            "unigram_languages": list(self.wordfreq),
            "titles": storage.fingerprint(self.titles),
            "wordlist": self.wordlist,
            "wordfreq": wordfreq_version(),
            "wikipedia": storage.fingerprint(sorted(self.parts)),
            "page_views": storage.fingerprint(named(self.page_views)),
            "wordnet": storage.fingerprint(named(self.wordnet_files())),
            "segmenter": self.segmenter,
            "limits": asdict(self.limits),
            **({"more_languages": list(self.more_languages)} if self.more_languages else {}),
        }

    def wordnet_files(self) -> list[Path]:
        return wordnet_files(self.wordnet) if self.wordnet else []


def part_language(part: Part, known: Collection[str]) -> str:
    """The metadata language of a part, "other" for one that the language identification does not know."""
    return languages.wikipedia_language(part.code, known) or languages.OTHER


def named(files: Iterable[Path]) -> list[storage.JSON]:
    """Names and sizes of files, as a manifest shows them."""
    return [{"name": path.name, "bytes": path.stat().st_size} for path in files]


def check_sources(given: Given) -> Sources:
    """Errors: ValueError for a path that is missing or unknown, an unknown language, a language without a word list; ImportError for a missing package."""
    parts: dict[str, Part] = {}
    skipped = set()
    more_languages = sorted({languages.canonical(code) for code in given.more_languages} - languages.LID176)
    known = languages.LID176 | set(more_languages)
    for part in find_parts(given.wikipedia):
        if part_language(part, known) == languages.OTHER:
            skipped.add(part.code)
        else:
            parts[part_mark(part, given.segmenter)] = part
    page_views = _page_view_files(given.page_views)
    _check_packages(["duckdb", "mwparserfromhell"] if parts else ["duckdb"] if page_views else [])
    sources = Sources(
        wordfreq=wordfreq_languages(given.unigram_languages, given.wordlist, {part_language(part, known) for part in parts.values()}),
        titles=_titles_by_language(given.titles),
        parts=parts,
        skipped=sorted(skipped),
        page_views=page_views,
        wordnet=Path(given.wordnet) if given.wordnet else None,
        wordlist=given.wordlist,
        segmenter=given.segmenter,
        limits=given.limits,
        more_languages=more_languages,
    )
    if not (sources.languages or page_views or sources.wordnet):
        left = f" (Wikipedias of languages that the language identification does not know: {', '.join(sources.skipped)})" if skipped else ""
        raise ValueError(f"metadata: found no source of entries{left}; give Wikipedias, page views, wordnets, titles or unigram_languages")
    return sources


def wordfreq_languages(wanted: Sequence[str] | None, wordlist: Wordlist, with_wikipedia: Collection[str]) -> list[str]:
    """The languages that get wordfreq's words: the wanted ones, by default all that it has and no Wikipedia is given for."""
    available = wordlist_codes(wordlist)
    if wanted is None:
        return sorted(set(available) - set(with_wikipedia))
    codes = sorted({languages.metadata_code(code) for code in wanted})
    missing = [code for code in codes if code not in available]
    if missing:
        raise ValueError(
            f"metadata: wordfreq has no {wordlist!r} list for {', '.join(missing)}; need some of {', '.join(sorted(available))}"
        )
    return codes


def _titles_by_language(titles: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    joined: defaultdict[str, list[str]] = defaultdict(list)
    for code in sorted(titles):
        if isinstance(titles[code], str):
            raise ValueError(f"metadata: found one string as the titles of {code!r}, need a list of strings")
        if strange := [title for title in titles[code] if not isinstance(title, str) or drop_reason(title) == "not_utf8"]:
            raise ValueError(f"metadata: found {strange[0]!r} among the titles of {code!r}, need text")
        joined[languages.metadata_code(code)].extend(titles[code])
    return dict(joined)


def _page_view_files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: not found; need page view files, or a folder of them")
        files += [path] if path.is_file() else sorted(file for file in path.rglob("pageviews-*") if file.is_file())
    if paths and not files:
        raise ValueError(f"{paths[0]}: has no page view files; need names as pageviews-20240501-130000.gz or pageviews-20240501-user.bz2")
    return files


def _check_packages(names: Sequence[str]) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"metadata: Wikipedias and page views need the package {' and '.join(missing)}; run `pip install 'mc2[wikipedia]'`"
        )
