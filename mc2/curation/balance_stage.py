"""The stage `balance`: counts summed over the matched shards, then tail share, thresholds, probabilities, and what they keep (RECIPE 1.1).

<language>.parquet   the entries that occur, most frequent first: id, entry, count, probability, expected_count
balance.json         the whole arithmetic: pool, languages, captions, matches, tail share, thresholds, head and tail, what is expected and what is drawn
.sums/               while the stage runs: partial sums, see `mc2.curation.balance_sums`
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation import balance
from mc2.curation.balance_sums import EntrySums, Numbers, SumGroup, sum_all
from mc2.curation.duplicates_stage import check_duplicates
from mc2.curation.matched import MatchedShard
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.metadata.entries import Metadata

# --- one shard ----------------------------------------------------------------------------------------------------------


def count_shard(shard: MatchedShard, counts: EntrySums) -> Numbers:
    """Add to `counts` the captions with each entry. Returns what there is of pairs, captions and drops."""
    of_match = shard.language_of_match
    for number, code in enumerate(shard.languages):
        counts.add(code, shard.entry_ids[of_match == number], 1)
    matched = dict(zip(shard.languages, np.bincount(shard.language, minlength=len(shard.languages)).tolist(), strict=True))
    rows = {code: {"captions": number, "matched": matched.get(code, 0)} for code, number in shard.identified.items()}
    total = {"pairs": shard.num_pairs, "pairs_matched": len(shard.keys), "pool_captions": shard.num_captions}
    total |= {"duplicate_pairs": sum(shard.duplicates.values()), "duplicate_captions": shard.duplicate_captions}
    return {"languages": rows, "total": total, "caption_drops": shard.caption_drops}


@dataclass(frozen=True)
class Draws:
    """The epoch of training whose keyed draws are counted."""

    seed: int = 0
    epoch: int = 0


@lru_cache(maxsize=1)
def probabilities_once(folder: Path, _fingerprint: str) -> dict[str, balance.FloatArray]:
    """Probabilities per language of a balance, read once per process. The fingerprint keeps a worker from using an older balance of the same folder."""
    return balance.Balance.load(folder).probabilities


@dataclass(frozen=True)
class KeepShard:
    """What balancing keeps of a shard, by expectation and by the keyed draws.

    captions: each caption is judged by itself. pairs: one caption of each pair is drawn and judged, as in an epoch of training; pairs_variance is that of the
    drawn number, pairs being independent of each other.
    """

    balance: Path
    fingerprint: str
    draws: Draws

    def __call__(self, shard: MatchedShard, expected_counts: EntrySums) -> Numbers:
        """Add to `expected_counts` the captions with each entry that are expected to be kept. Returns the other numbers."""
        match_prob = shard.match_prob(probabilities_once(self.balance, self.fingerprint))
        caption_prob = balance.keep_probabilities(match_prob, shard.lengths)
        of_match, prob_of_match = shard.language_of_match, np.repeat(caption_prob, shard.lengths)
        for number, code in enumerate(shard.languages):
            mine = of_match == number
            expected_counts.add(code, shard.entry_ids[mine], prob_of_match[mine])
        accepted = shard.accepted(match_prob, self.draws.seed, self.draws.epoch)
        drawn = balance.draw_captions(shard.keys, shard.pair, accepted, self.draws.seed, self.draws.epoch)
        pair_prob = caption_prob / np.bincount(shard.pair)[shard.pair]  # of the caption to be drawn and accepted
        columns: dict[str, NDArray[Any]] = {
            "expected_captions": np.bincount(shard.language, caption_prob),
            "drawn_captions": np.bincount(shard.language[accepted], minlength=len(shard.languages)),
            "expected_pairs": np.bincount(shard.language, pair_prob),
            "drawn_pairs": np.bincount(shard.language[drawn], minlength=len(shard.languages)),
            "pairs_variance": _pairs_variance(shard, pair_prob),
        }
        rows = {code: {name: values[number].item() for name, values in columns.items()} for number, code in enumerate(shard.languages)}
        prob = np.bincount(shard.pair, pair_prob)
        return {"languages": rows, "total": {"pairs_variance": float((prob * (1 - prob)).sum())}}


def _pairs_variance(shard: MatchedShard, pair_prob: balance.FloatArray) -> balance.FloatArray:
    """Per language the variance of the number of pairs that show a caption of it."""
    num_languages = max(1, len(shard.languages))
    cells, cell = np.unique(shard.pair * num_languages + shard.language, return_inverse=True)
    prob = np.bincount(cell, pair_prob)
    return np.bincount(cells % num_languages, prob * (1 - prob)).astype(np.float64)


# --- all shards ---------------------------------------------------------------------------------------------------------


def run_balance(
    matched: str | Path,
    metadata: str | Path,
    out: str | Path,
    english_threshold: int | None = None,
    english_rule: balance.EnglishRule = "paper",
    tail_share: float | None = None,
    engine: Engine | None = None,
    draws: Draws = Draws(),
    duplicates: str | Path | None = None,
) -> dict[str, Any]:
    """Counts, tail share, thresholds and probabilities of a matched pool, without its duplicates if their folder is given. Returns `balance.json` as a dict."""
    matched, out, engine = Path(matched), Path(out), engine or LocalEngine()
    done, opened = storage.finished(matched, "match", "mc2 curate match"), Metadata.open(metadata)
    if storage.read_json(matched / "inputs.json")["metadata"] != opened.fingerprint:
        raise ValueError(f"{matched}: was matched with other metadata than {opened.folder}; run `mc2 curate match` with this metadata")
    english_threshold = balance.english_threshold_in_force(english_threshold, english_rule, tail_share)
    duplicates = Path(duplicates) if duplicates is not None else None
    without = check_duplicates(duplicates, storage.read_json(matched / "inputs.json")["pool"])
    rules = {"duplicates": without, "english_threshold": english_threshold, "english_rule": english_rule, "tail_share": tail_share}
    with storage.Stage(out, "balance", {"matched": done["fingerprint"], **rules, **vars(draws)}, scratch=[".sums"]) as stage:
        if not stage.done:

            def add_up(name: str, kind: Any, function: Any) -> tuple[dict[str, NDArray[Any]], Numbers]:
                return sum_all(
                    SumGroup(matched, out / ".sums", name, kind, function, opened.num_entries, stage.fingerprint, duplicates), engine
                )

            counts, counted = add_up("count", np.int64, count_shard)
            for code in counted["languages"]:  # also those in which nothing matched
                counts.setdefault(code, np.zeros(opened.num_entries[code], np.int64))
            balanced = balance.balance_languages(counts, english_threshold, english_rule, tail_share)
            balanced.save(out, opened.entries)  # for the workers of the next line
            expected, kept = add_up("keep", np.float64, KeepShard(out, stage.fingerprint, draws))
            fingerprints = {"metadata": opened.fingerprint, "matched": done["fingerprint"], "duplicates": without}
            summary = {"fingerprints": fingerprints, "draws": vars(draws), "drops": done["results"]["drops"]}
            counted["total"]["shards"] = done["results"]["shards"]
            balanced.save(out, opened.entries, expected, summary | _summary(counted, kept, balanced, expected))
            shutil.rmtree(out / ".sums", ignore_errors=True)
            stage.finish({})
    value: dict[str, Any] = storage.read_json(out / "balance.json")
    return value


SUMMED = ("captions", "matched", "expected_captions", "drawn_captions", "expected_pairs", "drawn_pairs")
USUAL_TAIL_SHARE = 0.06  # of the published runs


def _summary(
    counted: Numbers, kept: Numbers, balanced: balance.Balance, expected_counts: Mapping[str, balance.FloatArray]
) -> dict[str, Any]:
    """The rows of the languages, their sums, and what is known of the pool as a whole."""
    rows: dict[str, dict[str, Any]] = {}
    for code, language in balanced.languages.items():
        expected, head = expected_counts.get(code, np.zeros(len(language.counts))), language.counts > language.threshold
        rows[code] = {
            **dict.fromkeys((*SUMMED, "pairs_variance"), 0),
            **counted["languages"][code],
            **kept["languages"].get(code, {}),
            **language.arithmetic(),
            "expected_head_matches": float(expected[head].sum()),
            "expected_tail_matches": float(expected[~head].sum()),
        }
    names = rows[next(iter(rows))].keys() - {"threshold", "pairs_variance"} if rows else ()
    total = {**counted["total"], **kept["total"], **{name: sum(row[name] for row in rows.values()) for name in sorted(names)}}
    for row in (total, *rows.values()):
        row["pairs_deviation"] = sqrt(row.pop("pairs_variance"))
    english = balanced.languages.get("en")
    return {
        "usual_english_threshold": balance.head_threshold(english.counts, USUAL_TAIL_SHARE) + 1 if english else None,
        "total": total,
        "caption_drops": dict(sorted(counted["caption_drops"].items())),
        "languages": rows,
    }
