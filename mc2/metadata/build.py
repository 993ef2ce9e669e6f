"""Metadata of all languages from what is installed or given: numbers, WordNet, words and pairs of words of Wikipedias, wordfreq's words, titles.

Every part of a Wikipedia is counted by itself and every language is written by itself, so that a build that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mc2 import languages, storage
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import NUMBERS, Metadata, merge_entries, write_language, write_manifest
from mc2.metadata.ngrams import count_part, count_paths
from mc2.metadata.page_views import VIEWS_GB, read_titles, sum_page_views, viewed_languages
from mc2.metadata.segmenters import SegmenterChoice, segmenter_name
from mc2.metadata.selection import Limits, select_ngrams
from mc2.metadata.sources import Given, Sources, check_sources, named
from mc2.metadata.unigrams import Wordlist, unigrams
from mc2.metadata.wikipedia import Part
from mc2.metadata.wordnet import wordnet_names

DEFAULT_LIMITS = Limits()


def build_metadata(
    out: str | Path,
    unigram_languages: Sequence[str] | None = None,
    titles: Mapping[str, Sequence[str]] | None = None,
    *,
    wikipedia: Sequence[str | Path] = (),
    page_views: Sequence[str | Path] = (),
    wordnet: str | Path | None = None,
    wordlist: Wordlist = "small",
    limits: Limits = DEFAULT_LIMITS,
    segmenter: SegmenterChoice = "best",
    counts: str | Path | None = None,
    memory_gb: float = 4.0,
    more_languages: Sequence[str] = (),
    engine: Engine | None = None,
    progress: bool = True,
) -> Metadata:
    """Write the entry lists of all languages that have any source, and return them. A finished folder is returned as it is, an unfinished one is finished.

    Args:
        out: Folder to write; it may hold the unfinished or finished work of the same call.
        unigram_languages: Languages that get wordfreq's words, beside a Wikipedia's; by default all that wordfreq has and `wikipedia` has not.
        titles: Language -> titles (of articles, of territories ...), all taken. Languages that share metadata are joined ("yue" gives to "zh").
        wikipedia: Files and folders with the text of Wikipedias (`wikipedia.find_parts`).
        page_views: Page view files and folders of them, whose most viewed titles are taken (`page_views.sum_page_views`).
        wordnet: Folder of wordnets, whose lemmas are all taken (`wordnet.wordnet_names`).
        wordlist: wordfreq's list: "small" (1.7 M words in 42 languages), "large" (8.6 M in 21), or "best" of the two for each language.
        limits: How many entries of each source.
        segmenter: Who finds the words of languages without spaces (`segmenters.words`).
        counts: Folder for the counts of Wikipedias and page views, `counts` in `out` by default. Another build with other limits may use them again.
        memory_gb: What the sum over a language may take, and each process that sums page views (at most VIEWS_GB); beyond it the disk is used.
        more_languages: That your language identification tells apart beside those of lid.176: their Wikipedias and page views give to them.
        engine: Counts the parts; processes of this machine by default.
        progress: Show progress bars.

    Errors: ValueError for what is given wrongly (`sources.check_sources`), what is damaged, or a folder of another run.
    """
    if memory_gb < 0.5:
        raise ValueError(f"metadata: found memory_gb {memory_gb}, need at least 0.5")
    given = Given(unigram_languages, titles or {}, wikipedia, page_views, wordnet, wordlist, segmenter, limits, more_languages)
    sources = check_sources(given)
    with storage.Stage(Path(out), "metadata", sources.inputs(), kept=["counts"], scratch=["scratch"]) as stage:
        if not stage.done:
            folder, scratch = Path(counts) if counts else stage.folder / "counts", stage.folder / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
            work = _count(sources, folder, engine or LocalEngine(progress=progress), memory_gb)
            rows = {
                code: _build_language(code, sources, work, stage.folder, memory_gb) for code in _shown(work.languages(sources), progress)
            }
            files = {"page_views": named(sources.page_views), "wordnet": named(sources.wordnet_files())}
            mark = write_manifest(stage.folder, rows, {**sources.inputs(), "skipped": sources.skipped, "files": files})
            shutil.rmtree(scratch, ignore_errors=True)
            stage.finish({"fingerprint": mark, "languages": len(rows), "skipped": sources.skipped})
    return Metadata.open(out)


# --- counting -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What was counted and read: the folder of the Wikipedias' counts, the folder of the titles' views, the names of wordnets by language."""

    counts: Path
    views: Path | None
    wordnet: Mapping[str, Sequence[str]]

    def languages(self, sources: Sources) -> list[str]:
        viewed = viewed_languages(self.views) if self.views else {}
        return sorted({*sources.languages, *viewed, *self.wordnet} - {languages.OTHER})


