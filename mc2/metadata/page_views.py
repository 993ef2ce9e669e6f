"""Views of the titles of every language, summed over page view files: the ranking of titles (RECIPE 1.2). A stage that can be run again.

<language>.parquet    title, views: most viewed first, equal views by code point
done.json             number of titles per language, lines, and lines left out by reason (`page_view_files.DROPS`)

Files are summed in groups, each in a worker, and then the groups in one go, by DuckDB, which spills to the disk beyond its memory. So a process needs no more
than `memory_gb` and some 300 MB, however many files and titles there are; for the time of the run the disk needs about as much as the files, for the groups.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mc2 import languages, storage
from mc2.engines.engine import Engine
from mc2.metadata.database import open_database
from mc2.metadata.page_view_files import DROPS, VIEWS_SCHEMA, layout, read_views

WHAT = "the sums of page views"
VIEWS_GB = 2.0  # of memory in each process
FILES_PER_GROUP = 8  # a third of a day: 120 tasks for the published 960 files
_ROW_GROUP = 1 << 18
_SUM = "SELECT language, title, sum(views)::BIGINT AS views FROM {} GROUP BY ALL"


def sum_page_views(
    files: Sequence[Path], out: str | Path, engine: Engine, known: Collection[str] = languages.LID176, memory_gb: float = VIEWS_GB
) -> Path:
    """Write the views of all titles of the files into the folder `out`, and return it. A finished folder is returned as it is.

    Args:
        files: Page view files, all hourly or all daily and monthly ones (`page_view_files`).
        out: Folder to write; it may hold the unfinished or finished work of the same call.
        engine: Where the groups are summed.
        known: Languages that the language identification tells apart: which Wikipedia gives to which language (`languages.wikipedia_language`).
        memory_gb: Memory of the sums in each process.

    Errors: ValueError for files of two kinds or the same name, a damaged one, or a folder of another run.
    """
    files = _checked(files)
    if memory_gb <= 0:
        raise ValueError(f"page views: found memory_gb {memory_gb}, need more than 0")
    inputs = {
        "files": storage.fingerprint([[file.name, file.stat().st_size] for file in files]),
        "known": storage.fingerprint(sorted(known)),
    }
    with storage.Stage(Path(out), "page views", inputs) as stage:
        if not stage.done:
            groups = {files[start].name: files[start : start + FILES_PER_GROUP] for start in range(0, len(files), FILES_PER_GROUP)}
            parts = stage.folder.absolute() / "parts"  # a worker may run elsewhere
            counted = engine.map("page views", SumGroup(groups, parts, frozenset(known), memory_gb), list(groups))
            num_titles = _sum_groups(parts, groups, stage.folder, memory_gb)
            counts: Counter[str] = sum(map(Counter, counted), Counter())
            drops = {reason: counts[reason] for reason in DROPS if counts[reason]}
            stage.finish({"titles": num_titles, "lines": counts["lines"], "drops": drops})
        shutil.rmtree(stage.folder / "parts", ignore_errors=True)
    return Path(out)


def _checked(files: Sequence[Path]) -> list[Path]:
    if not files:
        raise ValueError("page views: found no files, need at least one")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"page views: {missing[0]} is no file ({len(missing)} of {len(files)} are missing); name files that are there")
    if len({layout(file) for file in files}) > 1:
        raise ValueError("page views: found hourly files beside daily or monthly ones, need one kind; their views would count twice")
    twice = [name for name, number in Counter(file.name for file in files).items() if number > 1]
    if twice:
        raise ValueError(f"page views: found {twice[0]} twice; name every file once")
    names = {file.name for file in files}
    for name in sorted(names):
        if (month := re.sub(r"(-\d{6})\d\d(-user)", r"\1\2", name)) != name and month in names:
            raise ValueError(
                f"page views: found {name} beside {month}, which has that day; name one of them, their views would count twice"
            )
    return sorted((file.absolute() for file in files), key=lambda file: file.name)


@dataclass(frozen=True)
class SumGroup:
    """Sums the files of the group of a name into parts/<name>.parquet and returns the counts of lines by reason; what is there already is left."""

    groups: Mapping[str, Sequence[Path]]
    parts: Path
    known: frozenset[str]
    memory_gb: float

    def __call__(self, name: str) -> dict[str, int]:
        mark = self.parts / f"{name}.json"
        if not mark.exists():
            batches = _Batches(self.groups[name], self.known)
            try:
                with open_database(self.parts, self.memory_gb, WHAT, threads=1) as (database, scratch):
                    database.register("batches", batches.reader())
                    database.execute(f"COPY ({_SUM.format('batches')}) TO '{scratch / 'sum'}' (FORMAT parquet, COMPRESSION zstd)")
                    os.replace(scratch / "sum", self.parts / f"{name}.parquet")
            except ValueError as error:
                raise batches.error or error from None  # DuckDB tells of an error in the batches by its text only
            storage.write_json(mark, batches.counts)
        counts: dict[str, int] = storage.read_json(mark)
        return counts


class _Batches:
    """The batches of several files for DuckDB, the counts of their lines, and the error that ended them."""

    def __init__(self, files: Sequence[Path], known: Collection[str]) -> None:
        self.files, self.known = files, known
        self.counts: Counter[str] = Counter()
        self.error: ValueError | None = None

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(VIEWS_SCHEMA, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for file in self.files:
                yield from read_views(file, self.known, self.counts)
        except ValueError as error:
            self.error = error
            raise


def _sum_groups(parts: Path, names: Iterable[str], out: Path, memory_gb: float) -> dict[str, int]:
    """Write <language>.parquet of every language; returns the numbers of titles."""
    num_titles = {}
    with open_database(parts, memory_gb, WHAT) as (database, scratch):
        query = f"{_SUM.format('read_parquet($parts)')} ORDER BY language, views DESC, title"
        files = [str(parts / f"{name}.parquet") for name in names]
        database.execute(f"COPY ({query}) TO '{scratch / 'sum'}' (FORMAT parquet)", {"parts": files})
        for language, pieces in itertools.groupby(_one_language_each(scratch / "sum"), key=lambda piece: piece["language"][0].as_py()):
            num_titles[language] = _write(out / f"{language}.parquet", (piece.drop_columns("language") for piece in pieces))
    return num_titles


def _one_language_each(path: Path) -> Iterator[pa.Table]:
    """The rows of a file that is sorted by language, in order, cut where the language changes."""
    for batch in pq.ParquetFile(path).iter_batches(_ROW_GROUP):
        table = pa.table(batch)
        ends = pc.run_end_encode(batch["language"]).run_ends.to_pylist()
        for start, end in itertools.pairwise([0, *ends]):
            yield table.slice(start, end - start)


def _write(path: Path, pieces: Iterable[pa.Table]) -> int:
    """Write titles and views in row groups of one size, whatever the pieces are: the bytes depend on the rows alone. Returns the number of rows."""
    rows = pa.schema(list(VIEWS_SCHEMA)[1:]).empty_table()
    num_rows = 0
    with storage.atomic_write(path) as file, pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
        for piece in pieces:
            num_rows += len(piece)
            rows = pa.concat_tables([rows, piece.cast(rows.schema)])
            if len(rows) >= _ROW_GROUP:
                writer.write_table(rows.slice(0, _ROW_GROUP).combine_chunks())
                rows = rows.slice(_ROW_GROUP)
        writer.write_table(rows.combine_chunks())
    return num_rows


# --- reading ------------------------------------------------------------------------------------------------------------


def viewed_languages(folder: str | Path) -> dict[str, int]:
    """Number of titles of every language in a folder of `sum_page_views`. Errors: ValueError if it is not finished."""
    num_titles: dict[str, int] = storage.finished(Path(folder), "page views", "mc2 metadata build")["results"]["titles"]
    return num_titles


def read_titles(
    folder: str | Path, language: str, fraction: float = 1.0, most: int | None = None, min_views: int = 0
) -> list[tuple[str, int]]:
    """The titles of a language with their views, most viewed first, equal ones by code point; none for a language without views.

    Published (RECIPE 1.2): fraction=0.76, most=61_235; English min_views=70. Only what is chosen is read: English has tens of millions.

    Args:
        folder: Folder of `sum_page_views`.
        language: Metadata language.
        fraction: Share of all titles, rounded.
        most: At most this many of them.
        min_views: Titles viewed less often are left out, after the other limits.
    """
    total = viewed_languages(folder).get(language, 0)
    number = min(round(fraction * total), total if most is None else most)
    titles: list[tuple[str, int]] = []
    if number:
        file = pq.ParquetFile(Path(folder) / f"{language}.parquet")
        for batch in file.iter_batches(min(number, _ROW_GROUP)):
            titles += zip(batch["title"].to_pylist(), batch["views"].to_pylist(), strict=True)
            if len(titles) >= number or titles[-1][1] < min_views:
                break
    return [(title, views) for title, views in titles[:number] if views >= min_views]
