"""Metadata of all languages from what is installed or given: numbers, WordNet, words and pairs of words of Wikipedias, wordfreq's words, titles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mc2 import languages, storage
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import NUMBERS, Metadata, merge_entries, write_language, write_manifest
from mc2.metadata.ngrams import count_part, count_paths, part_mark
from mc2.metadata.segmenters import SegmenterChoice, segmenter_name
from mc2.metadata.selection import Limits, select_ngrams
from mc2.metadata.unigrams import Wordlist, unigrams, wordfreq_version, wordlist_codes
from mc2.metadata.wikipedia import Part, find_parts

DEFAULT_LIMITS = Limits()


def build_metadata(
    out: str | Path,
    unigram_languages: Sequence[str] | None = None,
    titles: Mapping[str, Sequence[str]] | None = None,
    *,
    wikipedia: Sequence[str | Path] = (),
    wordlist: Wordlist = "small",
    limits: Limits = DEFAULT_LIMITS,
    segmenter: SegmenterChoice = "best",
    counts: str | Path | None = None,
    memory_gb: float = 4.0,
    engine: Engine | None = None,
    progress: bool = True,
) -> Metadata:
    """Write the entry lists of all languages that have any source, and return them. A finished folder is returned as it is, an unfinished one is finished.

    Args:
        out: Folder to write; it may hold the unfinished or finished work of the same call.
        unigram_languages: Languages that get wordfreq's words, beside a Wikipedia's; by default all that wordfreq has and `wikipedia` has not.
        titles: Language -> titles (of articles, of territories ...). Languages that share metadata are joined ("yue" gives to "zh").
        wikipedia: Files and folders with the text of Wikipedias (`wikipedia.find_parts`).
        wordlist: wordfreq's list: "small" (1.7 M words in 42 languages), "large" (8.6 M in 21), or "best" of the two for each language.
        limits: How many entries of each source.
        segmenter: Who finds the words of languages without spaces (`segmenters.words`).
        counts: Folder for the counts of the Wikipedias' parts, `counts` in `out` by default. Another build with other limits may use them again.
        memory_gb: What the sum over a language may take; beyond it the disk is used.
        engine: Counts the parts; processes of this machine by default.
        progress: Show progress bars.

    Errors: ValueError for an unknown language, a language without a word list, a limit out of range, or a folder of another run.
    """
    sources = _sources(unigram_languages, titles or {}, wikipedia, wordlist, limits, segmenter)
    with storage.Stage(Path(out), "metadata", sources.inputs) as stage:
        if not stage.done:
            folder = Path(counts) if counts else stage.folder / "counts"
            if sources.parts:
                _count(sources, folder, engine or LocalEngine(progress=progress))
            builder = partial(_build_language, sources=sources, out=stage.folder, counts=folder, memory_gb=memory_gb)
            rows = {code: builder(code) for code in _shown(sources.languages, progress)}
            mark = write_manifest(stage.folder, rows, {**sources.inputs, "skipped": sources.skipped})
            stage.finish({"fingerprint": mark, "languages": len(rows), "skipped": sources.skipped})
    return Metadata.open(out)


# --- what is given ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sources:
    """All that the entries depend on. `parts`: mark -> part, of Wikipedias whose language is known; `skipped`: code -> bytes of the others."""

    wordfreq: list[str]
    wordlist: Wordlist
    titles: dict[str, list[str]]
    parts: dict[str, Part]
    skipped: dict[str, int]
    limits: Limits
    segmenter: SegmenterChoice
    inputs: storage.JSON = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        return sorted({*self.wordfreq, *self.titles, *(_language(part) for part in self.parts.values())})

    def of(self, language: str) -> dict[str, Part]:
        return {mark: part for mark, part in self.parts.items() if _language(part) == language}


def _language(part: Part) -> str:
    return languages.wikipedia_language(part.code) or languages.OTHER


def _sources(
    unigram_languages: Sequence[str] | None,
    titles: Mapping[str, Sequence[str]],
    wikipedia: Sequence[str | Path],
    wordlist: Wordlist,
    limits: Limits,
    segmenter: SegmenterChoice,
) -> _Sources:
    parts, skipped = {}, dict[str, int]()
    for part in find_parts(wikipedia):
        if _language(part) == languages.OTHER:
            skipped[part.code] = skipped.get(part.code, 0) + part.end - part.start
        else:
            parts[part_mark(part, segmenter)] = part
    wordfreq = _wordfreq_languages(unigram_languages, wordlist, {_language(part) for part in parts.values()})
    titles_of = _titles_by_language(titles)
    inputs: storage.JSON = {
        "unigram_languages": wordfreq,
        "titles": storage.fingerprint(titles_of),
        "wordlist": wordlist,
        "wordfreq": wordfreq_version(),
        "wikipedia": storage.fingerprint(sorted(parts)),
        "segmenter": segmenter,
        "limits": asdict(limits),
    }
    return _Sources(wordfreq, wordlist, titles_of, parts, skipped, limits, segmenter, inputs)


def _wordfreq_languages(wanted: Sequence[str] | None, wordlist: Wordlist, have_wikipedia: Iterable[str]) -> list[str]:
    available = wordlist_codes(wordlist)
    if wanted is None:
        return sorted(set(available) - set(have_wikipedia))
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


# --- counting -----------------------------------------------------------------------------------------------------------


def _count(sources: _Sources, folder: Path, engine: Engine) -> None:
    """Count all parts that are not counted. What a worker needs to know of them lies beside the counts: it may be on another machine."""
    plan = {
        part.name: {"mark": mark, **asdict(part), "paths": [str(path.absolute()) for path in part.paths]}
        for mark, part in sources.parts.items()
    }
    path = folder / f"plan.{storage.fingerprint(plan)}.json"
    storage.write_json(path, plan)
    engine.map("count", partial(_count_planned, str(path), sources.segmenter), list(plan))


def _count_planned(plan: str, segmenter: SegmenterChoice, name: str) -> storage.JSON:
    fields = dict(_plan(plan)[name])
    mark = fields.pop("mark")
    part = Part(**{**fields, "paths": tuple(map(Path, fields["paths"]))})
    return count_part(part, mark, Path(plan).parent, segmenter)


@lru_cache(maxsize=2)
def _plan(path: str) -> Any:
    return storage.read_json(Path(path))


# --- one language -------------------------------------------------------------------------------------------------------


def _build_language(code: str, sources: _Sources, out: Path, counts: Path, memory_gb: float) -> storage.JSON:
    """Write a language and its row of the manifest, `<code>.json`; a language that has them is left as it is."""
    path = out / f"{code}.json"
    row: storage.JSON = storage.read_json(path) if path.exists() else {}
    if not row or not _is_whole(out / f"{code}.txt", row["sha256"]):
        words, wikipedia = _wikipedia_words(code, sources, counts, memory_gb)
        if code in sources.wordfreq:
            words["unigrams"] = [
                *words.get("unigrams", ()),
                *unigrams(code, sources.wordlist, sources.limits.wordfreq_fraction, sources.limits.max_unigrams),
            ]
        merged = merge_entries({"numbers": NUMBERS, **words, "titles": sources.titles.get(code, ())})
        row = {**write_language(out, code, merged), **wikipedia}
        storage.write_json(path, row)
    return row


def _wikipedia_words(code: str, sources: _Sources, counts: Path, memory_gb: float) -> tuple[dict[str, list[str]], storage.JSON]:
    """Unigrams and bigrams of a language's Wikipedias, and what they were taken from."""
    parts = sources.of(code)
    if not parts:
        return {}, {}
    words, pairs = zip(*(count_paths(counts, mark) for mark in parts), strict=True)
    one, two = select_ngrams(words, pairs, code, sources.limits, memory_gb, counts / "scratch")
    counted = [storage.read_json(counts / f"{mark}.json") for mark in parts]
    files = sorted(
        {
            (path.name if part.form == "dump" else f"{path.parent.name}/{path.name}", path.stat().st_size)
            for part in parts.values()
            for path in part.paths
        }
    )
    return {"unigrams": one, "bigrams": two}, {
        "wikipedia": {
            "segmenters": {wiki: segmenter_name(wiki, sources.segmenter) for wiki in sorted({part.code for part in parts.values()})},
            "articles": sum(count["articles"] for count in counted),
            "words": sum(count["words"] for count in counted),
            "files": [{"name": name, "bytes": size} for name, size in files],
        }
    }


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _shown(codes: list[str], progress: bool) -> Any:
    if not progress:
        return codes
    from rich.console import Console
    from rich.progress import track

    return track(codes, "metadata", console=Console(stderr=True))
