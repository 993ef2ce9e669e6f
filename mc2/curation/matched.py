"""A shard of matched captions as arrays: what balancing and packing compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.balance import BoolArray, FloatArray, accepted_captions
from mc2.curation.duplicates_stage import without_duplicates

COLUMNS = ["key", "caption_index", "language", "entries", "drop"]


def matched_files(folder: Path) -> tuple[Path, ...]:
    """The files of a finished match in the order of the pool. Errors: ValueError where some are missing or there are others."""
    files = tuple(sorted(folder.glob("*.parquet")))
    need = storage.finished(folder, "match", "mc2 curate match")["results"]["shards"]
    if len(files) != need:
        raise ValueError(
            f"{folder}: found {len(files)} parquet files, need the {need} of this match; take out what is not of it, or delete done.json and run `mc2 curate "
            "match` again for what is missing"
        )
    return files


@dataclass(frozen=True)
class MatchedShard:
    """The captions of a pool shard that stay, in its order: C captions of P pairs with M matches; and what else is in the file.

    keys: [P]. pair: [C] number of the pair, ascending. caption_index: [C] place in the pair. language: [C] number in `languages`.
    lengths: [C] number of entries. entry_ids: [M] of all captions one after the other.
    num_pairs, num_captions: of the file, with those that do not stay. identified: captions per language, with those without an entry.
    duplicates: pairs with matched captions that leave as duplicates, by reason; none of their captions stays, duplicate_captions in number.
    caption_drops: of captions by reason.
    """

    keys: Sequence[str]
    languages: Sequence[str]
    pair: NDArray[np.int64]
    caption_index: NDArray[np.int64]
    language: NDArray[np.int64]
    lengths: NDArray[np.int64]
    entry_ids: NDArray[np.int32]
    num_pairs: int
    num_captions: int
    identified: Mapping[str, int]
    duplicates: Mapping[str, int]
    duplicate_captions: int
    caption_drops: Mapping[str, int]

    @classmethod
    def read(cls, path: Path, duplicates: Path | None = None) -> MatchedShard:
        """`duplicates`: folder of that stage. Errors: ValueError that names a file that cannot be read."""
        try:
            table = pq.read_table(path, columns=COLUMNS)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: cannot be read ({error}); delete it and done.json beside it, and run `mc2 curate match` again"
            ) from error
        drop = table["drop"]
        stay = table.filter(pc.is_null(drop)).combine_chunks()
        stay, leave = without_duplicates(stay, duplicates, path.stem)
        identified = table["language"].filter(pc.or_kleene(pc.is_null(drop), pc.equal(drop, "no_entry")))
        keys, pair = _numbered(stay["key"])
        languages, language = _numbered(stay["language"])
        return cls(
            keys,
            languages,
            pair,
            stay["caption_index"].to_numpy().astype(np.int64),
            language,
            pc.list_value_length(stay["entries"]).to_numpy().astype(np.int64),
            pc.list_flatten(stay["entries"]).to_numpy(),
            pc.count_distinct(table["key"]).as_py(),
            len(table),
            _value_counts(identified),
            leave,
            drop.null_count - len(stay),
            _value_counts(drop.drop_null()),
        )

    @property
    def language_of_match(self) -> NDArray[np.int64]:
        """[M] number in `languages`."""
        return np.repeat(self.language, self.lengths)

    def match_prob(self, probabilities: Mapping[str, FloatArray]) -> FloatArray:
        """[M] the probability q of each match, from q per language."""
        result, of_match = np.empty(len(self.entry_ids)), self.language_of_match
        for number, code in enumerate(self.languages):
            mine = of_match == number
            result[mine] = probabilities[code][self.entry_ids[mine]]
        return result

    def accepted(self, match_prob: FloatArray, seed: int, epoch: int) -> BoolArray:
        """[C] whether a caption is accepted by the keyed draws of its entries."""
        hashes = storage.keyed_hashes(seed, "balance", epoch, self.keys)[np.repeat(self.pair, self.lengths)]
        return accepted_captions(match_prob, storage.hashed_uniforms(hashes, self.entry_ids), self.lengths)


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """The different values in the order of their first appearance, and the number of each row's value."""
    encoded = column.combine_chunks().dictionary_encode()
    values: list[str] = encoded.dictionary.to_pylist()
    return values, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}
