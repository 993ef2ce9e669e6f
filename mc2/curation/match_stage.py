"""The stage `match`: language and entries of every caption of a pool, one parquet for each shard.

<shard>.parquet   `records.MATCHED_SCHEMA`; what was dropped before there was a caption is in the file's metadata under "drops"
.automata/        a cache, safe to delete
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.language_id import BEST, DROPS, LanguageIdentifier, LanguageSettings
from mc2.curation.match import Matcher, MatchRule, build_automaton, load_matcher
from mc2.curation.pool import pool_fingerprint, pool_has_images, pool_shards, read_pairs
from mc2.curation.pool_columns import BY_NAME, PoolColumns
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import Metadata
from mc2.records import MATCHED_SCHEMA


@dataclass(frozen=True)
class MatchSettings:
    """How captions are judged. `language`: the language identification. `max_characters`: a longer caption is dropped. `rule`: see `mc2.curation.match`."""

    language: LanguageSettings = BEST
    max_characters: int = 10_000
    rule: MatchRule = "mc2"

    def inputs(self) -> dict[str, object]:
        """The settings as plain types: what the result depends on."""
        return {"language": self.language.inputs(), "max_characters": self.max_characters, "rule": self.rule}


class CaptionMatcher:
    """Languages and entries of captions, or the reasons of their drops. Matchers of languages are loaded when the first caption needs them."""

    def __init__(self, metadata: Metadata, cache: Path, settings: MatchSettings) -> None:
        self.metadata, self.cache, self.settings = metadata, cache, settings
        self.identifier = LanguageIdentifier(metadata.sha256, settings.language)
        self._matchers: dict[str, Matcher] = {}

    def __call__(self, captions: Sequence[str], hints: Sequence[str]) -> list[tuple[str, float, NDArray[np.int32], str | None]]:
        """(language, score, entry ids, drop) of each caption."""
        none = np.zeros(0, np.int32)
        found: list[tuple[str, float, NDArray[np.int32], str | None]] = [("", 0.0, none, self._unreadable(caption)) for caption in captions]
        readable = [i for i, row in enumerate(found) if row[3] is None]
        texts, tags = pa.array([captions[i] for i in readable], pa.string()), pa.array([hints[i] for i in readable], pa.string())
        identified = self.identifier.identify(texts, tags)
        columns = (column.tolist() for column in (identified.language, identified.score, identified.drop))
        for i, position, score, number in zip(readable, *columns, strict=True):
            language, drop = self.identifier.languages[position] if position >= 0 else "", DROPS[number]
            ids = self._matcher(language)(captions[i]) if drop is None else none
            found[i] = (language, score, ids, drop if drop or len(ids) else "no_entry")
        return found

    def _unreadable(self, caption: str) -> str | None:
        if not caption.isascii():
            try:
                caption.encode()
            except UnicodeEncodeError:
                return "not_utf8"
        if not caption.strip():
            return "empty_caption"
        return "long_caption" if len(caption) > self.settings.max_characters else None

    def _matcher(self, language: str) -> Matcher:
        if language not in self._matchers:
            self._matchers[language] = load_matcher(self.cache, self.metadata, language, self.settings.rule)
        return self._matchers[language]


@lru_cache(maxsize=1)  # once per process
def _caption_matcher(metadata: Path, fingerprint: str, cache: Path, settings: MatchSettings) -> CaptionMatcher:
    opened = Metadata.open(metadata)
    if opened.fingerprint != fingerprint:
        raise ValueError(f"{metadata}: has changed under the running job; run `mc2 curate match` again into an empty folder")
    return CaptionMatcher(opened, cache, settings)


@dataclass(frozen=True)
class BuildAutomaton:
    """Puts the automaton of a language into the cache."""

    metadata: Path
    cache: Path
    rule: MatchRule

    def __call__(self, language: str) -> None:
        build_automaton(self.cache, Metadata.open(self.metadata), language, self.rule)


@dataclass(frozen=True)
class MatchShard:
    """Writes `<shard>.parquet` of a pool shard, unless it is there. Returns the drops by reason."""

    metadata: Path
    fingerprint: str
    out: Path
    settings: MatchSettings
    columns: PoolColumns = BY_NAME

    def __call__(self, shard: Path) -> dict[str, int]:
        path = self.out / f"{shard.stem}.parquet"
        if not path.exists():
            matcher = _caption_matcher(self.metadata, self.fingerprint, self.out / ".automata", self.settings)
            drops: Counter[str] = Counter()
            pairs = list(read_pairs(shard, drops, images=False, columns=self.columns))
            captions = [caption for pair in pairs for caption in pair.captions]
            found = matcher(captions, [pair.hint for pair in pairs for _ in pair.captions])
            keys = [(pair.key, index) for pair in pairs for index in range(len(pair.captions))]
            table = _matched_table([(*key, *row) for key, row in zip(keys, found, strict=True)]).replace_schema_metadata(
                {"drops": json.dumps(dict(sorted(drops.items())))}
            )
            with storage.atomic_write(path) as file:
                pq.write_table(table, file, compression="zstd")
        return matched_drops(path)


def _matched_table(rows: list[tuple[str, int, str, float, NDArray[np.int32], str | None]]) -> pa.Table:
    keys, indices, codes, scores, entries, drops = zip(*rows, strict=True) if rows else ([],) * 6
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in entries])]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, np.concatenate([np.zeros(0, np.int32), *entries]))
    columns = [pa.array(keys, pa.string()), pa.array(indices, pa.int32()), pa.array(codes, pa.string()), pa.array(scores, pa.float32())]
    return pa.table([*columns, lists, pa.array(drops, pa.string())], schema=MATCHED_SCHEMA)


def matched_drops(path: Path) -> dict[str, int]:
    """Drops by reason of a matched shard: of pairs that gave no caption, and of captions."""
    table = pq.read_table(path, columns=["drop"])
    drops = Counter(json.loads(table.schema.metadata[b"drops"]))
    drops.update(reason for reason in table["drop"].to_pylist() if reason is not None)
    return dict(sorted(drops.items()))


def run_match(
    pool: str | Path,
    metadata: str | Path,
    out: str | Path,
    settings: MatchSettings | None = None,
    engine: Engine | None = None,
    columns: PoolColumns = BY_NAME,
) -> dict[str, Any]:
    """Match every caption of a pool. Returns {"shards", "drops"}. Errors: ValueError for a missing pool or metadata, or a folder of another run."""
    settings, engine, out = settings or MatchSettings(), engine or LocalEngine(), Path(out)
    shards, opened = pool_shards(pool), Metadata.open(metadata)
    inputs = {"pool": pool_fingerprint(shards), "metadata": opened.fingerprint, **settings.inputs(), "columns": vars(columns)}
    with storage.Stage(out, "match", inputs) as stage:
        if not stage.done:
            pool_has_images(shards, columns)  # checks the columns
            identifier = LanguageIdentifier(opened.sha256, settings.language)  # a wrong setting is one error
            languages = identifier.candidates
            engine.map("automata", BuildAutomaton(opened.folder, out / ".automata", settings.rule), languages)
            drops = engine.map("match", MatchShard(opened.folder, opened.fingerprint, out, settings, columns), shards)
            stage.finish({"shards": len(shards), "drops": sum_drops(drops)})
        return stage.results


def matched_columns(matched: Path) -> PoolColumns:
    """The columns with which a pool was matched: whoever reads it again must use the same."""
    return PoolColumns(**storage.read_json(matched / "inputs.json")["columns"])


def sum_drops(drops: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum by reason, in the order of the reasons' names."""
    total: Counter[str] = Counter()
    for part in drops:
        total.update(part)
    return dict(sorted(total.items()))
