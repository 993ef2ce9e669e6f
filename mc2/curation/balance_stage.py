"""The stage `balance`: counts summed over the matched shards, then tail share, thresholds, probabilities and what to expect of them (RECIPE 1.1).

<language>.parquet   the entries that occur, most frequent first: id, entry, count, probability, expected_count
balance.json         the whole arithmetic: pool, languages, captions, matches, tail share, thresholds, head and tail, expected kept
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation import balance
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import Metadata


@dataclass(frozen=True)
class LanguageCaptions:
    """The matched captions of one language in one shard: all entry ids one after the other, and per caption the number of ids and of its pair's captions."""

    entry_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    captions_of_pair: NDArray[np.int64]


def read_matched(path: Path) -> tuple[dict[str, int], dict[str, LanguageCaptions], int]:
    """Of a matched shard: captions identified per language, the matched captions per language, and the number of pairs with a matched caption."""
    table = pq.read_table(path, columns=["key", "language", "entries", "drop"])
    identified = table.filter(pc.or_kleene(pc.is_null(table["drop"]), pc.equal(table["drop"], "no_entry")))
    captions = Counter(identified["language"].to_pylist())
    matched = table.filter(pc.is_null(table["drop"])).combine_chunks()
    keys = matched["key"].combine_chunks().dictionary_encode()
    pair_index = keys.indices.to_numpy() if len(keys) else np.zeros(0, np.int64)
    captions_of_pair = np.bincount(pair_index, minlength=len(keys.dictionary))[pair_index]
    by_language = {}
    for code in pc.unique(matched["language"]).to_pylist():
        rows = pc.equal(matched["language"], code).to_numpy()
        entries = matched["entries"].filter(pa.array(rows))
        by_language[code] = LanguageCaptions(
            pc.list_flatten(entries).to_numpy(), pc.list_value_length(entries).to_numpy().astype(np.int64), captions_of_pair[rows]
        )
    return dict(captions), by_language, len(keys.dictionary)


@dataclass(frozen=True)
class ShardCounts:
    """What one shard adds to the counts; entry ids and counts are sparse."""

    captions: Mapping[str, int]
    matched: Mapping[str, int]
    entries: Mapping[str, tuple[NDArray[np.int32], NDArray[np.int64]]]
    pairs: int


def count_shard(path: Path) -> ShardCounts:
    """The counts of a matched shard."""
    captions, by_language, pairs = read_matched(path)
    entries = {code: np.unique(part.entry_ids, return_counts=True) for code, part in by_language.items()}
    return ShardCounts(captions, {code: len(part.lengths) for code, part in by_language.items()}, entries, pairs)


@lru_cache(maxsize=1)
def probabilities_once(folder: Path, _fingerprint: str) -> dict[str, balance.FloatArray]:
    """Probabilities per language of a balance, read once per process. The fingerprint keeps a worker from using an older balance of the same folder."""
    return balance.Balance.load(folder).probabilities


@dataclass(frozen=True)
class Expected:
    """What balancing is expected to keep of one language in one shard.

    captions: number kept when each caption is judged by itself; entry_counts: number of these with each of `entry_ids`.
    pairs: number of pairs in an epoch that show a caption of this language, when one caption of each pair is drawn and judged.
    """

    captions: float
    pairs: float
    entry_ids: NDArray[np.int32]
    entry_counts: NDArray[np.float64]


@dataclass(frozen=True)
class ExpectShard:
    """Expected outcome of balancing per language for a matched shard; the balance is loaded once per process."""

    balance: Path
    fingerprint: str

    def __call__(self, path: Path) -> dict[str, Expected]:
        probabilities = probabilities_once(self.balance, self.fingerprint)
        result = {}
        for code, part in read_matched(path)[1].items():
            kept = balance.keep_probabilities(part.entry_ids, part.lengths, probabilities[code])
            ids, position = np.unique(part.entry_ids, return_inverse=True)
            entry_counts = np.bincount(position, weights=np.repeat(kept, part.lengths), minlength=len(ids)).astype(np.float64)
            result[code] = Expected(float(kept.sum()), float((kept / part.captions_of_pair).sum()), ids, entry_counts)
        return result


def run_balance(
    matched: str | Path,
    metadata: str | Path,
    out: str | Path,
    english_threshold: int = 170_000,
    english_rule: balance.EnglishRule = "paper",
    tail_share: float | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Counts, tail share, thresholds and probabilities of a matched pool. Returns `balance.json` as a dict."""
    matched, out, engine = Path(matched), Path(out), engine or LocalEngine()
    done, opened = storage.finished(matched, "match", "mc2 curate match"), Metadata.open(metadata)
    if storage.read_json(matched / "inputs.json")["metadata"] != opened.fingerprint:
        raise ValueError(f"{matched}: was matched with other metadata than {opened.folder}; run `mc2 curate match` with this metadata")
    rules = {"english_threshold": english_threshold, "english_rule": english_rule, "tail_share": tail_share}
    with storage.Stage(out, "balance", {"matched": done["fingerprint"], **rules}) as stage:
        if not stage.done:
            paths = sorted(matched.glob("*.parquet"))
            counted = engine.map("count", count_shard, paths)
            balanced = balance.balance_languages(_entry_counts(counted, opened), english_threshold, english_rule, tail_share)
            entries = {code: opened.entries(code) for code in balanced.languages}
            balanced.save(out, entries)  # for the workers of the next line
            expected = engine.map("expect", ExpectShard(out, stage.fingerprint), paths)
            summary = {"fingerprints": {"metadata": opened.fingerprint, "matched": done["fingerprint"]}, "drops": done["results"]["drops"]}
            balanced.save(out, entries, _expected_counts(expected, balanced), summary | _sums(counted, expected))
            stage.finish({})
    value: dict[str, Any] = storage.read_json(out / "balance.json")
    return value


def _entry_counts(counted: Sequence[ShardCounts], metadata: Metadata) -> dict[str, NDArray[np.int64]]:
    """Dense counts of every language that has a caption."""
    counts: dict[str, NDArray[np.int64]] = {}
    for shard in counted:
        for code in shard.captions:
            counts.setdefault(code, np.zeros(metadata.num_entries[code], np.int64))
        for code, (ids, number) in shard.entries.items():
            counts[code][ids] += number
    return counts


def _expected_counts(expected: Sequence[dict[str, Expected]], balanced: balance.Balance) -> dict[str, NDArray[np.float64]]:
    counts = {code: np.zeros(len(language.counts)) for code, language in balanced.languages.items()}
    for shard in expected:
        for code, part in shard.items():
            counts[code][part.entry_ids] += part.entry_counts
    return counts


def _sums(counted: Sequence[ShardCounts], expected: Sequence[dict[str, Expected]]) -> dict[str, Any]:
    """Captions and pairs of the pool and of each language; floating sums in the order of the shards, so that they repeat."""
    captions = sum((Counter(shard.captions) for shard in counted), Counter[str]())
    matched = sum((Counter(shard.matched) for shard in counted), Counter[str]())
    rows: dict[str, dict[str, float]] = {code: {"captions": captions[code], "matched": matched[code]} for code in sorted(captions)}
    for code, row in rows.items():
        parts = [shard[code] for shard in expected if code in shard]
        row["expected_captions"] = sum((part.captions for part in parts), 0.0)
        row["expected_pairs"] = sum((part.pairs for part in parts), 0.0)
    total = {name: sum(row[name] for row in rows.values()) for name in ("captions", "matched", "expected_captions", "expected_pairs")}
    return {"total": {"shards": len(counted), "pairs_matched": sum(shard.pairs for shard in counted), **total}, "languages": rows}
