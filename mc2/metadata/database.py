"""Sums out of core: DuckDB with a bound on its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@contextmanager
def open_database(folder: Path, memory_gb: float, what: str, threads: int | None = None) -> Iterator[tuple[Any, Path]]:
    """A DuckDB connection and the folder that it spills into, a new one below `folder` that goes with it. The process takes `memory_gb` and some 300 MB.

    Threads are one for each gigabyte, as DuckDB asks for. Errors: ValueError that begins with folder and `what` for anything that DuckDB refuses, as a full disk;
    ImportError that names the package.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ImportError(f"{what} need the package duckdb; run `pip install 'mc2[wikipedia]'`") from error
    folder.mkdir(parents=True, exist_ok=True)
    threads = threads or min(os.cpu_count() or 1, max(1, int(memory_gb)))
    config: dict[str, Any] = {"memory_limit": f"{memory_gb}GB", "threads": threads, "preserve_insertion_order": False}
    with TemporaryDirectory(dir=folder) as scratch:
        try:
            with duckdb.connect(Path(scratch) / "sums.duckdb", config={**config, "temp_directory": scratch}) as database:
                yield database, Path(scratch)
        except duckdb.Error as error:
            raise ValueError(f"{folder}: {what} failed ({error}); mend that and run the same line again") from error
        except RuntimeError as error:
            if "interrupted" in str(error):  # what DuckDB makes of Ctrl-C
                raise KeyboardInterrupt from error
            raise