def _count(sources: Sources, folder: Path, engine: Engine, memory_gb: float) -> _Work:
    """Count all parts and page views that are not counted."""
    if sources.parts:
        _count_parts(sources, folder, engine)
    views = None
    if sources.page_views:
        mark = storage.fingerprint([named(sources.page_views), *sources.more_languages])
        views = sum_page_views(sources.page_views, folder / f"views.{mark}", engine, sources.known, min(memory_gb, VIEWS_GB))
    return _Work(folder, views, wordnet_names(sources.wordnet) if sources.wordnet else {})


def _count_parts(sources: Sources, folder: Path, engine: Engine) -> None:
    """What a worker needs to know of the parts lies beside the counts: it may be on another machine."""
    plan = {
        part.name: {"mark": mark, **asdict(part), "paths": [str(path.absolute()) for path in part.paths]}
        for mark, part in sources.parts.items()
    }
    path = folder / f"plan.{storage.fingerprint(plan)}.json"
    storage.write_json(path, plan)
    counts = engine.map("count", partial(_count_planned, str(path.absolute()), sources.segmenter), list(plan))
    articles: Counter[str] = Counter()
    for part, count in zip(sources.parts.values(), counts, strict=True):
        articles[part.code] += count["articles"]
    if empty := [code for code, number in articles.items() if not number]:
        raise ValueError(
            f"metadata: found no article in the Wikipedia of {', '.join(empty)}; need *-pages-articles*.xml.bz2, wikiextractor's output or parquet"
        )


def _count_planned(plan: str, segmenter: SegmenterChoice, name: str) -> storage.JSON:
    fields = dict(_plan(plan)[name])
    mark = fields.pop("mark")
    part = Part(**{**fields, "paths": tuple(map(Path, fields["paths"]))})
    return count_part(part, mark, Path(plan).parent, segmenter)


@lru_cache(maxsize=2)
def _plan(path: str) -> Any:
    return storage.read_json(Path(path))


# --- one language -------------------------------------------------------------------------------------------------------


def _build_language(code: str, sources: Sources, work: _Work, out: Path, memory_gb: float) -> storage.JSON:
    """Write a language and its row of the manifest, `<code>.json`; a language that has them is left as it is."""
    path, limits = out / f"{code}.json", sources.limits
    row: storage.JSON = storage.read_json(path) if path.exists() else {}
    if not row or not _is_whole(out / f"{code}.txt", row["sha256"]):
        parts = sources.parts_of(code)
        one, two = list[str](), list[str]()
        if parts:
            words, pairs = zip(*(count_paths(work.counts, mark) for mark in parts), strict=True)
            one, two = select_ngrams(words, pairs, code, limits, memory_gb, out / "scratch")
        if code in sources.wordfreq:
            one += unigrams(code, sources.wordlist, limits.wordfreq_fraction, limits.max_unigrams)
        candidates = {
            "numbers": NUMBERS,
            "wordnet": work.wordnet.get(code, ()),
            "unigrams": one,
            "bigrams": two,
            "titles": [*sources.titles.get(code, ()), *_viewed_titles(code, work.views, limits)],
        }
        row = write_language(out, code, merge_entries(candidates))
        if parts:
            row["wikipedia"] = _origin(parts, work.counts, sources.segmenter)
        storage.write_json(path, row)
    return row


def _viewed_titles(code: str, views: Path | None, limits: Limits) -> list[str]:
    if views is None:
        return []
    fraction, least = (1.0, limits.english_min_views) if code == "en" else (limits.title_fraction, 0)
    return [title for title, _ in read_titles(views, code, fraction, limits.max_titles, least)]


def _origin(parts: Mapping[str, Part], counts: Path, segmenter: SegmenterChoice) -> storage.JSON:
    """What the words of a language were taken from, for the manifest."""
    counted = [storage.read_json(counts / f"{mark}.json") for mark in parts]
    return {
        "segmenters": {wiki: segmenter_name(wiki, segmenter) for wiki in sorted({part.code for part in parts.values()})},
        "articles": sum(count["articles"] for count in counted),
        "words": sum(count["words"] for count in counted),
        "files": named(sorted({path for part in parts.values() for path in part.paths})),
    }


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _shown(codes: list[str], progress: bool) -> Any:
    if not progress:
        return codes
    from rich.console import Console
    from rich.progress import track

    return track(codes, "metadata", console=Console(stderr=True))
