"""Sums over all matched shards, in groups: each group is one idempotent work item that leaves one file, and the files are added up one by one.

However many shards there are, there are at most `MOST_GROUPS` files. A worker holds one array over all entries and one shard, the caller one array and one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.matched import MatchedShard, matched_files
from mc2.engines.engine import Engine

MOST_GROUPS = 1000

# Numbers by name, nested. Those of two shards, or two groups of shards, are added name by name.
Numbers = dict[str, Any]


class EntrySums:
    """A number for each entry, in an array for each language that has come up. `num_entries`: by language."""

    def __init__(self, num_entries: Mapping[str, int], kind: type[np.int64 | np.float64]) -> None:
        self.num_entries, self.kind = num_entries, kind
        self.of: dict[str, NDArray[Any]] = {}

    def add(self, language: str, entry_ids: NDArray[np.integer[Any]], values: NDArray[Any] | int) -> None:
        """Add the values to the entries; an id may come up several times."""
        if language not in self.of:
            self.of[language] = np.zeros(self.num_entries[language], self.kind)
        np.add.at(self.of[language], entry_ids, values)


@dataclass(frozen=True)
class SumGroup:
    """Writes the sums over a group of shards, "first-last" by number, into a file of `out`, unless it is there.

    function: adds a shard to the sums per entry and returns its other numbers. fingerprint: of the run. duplicates: folder of that stage.
    """

    matched: Path
    out: Path
    name: str
    kind: type[np.int64 | np.float64]
    function: Callable[[MatchedShard, EntrySums], Numbers]
    num_entries: Mapping[str, int]
    fingerprint: str
    duplicates: Path | None

    def __call__(self, group: str) -> None:
        if not self.path(group).exists():
            first, last = map(int, group.split("-"))
            sums, numbers = EntrySums(self.num_entries, self.kind), Numbers()
            for path in matched_shards(self.matched, self.fingerprint)[first : last + 1]:
                add_numbers(numbers, self.function(MatchedShard.read(path, self.duplicates), sums))
            _write(self.path(group), sums, numbers)

    def path(self, group: str) -> Path:
        """The file of a group."""
        return self.out / f"{self.name}-{group}.parquet"


def sum_all(group: SumGroup, engine: Engine) -> tuple[dict[str, NDArray[Any]], Numbers]:
    """The sums per language and entry, and the other numbers, over all shards."""
    groups = group_names(len(matched_shards(group.matched, group.fingerprint)))
    engine.map(group.name, group, groups)
    sums, numbers = EntrySums(group.num_entries, group.kind), Numbers()
    for name in groups:
        _add_file(group.path(name), sums, numbers)
    return sums.of, numbers


@lru_cache(maxsize=1)
def matched_shards(folder: Path, _fingerprint: str) -> tuple[Path, ...]:
    """`matched_files`, listed once per process."""
    return matched_files(folder)


def group_names(num_shards: int) -> list[str]:
    """Groups of equally many shards, a function of the number of shards alone: sums of floating numbers must not depend on the workers."""
    size = max(1, -(-num_shards // MOST_GROUPS))
    return [f"{first}-{min(first + size, num_shards) - 1}" for first in range(0, num_shards, size)]


def add_numbers(total: Numbers, part: Mapping[str, Any]) -> None:
    """Add the numbers of `part` to those of the same name."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            add_numbers(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _write(path: Path, sums: EntrySums, numbers: Numbers) -> None:
    seen = {code: np.flatnonzero(values).astype(np.int32) for code, values in sorted(sums.of.items())}
    columns = {
        "id": np.concatenate([np.zeros(0, np.int32), *seen.values()]),
        "value": np.concatenate([np.zeros(0, sums.kind), *(sums.of[code][ids] for code, ids in seen.items())]),
    }
    notes = {"languages": json.dumps({code: len(ids) for code, ids in seen.items()}), "numbers": json.dumps(numbers)}
    with storage.atomic_write(path) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(notes), file, compression="zstd")


def _add_file(path: Path, sums: EntrySums, numbers: Numbers) -> None:
    table = pq.read_table(path)
    first, ids, values = 0, table["id"].to_numpy(), table["value"].to_numpy()
    for code, length in json.loads(table.schema.metadata[b"languages"]).items():
        sums.add(code, ids[first : first + length], values[first : first + length])
        first += length
    add_numbers(numbers, json.loads(table.schema.metadata[b"numbers"]))
