"""How many entries a language gets, and which words and pairs of a Wikipedia become entries (RECIPE 1.2): fractions, caps, both published rankings of pairs. Ties go by code point, so that the result
is a function of the counts alone.

PMI = ln(c12 N / (c1 c2)) in nats; c1, c2, c12 counts of the words and of the pair, N the number of all words. The published "PMI > 30" cannot be a logarithm: even
for two words that occur once, together, in the four billion of the English Wikipedia, ln N = 22. We read it as the ratio c12 N / (c1 c2) > 30, the lift, PMI > 3.4.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from mc2.metadata.tokens import join_words

if TYPE_CHECKING:
    import duckdb

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
    duckdb = _duckdb()
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:
        threads = min(os.cpu_count() or 1, max(1, int(memory_gb)))  # DuckDB asks for a gigabyte for each
        config = {"memory_limit": f"{memory_gb}GB", "threads": str(threads), "preserve_insertion_order": "false"}
        with duckdb.connect(Path(folder) / "sum.duckdb", config=config) as db:
            try:
                db.execute(
                    "CREATE TABLE words AS SELECT word, sum(count)::BIGINT AS count FROM read_parquet(?) GROUP BY word",
                    [[str(path) for path in words]],
                )
                db.execute(_PAIRS, [[str(path) for path in pairs]])
                return _unigrams(db, language, limits), _bigrams(db, language, limits)
            except duckdb.Error as error:
                raise ValueError(f"metadata: summing the counts of {language} failed ({error})") from error
            except RuntimeError as error:  # what DuckDB makes of Ctrl-C
                raise KeyboardInterrupt from error


_PAIRS = """
CREATE TABLE pairs AS
SELECT pair.first, pair.second, pair.count::DOUBLE AS count, one.count::DOUBLE * two.count::DOUBLE AS product
FROM (SELECT first, second, sum(count)::BIGINT AS count FROM read_parquet(?) GROUP BY first, second) AS pair
JOIN words AS one ON pair.first = one.word
JOIN words AS two ON pair.second = two.word
"""

# The score of a pair; round: the last bits of a logarithm differ between machines, and would decide between pairs of the same score.
_SCORE = {
    "weighted": "round(pow(count + 1, 0.7) * ln(count / product / $floor), 9)",
    "pmi": "round(ln(count / product), 9)",
}


def _unigrams(db: duckdb.DuckDBPyConnection, language: str, limits: Limits) -> list[str]:
    (different,) = db.execute("SELECT count(*) FROM words").fetchone() or (0,)
    most, least = share(different, limits.unigram_fraction, limits.max_unigrams), 0
    if language == "en":
        most, least = limits.max_unigrams, limits.english_min_count
    rows = db.execute("SELECT word FROM words WHERE count >= ? ORDER BY count DESC, word LIMIT ?", [least, most]).fetchall()
    return [word for (word,) in rows]


def _bigrams(db: duckdb.DuckDBPyConnection, language: str, limits: Limits) -> list[str]:
    ((total, different),) = db.execute("SELECT (SELECT sum(count) FROM words), (SELECT count(*) FROM pairs)").fetchall()
    if not different:
        return []
    where, values = [], {}
    if limits.bigram_ranking == "weighted":
        floor = db.execute("SELECT count / product FROM pairs ORDER BY 1 LIMIT 1 OFFSET ?", [int(0.3 * (different - 1))]).fetchall()
        where, values = ["count / product >= $floor"], {"floor": floor[0][0]}
    if limits.bigram_ranking == "pmi" or language == "en":
        where.append(f"count * $total {'>=' if language == 'en' else '>'} $min_lift * product")
        values |= {"total": float(total), "min_lift": limits.min_lift}
    query = f"SELECT first, second FROM pairs WHERE {' AND '.join(where)} ORDER BY {_SCORE[limits.bigram_ranking]} DESC, first, second LIMIT {limits.max_bigrams}"
    return [join_words(*row) for row in db.execute(query, values).fetchall()]


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ImportError("metadata: counts of a Wikipedia are summed by the package duckdb; run `pip install 'mc2[wikipedia]'`") from error
    return duckdb
