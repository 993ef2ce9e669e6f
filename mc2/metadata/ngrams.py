"""Counts of words and of pairs of words: each part of a Wikipedia by itself (any engine, in parallel), then one language out of core.

Memory: a worker holds `SPILL_WORDS` words as numbers and their spellings, under 1 GB, whatever the part; the sums over a language are DuckDB's, which keeps to its
limit and spills to the disk, and are made range by range of first words (`selection`). So the size of a language costs disk and time, not memory.

<mark>.words.parquet   word, count            both with one sorted run for each SPILL_WORDS words of the part
<mark>.pairs.parquet   first, second, count
<mark>.json            articles, words; written last: a part that has it is not read again
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mc2 import storage
from mc2.metadata.articles import articles
from mc2.metadata.segmenters import SegmenterChoice, segmenter_name, words
from mc2.metadata.tokens import BREAK
from mc2.metadata.wikipedia import Part

RULES = 1  # raised when the same text would give other words: counts of older rules are not used
SPILL_WORDS = 1 << 22
ROW_GROUP = 1 << 17  # small, so that a range of words is a few of them

WORDS = pa.schema([("word", pa.dictionary(pa.int32(), pa.string())), ("count", pa.int64())])
PAIRS = pa.schema(
    [("first", pa.dictionary(pa.int32(), pa.string())), ("second", pa.dictionary(pa.int32(), pa.string())), ("count", pa.int64())]
)


def part_mark(part: Part, segmenter: SegmenterChoice) -> str:
    """Stands for the counts of a part: the names and sizes of its files, which bytes of them, the rules and the segmenter's version."""
    files = [[path.name, path.stat().st_size] for path in part.paths]
    return storage.fingerprint([RULES, part.code, part.name, files, part.start, part.end, segmenter_name(part.code, segmenter)])


def count_part(part: Part, mark: str, folder: Path, segmenter: SegmenterChoice) -> storage.JSON:
    """Count the words and pairs of a part; returns {"articles": ..., "words": ...}. A part that is counted is not read again."""
    done = folder / f"{mark}.json"
    if not done.exists():
        with storage.alone(folder, mark) as is_alone:  # another build may use the same folder
            if not done.exists():
                for left_over in folder.glob(f".{mark}.*.tmp") if is_alone else ():  # of a process that was killed
                    left_over.unlink()
                texts = (words(article.text, part.code, segmenter) for article in articles(part))
                num_articles, num_words = write_counts(texts, *count_paths(folder, mark))
                storage.write_json(done, {"articles": num_articles, "words": num_words})
    counted: storage.JSON = storage.read_json(done)
    return counted


def count_paths(folder: Path, mark: str) -> tuple[Path, Path]:
    """The files of a part's counts: of words, of pairs."""
    return folder / f"{mark}.words.parquet", folder / f"{mark}.pairs.parquet"


def write_counts(texts: Iterable[list[str]], words_path: Path, pairs_path: Path, spill: int = SPILL_WORDS) -> tuple[int, int]:
    """Write the counts of texts' words (BREAK is none) and of neighbouring words; returns the numbers of texts and of all words."""
    num_texts, num_words = 0, 0
    with ExitStack() as stack:
        writers = []
        for path, schema in ((words_path, WORDS), (pairs_path, PAIRS)):
            file = stack.enter_context(storage.atomic_write(path))
            writers.append(stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd")))
        for texts_here, spelling, ids in _batches(texts, spill):
            num_texts, num_words = num_texts + texts_here, num_words + int(np.count_nonzero(ids))
            for writer, table in zip(writers, count_batch(spelling, ids), strict=True):
                writer.write_table(table, ROW_GROUP)
    return num_texts, num_words


def count_batch(spelling: pa.Array, ids: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[pa.Table, pa.Table]:
    """Counts of the words and of the pairs of neighbours of one batch, sorted by their spelling (bytes); id 0 is the BREAK."""
    is_word, order = ids > 0, pc.array_sort_indices(spelling).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    spelling, ids = spelling.take(pa.array(order)), rank[ids]
    word_ids, word_counts = np.unique(ids[is_word], return_counts=True)
    neighbours = is_word[:-1] & is_word[1:]
    pairs, pair_counts = np.unique(ids[:-1][neighbours] * len(spelling) + ids[1:][neighbours], return_counts=True)
    first, second = np.divmod(pairs, len(spelling))
    columns = [pa.DictionaryArray.from_arrays(column.astype(np.int32), spelling) for column in (word_ids, first, second)]
    return pa.table([columns[0], word_counts], schema=WORDS), pa.table([columns[1], columns[2], pair_counts], schema=PAIRS)


def _batches(texts: Iterable[list[str]], spill: int) -> Iterator[tuple[int, pa.Array, np.ndarray[Any, np.dtype[np.int64]]]]:
    """The number of texts, spellings and ids of about `spill` words of whole texts, a BREAK after each."""
    texts = iter(texts)
    while True:
        ids: defaultdict[str, int] = defaultdict(itertools.count().__next__)  # a new word gets the next number, in C
        assert ids[BREAK] == 0
        batch: list[int] = []
        num_texts = 0
        for text in texts:
            batch.extend(map(ids.__getitem__, text))
            batch.append(0)
            num_texts += 1
            if len(batch) >= spill:
                break
        if not num_texts:
            return
        yield num_texts, pa.array(ids, pa.string()), np.fromiter(batch, np.int64, len(batch))
