"""The stage `match`: language and entries of every caption of a pool, one parquet for each shard.

<shard>.parquet   `records.MATCHED_SCHEMA`; what was dropped before there was a caption is in the file's metadata under "drops"
.automata/        a cache, safe to delete
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.language_id import BEST, LanguageSettings
from mc2.curation.language_id import DROPS as LANGUAGE_DROPS
from mc2.curation.match import Matcher, MatchRule, load_matcher
from mc2.curation.one_language import open_identifier
from mc2.curation.pool import pool_fingerprint, pool_has_images, pool_shards, read_pairs
from mc2.curation.pool_columns import BY_NAME, PoolColumns
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import Metadata
from mc2.records import MATCHED_SCHEMA, Pair

DROPS = (None, "not_utf8", "empty_caption", "long_caption", "unknown_language", "no_metadata", "no_entry")
NOT_UTF8, EMPTY, LONG, NO_ENTRY = (DROPS.index(reason) for reason in ("not_utf8", "empty_caption", "long_caption", "no_entry"))
_DROPS_OF_LANGUAGE = np.array([DROPS.index(reason) for reason in LANGUAGE_DROPS], np.uint8)


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
    """Language and entries of captions, or the reason of their drop. Automata of languages are opened when the first caption needs them."""

    def __init__(self, metadata: Metadata, cache: Path, settings: MatchSettings) -> None:
        self.metadata, self.cache, self.settings = metadata, cache, settings
        self.identifier = open_identifier(metadata.sha256, settings.language)
        self._matchers: dict[str, Matcher] = {}

    def __call__(self, pairs: Sequence[Pair]) -> pa.Table:
        """One row of `MATCHED_SCHEMA` for each caption of the pairs, in their order."""
        captions = [caption for pair in pairs for caption in pair.captions]
        numbers = np.array([len(pair.captions) for pair in pairs], np.int64)
        pair_of = np.repeat(np.arange(len(pairs)), numbers)
        caption_index = np.arange(len(captions)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
        texts, drop = readable_captions(captions, self.settings.max_characters)
        hints = pa.array([pair.hint for pair in pairs], pa.string()).take(pair_of) if any(pair.hint for pair in pairs) else None
        language, score, drop = self.identify(texts, hints, drop)
        lengths, ids = self.match(texts, language, drop)
        drop = np.where((drop == 0) & (lengths == 0), NO_ENTRY, drop)
        starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        columns = (
            pa.array([pair.key for pair in pairs], pa.string()).take(pair_of),
            pa.array(caption_index.astype(np.int32)),
            pa.array(["", *self.identifier.languages]).take(language + 1),
            pa.array(score),
            pa.ListArray.from_arrays(starts, ids),
            pa.array(DROPS, pa.string()).take(drop),
        )
        return pa.table(columns, schema=MATCHED_SCHEMA)

    def identify(
        self, texts: pa.LargeStringArray, hints: pa.StringArray | None, drop: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.uint8]]:
        """(language, score, drop) of N captions: position in `identifier.languages` or -1, certainty, and position in `DROPS`. Dropped ones are passed over."""
        rows = np.flatnonzero(drop == 0)
        if len(rows) < len(texts):
            texts, hints = texts.take(rows), None if hints is None else hints.take(rows)
        found = self.identifier.identify(texts, hints)
        language, score, drop = np.full(len(drop), -1, np.int16), np.zeros(len(drop), np.float32), drop.copy()
        language[rows], score[rows], drop[rows] = found.language, found.score, _DROPS_OF_LANGUAGE[found.drop]
        return language, score, drop

    def match(
        self, texts: pa.LargeStringArray, language: NDArray[np.int16], drop: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(number of entries of each of N captions, their ids one after the other). Dropped captions have none."""
        from mc2.curation.automaton_kernels import place_lists

        stay = np.where(drop == 0, language, -1)
        found = []
        lengths = np.zeros(len(texts), np.int32)
        for position in np.unique(stay[stay >= 0]).tolist():
            rows = np.flatnonzero(stay == position)
            number, ids = self.matcher(self.identifier.languages[position])(texts, rows)
            lengths[rows] = number
            found.append((number, ids, rows))
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        placed = np.zeros(int(lengths.sum()), np.int32)
        for number, ids, rows in found:
            place_lists(number, ids, rows, starts, placed)
        return lengths, placed

    def matcher(self, language: str) -> Matcher:
        """The matcher of a language, opened once."""
        if language not in self._matchers:
            self._matchers[language] = load_matcher(self.cache, self.metadata, language, self.settings.rule)
        return self._matchers[language]


