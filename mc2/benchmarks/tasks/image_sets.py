"""Where the images of a task lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import pyarrow.parquet as pq

from mc2 import storage
from mc2.benchmarks.tasks.task import ImageSet


@final
class ParquetImages(ImageSet):
    """Encoded files in a binary column of one parquet file, keys in the order of its rows."""

    def __init__(self, path: Path, keys: Sequence[str], column: str = "image") -> None:
        self.path, self.keys, self.column = path, keys, column
        self.identity = storage.fingerprint([str(path.resolve()), path.stat().st_size, list(keys)])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Reads only the row groups that hold the images asked for."""
        with pq.ParquetFile(self.path) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and start < last:
                    part = file.read_row_group(group, columns=[self.column])[self.column]
                    yield from (value.as_py() or b"" for value in part.slice(max(start - first, 0), min(stop, last) - max(start, first)))
                first = last
