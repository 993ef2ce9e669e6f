"""The balance between head and tail of the entry counts (RECIPE 1.1): one set of rules for packing off-line and for drawing in the loader.

Symbols: for a language l, c[e] captions contain entry e (once per caption), t is the threshold between tail and head, p the share of matches in the tail,
q[e] = t / max(c[e], t) the probability of an entry. Everything above `Balance` is pure numpy; every draw is keyed by (seed, epoch, pair key, entry).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.records import PackedCaption

IntArray: TypeAlias = NDArray[np.integer[Any]]
FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

# "paper": English gets its threshold back from p like every other language. "published_code": English keeps the threshold that p was computed from.
# "one_threshold": the ablation (RECIPE 3) in which all languages get English's.
EnglishRule = Literal["paper", "published_code", "one_threshold"]

PUBLISHED_THRESHOLD = 170_000  # of English, at 2.5 billion pairs


# --- rules --------------------------------------------------------------------------------------------------------------


def entry_counts(entry_ids: IntArray, num_entries: int) -> NDArray[np.int64]:
    """Number of captions with each entry, from the ids of all captions one after the other (an id at most once per caption)."""
    return np.bincount(entry_ids, minlength=num_entries).astype(np.int64)


def tail_share(counts: IntArray, threshold: int) -> float:
    """Share of all matches that belongs to entries counted less than `threshold` times; nan where nothing matched."""
    total = int(counts.sum())
    return float(counts[counts < threshold].sum() / total) if total else float("nan")


def head_threshold(counts: IntArray, share: float) -> int:
    """The count whose inclusive cumulative share of the matches is nearest to `share`, of two equally near ones the smaller; 1 where nothing matched.

    Entries that never occur take no part, so the threshold is at least 1. The way back from `tail_share` is not exact: "<" there, inclusive here.
    """
    ascending = np.sort(counts[counts > 0])
    if not len(ascending):
        return 1
    cumulative = np.cumsum(ascending)
    return int(ascending[np.argmin(np.abs(cumulative - share * cumulative[-1]))])  # in matches, not shares: ties are exact


def entry_probabilities(counts: IntArray, threshold: int) -> FloatArray:
    """Probability q of each entry: 1 in the tail, threshold / count in the head."""
    return threshold / np.maximum(counts, threshold).astype(np.float64)


def keep_probability(entry_ids: IntArray, entry_prob: FloatArray) -> float:
    """Chance that a caption survives balancing: 1 - prod(1 - q) over its entries; 0 without entries."""
    return float(1.0 - np.prod(1.0 - entry_prob[entry_ids]))


def keep_probabilities(match_prob: FloatArray, lengths: IntArray) -> FloatArray:
    """`keep_probability` of many captions: q of the entries of all of them one after the other, and how many entries each has."""
    return 1.0 - _by_caption(np.multiply, 1.0 - match_prob, lengths, 1.0)


def accepted_captions(match_prob: FloatArray, uniforms: FloatArray, lengths: IntArray) -> BoolArray:
    """`accept` of many captions, from q and the draw of each entry of each caption."""
    return _by_caption(np.logical_or, uniforms < match_prob, lengths, False)


def _by_caption(operation: np.ufunc, values: NDArray[Any], lengths: IntArray, empty: float) -> NDArray[Any]:
    """The operation over the values of each caption; `empty` for a caption without any."""
    result = np.full(len(lengths), empty, values.dtype)
    some = lengths > 0
    if some.any():
        result[some] = operation.reduceat(values, (np.cumsum(lengths) - lengths)[some])
    return result


def accept(pair_key: str, entry_ids: IntArray | Sequence[int], entry_prob: FloatArray, seed: int, epoch: int) -> bool:
    """Whether any entry of the caption draws success. The same (seed, epoch, pair key, entry) always draws the same number."""
    ids = np.asarray(entry_ids, dtype=np.int64)
    return bool(np.any(storage.keyed_uniforms(seed, "balance", epoch, pair_key, ids) < entry_prob[ids]))


def draw_caption(
    pair_key: str, captions: Sequence[PackedCaption], probabilities: Mapping[str, FloatArray], seed: int, epoch: int
) -> int | None:
    """Index of the caption of a pair in this epoch, or None if the pair is not used in this epoch.

    One of the captions is drawn uniformly, then accepted or rejected. `probabilities` are q per language (`Balance.probabilities`). Errors: ValueError for a
    caption whose language or entries the balance does not know.
    """
    if not captions:
        return None
    index = drawn_caption(pair_key, len(captions), seed, epoch)
    return index if accept_caption(pair_key, captions[index], probabilities, seed, epoch) else None


def drawn_caption(pair_key: str, num_captions: int, seed: int, epoch: int) -> int:
    """Which caption of a pair is judged in this epoch."""
    return int(storage.keyed_uniform(seed, "caption", epoch, pair_key) * num_captions)


def accept_caption(pair_key: str, caption: PackedCaption, probabilities: Mapping[str, FloatArray], seed: int, epoch: int) -> bool:
    """`accept` by the probabilities of the caption's language. Errors: ValueError if the balance does not know the language or the entries."""
    entry_prob = probabilities.get(caption.language)
    if entry_prob is None or (caption.entries and max(caption.entries) >= len(entry_prob)):
        raise ValueError(
            f"balance: pair {pair_key} has a caption in {caption.language!r} with entries that this balance does not know; "
            "need the balance that the shards were packed with"
        )
    return accept(pair_key, caption.entries, entry_prob, seed, epoch)


