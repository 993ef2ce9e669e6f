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
    words: Sequence[Path], pairs: Sequence[Path], language: str, limits: Limits, memory_gb: float, scratch: Path
) -> tuple[list[str], list[str]]:
    """Unigrams and bigrams of a language, best first, from the counts of its parts (`ngrams.write_counts`); DuckDB spills to `scratch` beyond `memory_gb`."""
    with open_database(scratch, memory_gb, f"the sums of the words of {language}") as (database, _):
        select = "SELECT word, sum(count)::BIGINT AS count FROM read_parquet(?) GROUP BY word"
        database.execute(f"CREATE TABLE words AS {select}", [[str(path) for path in words]])
        database.execute(_SUMS, [[str(path) for path in pairs]])
        for statement in _PAIRS:
            database.execute(statement)
        return _unigrams(database, language, limits), _bigrams(database, language, limits)


# The counts of both words come to a pair one after the other: one statement for all would hold the sums and both tables of words in memory at once.
_SUMS = "CREATE TABLE sums AS SELECT first, second, sum(count)::BIGINT AS count FROM read_parquet(?) GROUP BY first, second"
_PAIRS = (
    "CREATE TABLE half AS SELECT first, second, sums.count, words.count::DOUBLE AS one FROM sums JOIN words ON first = word",
    "DROP TABLE sums",
    "CREATE TABLE pairs AS SELECT first, second, half.count::DOUBLE AS count, one * words.count::DOUBLE AS product FROM half JOIN words ON second = word",
    "DROP TABLE half",
)

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
