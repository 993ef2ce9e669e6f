"""How many entries a language gets, and which words and pairs of a Wikipedia become entries (RECIPE 1.2): fractions, caps, both published rankings of pairs.

Ties go by code point, so that the result is a function of the counts alone.

PMI = ln(c12 N / (c1 c2)) in nats; c1, c2, c12 counts of the words and of the pair, N the number of all words. The published "PMI > 30" cannot be a logarithm: even
for two words that occur once, together, in the four billion of the English Wikipedia, ln N = 22. We read it as the ratio c12 N / (c1 c2) > 30, the lift, PMI > 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mc2.metadata.database import open_database
from mc2.metadata.tokens import join_words

BigramRanking = Literal["weighted", "pmi"]


@dataclass(frozen=True)
class Limits:
    """How many entries of each source a language gets.

    Args:
        unigram_fraction: Share of all different words of a Wikipedia, most frequent first.
        wordfreq_fraction: The same of wordfreq's list, which is cut already.
        max_unigrams: At most this many words of a language, from either.
        bigram_ranking: "weighted" is (c12 + 1)^0.7 * (PMI - PMI_30%), PMI_30% the 30th percentile of the language's pairs (NeurIPS); pairs from there on.
            "pmi" ranks by PMI, which prefers pairs seen once; pairs above min_lift (published code).
        min_lift: Smallest c12 * N / (c1 * c2) of a pair, exp(PMI): for "pmi", and always for English.
        max_bigrams: At most this many pairs of a language.
        title_fraction: Share of the titles of a language, most viewed first.
        max_titles: At most this many of them.
        english_min_count: English words seen at least so often take the place of unigram_fraction.
        english_min_views: English titles viewed at least so often take the place of title_fraction.
    """

    unigram_fraction: float = 0.1
    wordfreq_fraction: float = 1.0
    max_unigrams: int = 251_465
    bigram_ranking: BigramRanking = "weighted"
    min_lift: float = 30.0
    max_bigrams: int = 100_646
    title_fraction: float = 0.76
    max_titles: int = 61_235
    english_min_count: int = 100
    english_min_views: int = 70

    def __post_init__(self) -> None:
        for name in ("unigram_fraction", "wordfreq_fraction", "title_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"metadata: found {name} {getattr(self, name)}, need more than 0 and at most 1")
        for name in ("max_unigrams", "max_bigrams", "max_titles", "min_lift", "english_min_count", "english_min_views"):
            if getattr(self, name) < 0:
                raise ValueError(f"metadata: found {name} {getattr(self, name)}, need at least 0")


def share(total: int, fraction: float, most: int) -> int:
    """How many of a ranked list are taken."""
    return min(most, round(total * fraction))


def select_ngrams(
    words: Sequence[Path], pairs: Sequence[Path], language: str, limits: Limits, memory_gb: float, scratch: Path, at_once: int | None = None
) -> tuple[list[str], list[str]]:
    """Unigrams and bigrams of a language, best first, from the counts of its parts (`ngrams.write_counts`); DuckDB spills to `scratch` beyond `memory_gb`.

    at_once: occurrences of words whose pairs are summed in one go, by default as many as the memory allows.
    """
    with open_database(scratch, memory_gb, f"the sums of the words of {language}") as (database, _):
        select = "SELECT word, sum(count)::BIGINT AS count FROM read_parquet(?) GROUP BY word"
        database.execute(f"CREATE TABLE words AS {select}", [[str(path) for path in words]])
        database.execute("CREATE TABLE pairs (first VARCHAR, second VARCHAR, count DOUBLE, product DOUBLE)")
        starts = range_starts(database, at_once or int(memory_gb * OCCURRENCES_PER_GB))
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            where = "first >= ?" if end is None else "first >= ? AND first < ?"
            database.execute(_PAIRS.format(where=where), [[str(path) for path in pairs], start, *([] if end is None else [end])])
        return _unigrams(database, language, limits), _bigrams(database, language, limits)


# DuckDB spills sums to the disk, but fails beyond some five times its memory (measured); a pair takes about 60 bytes while it is summed.
OCCURRENCES_PER_GB = 30_000_000

# Pairs whose first word is in a range: the parts are sorted, so that little else is read.
_PAIRS = """
INSERT INTO pairs
SELECT pair.first, pair.second, pair.count::DOUBLE, one.count::DOUBLE * two.count::DOUBLE
FROM (SELECT first, second, sum(count)::BIGINT AS count FROM read_parquet(?) WHERE {where} GROUP BY first, second) AS pair
JOIN words AS one ON pair.first = one.word
JOIN words AS two ON pair.second = two.word
"""


def range_starts(database: Any, at_once: int) -> list[str]:
    """The first word of each range of words that occur at most `at_once` times together (or of one word that does more often); the first one is empty."""
    starts, total = [""], 0
    rows = database.execute("SELECT word, count FROM words ORDER BY word")
    while batch := rows.fetchmany(100_000):
        for word, count in batch:
            if total and total + count > at_once:
                starts.append(word)
                total = 0
            total += count
    return starts


# The score of a pair; round: the last bits of a logarithm differ between machines, and would decide between pairs of the same score.
_SCORE = {
    "weighted": "round(pow(count + 1, 0.7) * ln(count / product / $floor), 9)",
    "pmi": "round(ln(count / product), 9)",
}


def _unigrams(database: Any, language: str, limits: Limits) -> list[str]:
    (different,) = database.execute("SELECT count(*) FROM words").fetchone() or (0,)
    most, least = share(different, limits.unigram_fraction, limits.max_unigrams), 0
    if language == "en":
        most, least = limits.max_unigrams, limits.english_min_count
    rows = database.execute("SELECT word FROM words WHERE count >= ? ORDER BY count DESC, word LIMIT ?", [least, most]).fetchall()
    return [word for (word,) in rows]


def _bigrams(database: Any, language: str, limits: Limits) -> list[str]:
    ((total, different),) = database.execute("SELECT (SELECT sum(count) FROM words), (SELECT count(*) FROM pairs)").fetchall()
    if not different:
        return []
    where, values = [], {}
    if limits.bigram_ranking == "weighted":
        floor = database.execute("SELECT count / product FROM pairs ORDER BY 1 LIMIT 1 OFFSET ?", [int(0.3 * (different - 1))]).fetchall()
        where, values = ["count / product >= $floor"], {"floor": floor[0][0]}
    if limits.bigram_ranking == "pmi" or language == "en":
        where.append(f"count * $total {'>=' if language == 'en' else '>'} $min_lift * product")
        values |= {"total": float(total), "min_lift": limits.min_lift}
    query = f"SELECT first, second FROM pairs WHERE {' AND '.join(where)} ORDER BY {_SCORE[limits.bigram_ranking]} DESC, first, second LIMIT {limits.max_bigrams}"
    return [join_words(*row) for row in database.execute(query, values).fetchall()]