def draw_captions(pair_keys: Sequence[str], pair: IntArray, accepted: BoolArray, seed: int, epoch: int) -> NDArray[np.int64]:
    """`draw_caption` of many pairs: the numbers of the captions that are used, at most one of each pair, ascending.

    pair: of each caption the number of its pair in `pair_keys`, ascending; accepted: of each caption.
    """
    captions_of_pair = np.bincount(pair, minlength=len(pair_keys))
    uniforms = (storage.keyed_hashes(seed, "caption", epoch, pair_keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    drawn = np.cumsum(captions_of_pair) - captions_of_pair + (uniforms * captions_of_pair).astype(np.int64)
    drawn = drawn[captions_of_pair > 0]
    return np.compress(accepted[drawn], drawn)


# --- the whole arithmetic -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageBalance:
    """Counts and probabilities of one language's entries, [num_entries] each, indexed by entry id."""

    counts: NDArray[np.int64]
    threshold: int
    entry_prob: FloatArray

    def arithmetic(self) -> dict[str, int | float]:
        """The sizes that follow from the counts and the threshold: head and tail in entries and in matches.

        The head is what balancing thins out, the entries counted more than the threshold. An entry counted just as often is in the tail here.
        """
        head = self.counts > self.threshold
        return {
            "entries": len(self.counts),
            "entries_seen": int((self.counts > 0).sum()),
            "matches": int(self.counts.sum()),
            "threshold": self.threshold,
            "head_entries": int(head.sum()),
            "tail_entries": int(((self.counts > 0) & ~head).sum()),
            "head_matches": int(self.counts[head].sum()),
            "tail_matches": int(self.counts[~head].sum()),
        }


@dataclass(frozen=True)
class Balance:
    """Thresholds and probabilities of all languages that have a caption."""

    tail_share: float
    english_threshold: int | None
    english_rule: EnglishRule
    languages: Mapping[str, LanguageBalance]

    @property
    def probabilities(self) -> dict[str, FloatArray]:
        """q per language, as `draw_caption` takes it."""
        return {code: language.entry_prob for code, language in self.languages.items()}

    @classmethod
    def load(cls, folder: str | Path) -> Balance:
        """The balance in a folder that `save` wrote. Errors: ValueError that names a file that is missing or does not fit."""
        folder = Path(folder)
        value = storage.read_json(folder / "balance.json")
        languages = {code: _read_language(folder / f"{code}.parquet", row) for code, row in value["languages"].items()}
        return cls(value["tail_share"], value["english_threshold"], value["english_rule"], languages)

    def save(
        self,
        folder: Path,
        entries: Callable[[str], Sequence[str]],
        expected_counts: Mapping[str, FloatArray] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `<language>.parquet` (the entries that occur, most frequent first) and, last, `balance.json`.

        `entries`: the entries of a language by id. `expected_counts`: per language the number of kept captions with each entry. `summary`: more for `balance.json`; its "languages" join ours.
        """
        for code, language in self.languages.items():
            _write_language(folder / f"{code}.parquet", language, entries(code), (expected_counts or {}).get(code))
        summary = dict(summary or {})
        rows = summary.pop("languages", {})
        rows = {code: {**rows.get(code, {}), **self.languages[code].arithmetic()} for code in self.languages}
        rules = {"tail_share": self.tail_share, "english_threshold": self.english_threshold, "english_rule": self.english_rule}
        storage.write_json(folder / "balance.json", {**rules, **summary, "languages": rows})


def english_threshold_in_force(english_threshold: int | None, english_rule: EnglishRule, share: float | None) -> int | None:
    """The threshold of English that p, or English itself, depends on: the published one by default; None if nothing does, because the tail share p is given.

    Errors: ValueError for a threshold below 1, and for one that nothing would depend on.
    """
    if share is not None and english_rule == "paper":
        if english_threshold is not None:
            raise ValueError(
                f"balance: found the English threshold {english_threshold} and the tail share {share}, need one of them: English gets its threshold from the "
                'tail share as all languages do, except under the English rule "published_code"'
            )
        return None
    if share is not None and english_rule == "one_threshold":
        raise ValueError(
            f'balance: found the tail share {share}, but under the English rule "one_threshold" nothing depends on it; leave it out'
        )
    if english_threshold is not None and english_threshold < 1:
        raise ValueError(f"balance: found an English threshold of {english_threshold}, need at least 1")
    return PUBLISHED_THRESHOLD if english_threshold is None else english_threshold


def balance_languages(
    counts: Mapping[str, NDArray[np.int64]],
    english_threshold: int | None = None,
    english_rule: EnglishRule = "paper",
    share: float | None = None,
) -> Balance:
    """Thresholds and probabilities of all languages from their counts.

    The tail share p is that of English at `english_threshold`, unless `share` gives it; under "one_threshold" that of all matches. Errors: ValueError if p can be had neither way; see also
    `english_threshold_in_force`.
    """
    english_threshold = english_threshold_in_force(english_threshold, english_rule, share)
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"balance: found a tail share of {share}, need a number between 0 and 1 (published runs come out near 0.06)")
    fixed: dict[str, int] = {}
    if english_rule == "one_threshold":
        assert english_threshold is not None
        fixed = dict.fromkeys(counts, english_threshold)
        share = tail_share(np.concatenate([np.zeros(0, np.int64), *counts.values()]), english_threshold)
    if share is None:
        if "en" not in counts or not counts["en"].any():
            raise ValueError(
                "balance: no English caption matched, and the tail share comes from English; set `tail_share` (published runs: near 0.06)"
            )
        assert english_threshold is not None  # p is not given, so it is in force
        share = tail_share(counts["en"], english_threshold)
    if english_rule == "published_code" and english_threshold is not None:
        fixed = {"en": english_threshold}
    languages = {}
    for code, count in sorted(counts.items()):
        threshold = fixed[code] if code in fixed else head_threshold(count, share)
        languages[code] = LanguageBalance(count, threshold, entry_probabilities(count, threshold))
    return Balance(share, english_threshold, english_rule, languages)


# --- files --------------------------------------------------------------------------------------------------------------


def _write_language(path: Path, language: LanguageBalance, entries: Sequence[str], expected_counts: FloatArray | None) -> None:
    seen = np.flatnonzero(language.counts)
    seen = seen[np.argsort(-language.counts[seen], kind="stable")].astype(np.int32)
    columns = {
        "id": seen,
        "entry": pa.array([entries[i] for i in seen.tolist()], pa.string()),
        "count": language.counts[seen],
        "probability": language.entry_prob[seen],
    }
    if expected_counts is not None:
        columns["expected_count"] = expected_counts[seen]
    with storage.atomic_write(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd")


def _read_language(path: Path, row: Mapping[str, Any]) -> LanguageBalance:
    try:
        ids, count, probability = storage.read_columns(path, "id", "count", "probability")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run `mc2 curate balance` again") from error
    counts, entry_prob = np.zeros(row["entries"], np.int64), np.ones(row["entries"])
    if count.sum() != row["matches"] or (len(ids) and ids.max() >= row["entries"]):
        raise ValueError(f"{path}: does not belong to balance.json beside it; run `mc2 curate balance` again")
    counts[ids], entry_prob[ids] = count, probability
    return LanguageBalance(counts, row["threshold"], entry_prob)
