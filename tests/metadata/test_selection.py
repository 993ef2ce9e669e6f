"""Selection of n-grams against slow versions with Counter and math, on counts that were spilled in pieces."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mc2.metadata.database import open_database
from mc2.metadata.ngrams import count_batch, write_counts
from mc2.metadata.selection import BigramRanking, Limits, range_starts, select_ngrams
from mc2.metadata.tokens import BREAK

Words = Counter[str]
Pairs = Counter[tuple[str, str]]


def corpus(seed: int, num_texts: int = 300) -> list[list[str]]:
    """Texts with few frequent and many rare words, breaks among them, and scripts of all kinds."""
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(150)] + ["Ä", "é", "猫", "東京", "𝔸", "C3", "x'y"]
    return [
        [vocabulary[int(rng.random() ** 4 * len(vocabulary))] if rng.random() > 0.1 else BREAK for _ in range(rng.randrange(30))]
        for _ in range(num_texts)
    ]


def slow_counts(texts: Sequence[Sequence[str]]) -> tuple[Words, Pairs]:
    words, pairs = Words(), Pairs()
    for text in texts:
        for position, word in enumerate(text):
            if word != BREAK:
                words[word] += 1
                if position and text[position - 1] != BREAK:
                    pairs[text[position - 1], word] += 1
    return words, pairs


def slow_bigrams(words: Words, pairs: Pairs, english: bool, ranking: BigramRanking, min_lift: float, most: int) -> list[str]:
    total = sum(words.values())
    pmi = {pair: math.log(count * total / (words[pair[0]] * words[pair[1]])) for pair, count in pairs.items()}
    floor = sorted(pmi.values())[int(0.3 * (len(pmi) - 1))]
    score, kept = {}, set()
    for (a, b), count in pairs.items():
        lift_of_30 = count * total >= min_lift * words[a] * words[b] if english else count * total > min_lift * words[a] * words[b]
        if ranking == "weighted":
            score[a, b] = round((count + 1) ** 0.7 * (pmi[a, b] - floor), 8)
            if pmi[a, b] >= floor - 1e-12 and (lift_of_30 or not english):
                kept.add((a, b))
        else:
            score[a, b] = round(pmi[a, b], 8)
            if lift_of_30:
                kept.add((a, b))
    ranked = sorted(kept, key=lambda pair: (-score[pair], pair[0].encode(), pair[1].encode()))
    return [a + ("" if {"猫", "東京"} & {a, b} else " ") + b for a, b in ranked[:most]]


def written(texts: list[list[str]], folder: Path, name: str, spill: int = 1 << 20) -> tuple[Path, Path]:
    paths = folder / f"{name}.words.parquet", folder / f"{name}.pairs.parquet"
    assert write_counts(texts, *paths, spill=spill) == (len(texts), sum(word != BREAK for text in texts for word in text))
    return paths


@pytest.mark.parametrize(("at_once", "starts"), [(1, ["", "b", "c", "ä"]), (5, ["", "c"]), (6, ["", "ä"]), (100, [""])])
def test_ranges_of_words(tmp_path: Path, at_once: int, starts: list[str]) -> None:
    """a 2, b 3, c 1, ä 2 in the order of their bytes; a word that is too frequent has a range of its own."""
    with open_database(tmp_path, 0.5, "ranges") as (database, _):
        database.execute("CREATE TABLE words AS SELECT * FROM (VALUES ('ä', 2), ('b', 3), ('a', 2), ('c', 1)) AS t(word, count)")
        assert range_starts(database, at_once) == starts


@pytest.mark.parametrize("spill", [1, 100, 1 << 20])
def test_counts_against_counter(tmp_path: Path, spill: int) -> None:
    texts = corpus(1)
    words_path, pairs_path = written(texts, tmp_path, "a", spill)
    words, pairs = Words(), Pairs()
    for row in pq.read_table(words_path).to_pylist():
        words[row["word"]] += row["count"]
    for row in pq.read_table(pairs_path).to_pylist():
        pairs[row["first"], row["second"]] += row["count"]
    assert (words, pairs) == slow_counts(texts)


def test_no_texts_are_no_counts(tmp_path: Path) -> None:
    words_path, pairs_path = written([[], [BREAK]], tmp_path, "a")
    assert select_ngrams([words_path], [pairs_path], "de", Limits(), 0.5, tmp_path) == ([], [])


def test_pairs_of_a_large_vocabulary_do_not_overflow() -> None:
    """Numbers of pairs are products: int32 would wrap at 50 thousand words."""
    spelling = np.array([BREAK, *(f"w{i}" for i in range(100_000))])
    import pyarrow as pa

    _, pairs = count_batch(pa.array(spelling.tolist()), np.array([99_999, 100_000, 0, 1, 2]))
    assert pairs.to_pylist() == [
        {"first": "w0", "second": "w1", "count": 1},
        {"first": "w99998", "second": "w99999", "count": 1},
    ]


@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("ranking", ["weighted", "pmi"])
@pytest.mark.parametrize("at_once", [None, 1, 400])
def test_against_the_slow_rules(tmp_path: Path, language: str, ranking: BigramRanking, at_once: int | None) -> None:
    texts = corpus(2)
    parts = [written(texts[:100], tmp_path, "a", spill=200), written(texts[100:], tmp_path, "b", spill=300)]
    limits = Limits(unigram_fraction=0.3, english_min_count=30, min_lift=2.0, bigram_ranking=ranking, max_bigrams=120)
    unigrams, bigrams = select_ngrams([a for a, _ in parts], [b for _, b in parts], language, limits, 0.5, tmp_path, at_once)
    words, pairs = slow_counts(texts)
    ranked = sorted(words, key=lambda word: (-words[word], word.encode()))
    assert unigrams == ([w for w in ranked if words[w] >= 30] if language == "en" else ranked[: round(0.3 * len(words))])
    assert bigrams == slow_bigrams(words, pairs, language == "en", ranking, 2.0, 120)
    assert 20 < len(bigrams) <= 120
    assert not list((tmp_path).glob("tmp*"))


def test_the_border_of_the_published_rules(tmp_path: Path) -> None:
    """A lift of exactly 30: English takes it (>=), the other languages do not (>)."""
    texts = [["a", "b"], *[[f"x{i}"] for i in range(28)]]  # c12 = 1, N = 30, c1 = c2 = 1
    words_path, pairs_path = written(texts, tmp_path, "a")
    limits = Limits(bigram_ranking="pmi")
    assert select_ngrams([words_path], [pairs_path], "en", limits, 0.5, tmp_path)[1] == ["a b"]
    assert select_ngrams([words_path], [pairs_path], "de", limits, 0.5, tmp_path)[1] == []


def test_caps(tmp_path: Path) -> None:
    words_path, pairs_path = written(corpus(3), tmp_path, "a")
    one, two = select_ngrams([words_path], [pairs_path], "en", Limits(english_min_count=1, max_unigrams=7, max_bigrams=5), 0.5, tmp_path)
    assert (len(one), len(two)) == (7, 5)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"unigram_fraction": 0.0}, "found unigram_fraction 0.0"), ({"max_titles": -1}, "found max_titles -1, need at least 0")],
)
def test_limits_out_of_range(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**limits)  # type: ignore[arg-type]


def test_a_damaged_count_is_one_clear_line(tmp_path: Path) -> None:
    words_path, pairs_path = written(corpus(3), tmp_path, "a")
    pairs_path.write_bytes(pairs_path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the sums of the words of de failed .*a\.pairs\.parquet"):
        select_ngrams([words_path], [pairs_path], "de", Limits(), 0.5, tmp_path)