def readable_captions(captions: Sequence[str], max_characters: int) -> tuple[pa.LargeStringArray, NDArray[np.uint8]]:
    """N captions as an Arrow array, with nothing in place of those that nobody can read, and why these are dropped (position in `DROPS`, 0: they are not)."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    drop = np.where(lengths > max_characters, LONG, 0).astype(np.uint8)
    drop[np.fromiter(map(str.isspace, captions), np.bool_, len(captions)) | (lengths == 0)] = EMPTY
    try:
        texts = pa.array(captions, pa.large_string())
    except UnicodeEncodeError:
        drop[[not _is_utf8(caption) for caption in captions]] = NOT_UTF8
        texts = None
    if drop.any():
        texts = pa.array(["" if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)], pa.large_string())
    return texts, drop


def _is_utf8(caption: str) -> bool:
    """False for a caption with a lone surrogate."""
    if caption.isascii():
        return True
    try:
        caption.encode()
    except UnicodeEncodeError:
        return False
    return True


def batches(pairs: Iterable[Pair], max_captions: int = 1 << 15, max_characters: int = 1 << 24) -> Iterator[list[Pair]]:
    """The pairs in lists with few enough captions and characters that a batch takes some ten megabytes; a pair alone may have more."""
    batch: list[Pair] = []
    num_captions, num_characters = 0, 0
    for pair in pairs:
        batch.append(pair)
        num_captions += len(pair.captions)
        for caption in pair.captions:
            num_characters += len(caption)
        if num_captions >= max_captions or num_characters >= max_characters:
            yield batch
            batch, num_captions, num_characters = [], 0, 0
    if batch:
        yield batch


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
        load_matcher(self.cache, Metadata.open(self.metadata), language, self.rule)


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
            tables = [matcher(batch) for batch in batches(read_pairs(shard, drops, images=False, columns=self.columns))]
            write_matched(path, tables, drops, pool_fingerprint([shard]))
        return matched_drops(path)


# Ids ascend in a caption, languages repeat, and nobody searches by statistics: fewer bytes in two thirds of the time.
_ENCODING: dict[str, Any] = {
    "use_dictionary": ["language", "drop"],
    "column_encoding": {"entries.list.element": "DELTA_BINARY_PACKED"},
    "write_statistics": False,
}


def write_matched(path: Path, tables: Sequence[pa.Table], drops: Mapping[str, int], mark: str = "") -> None:
    """Write the rows of a shard: the same bytes however they were cut into tables. mark: stands for the pool shard."""
    whole = pa.concat_tables([MATCHED_SCHEMA.empty_table(), *tables]).combine_chunks()
    with storage.atomic_write(path) as file:
        rows = whole.replace_schema_metadata({"drops": json.dumps(dict(sorted(drops.items()))), "shard": mark})
        pq.write_table(rows, file, compression="zstd", **_ENCODING)


def matched_drops(path: Path) -> dict[str, int]:
    """Drops by reason of a matched shard: of pairs that gave no caption, and of captions."""
    table = pq.read_table(path, columns=["drop"])
    drops = Counter(json.loads(table.schema.metadata[b"drops"]))
    drops.update({row["values"]: row["counts"] for row in table["drop"].drop_null().value_counts().to_pylist()})
    return dict(sorted(drops.items()))


def _still_right(out: Path, shards: Sequence[Path], different: set[str]) -> bool:
    """Whether an unfinished match goes on with a pool that has changed: some of its files are of shards that are as they were.

    The files of shards that were mended or taken out are deleted then.
    """
    if different != {"pool"}:
        return False
    mark_of = {shard.stem: pool_fingerprint([shard]) for shard in shards}
    made = {path: pq.read_metadata(path).metadata.get(b"shard", b"").decode() for path in out.glob("*.parquet")}
    right = {path for path, mark in made.items() if mark_of.get(path.stem) == mark}
    if right:
        for path in made.keys() - right:
            path.unlink()
    return bool(right)


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
    if out.resolve() in {shard.parent.resolve() for shard in map(Path, shards)}:
        raise ValueError(f"{out}: is the pool; choose another folder for what is matched")
    inputs = {"pool": pool_fingerprint(shards), "metadata": opened.fingerprint, **settings.inputs(), "columns": vars(columns)}
    with storage.Stage(out, "match", inputs, scratch=[".automata"], still_right=partial(_still_right, out, shards)) as stage:
        if not stage.done:
            pool_has_images(shards, columns)  # checks the columns
            identifier = open_identifier(opened.sha256, settings.language)  # a wrong setting is one error
            engine.map("automata", BuildAutomaton(opened.folder, out / ".automata", settings.rule), identifier.candidates)
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
