"""What a benchmark says: scores of one language, and rows of the one tidy table with their means over languages."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage

MEAN = "mean"  # stands in the language column: unweighted mean over all languages of the task
GROUP_MEAN = "mean:"  # + name of the group
MAIN = "main"  # the metric of a data set that enters the mean of its collection
MEAN_OF_TASKS = "mean_of_tasks"  # the metric of that mean

RESULTS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("protocol", pa.string()),
        ("language", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("num_samples", pa.int64()),
        ("num_candidates", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
COLUMNS = tuple(RESULTS_SCHEMA.names)


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one language: `value` of `num_samples` samples, each judged among `num_candidates` classes or candidates.

    outcomes: (num_samples,) one number a sample, in an order that does not depend on the model; None: no mean of samples.
    strata: (num_samples,) the value is the mean over strata of the means in them (mean per class); None: the plain mean of the outcomes.
    clusters: (num_samples,) samples with the same number are drawn together in the bootstrap, in all languages of the task: the index of the image, say, whose
    captions are samples. None: the index of the sample, as where every image is one sample.
    replicates: (R,) for what is no mean of samples (ROC-AUC, uniformity): its values in the bootstrap's draws, in the place of outcomes.
    """

    protocol: str
    metric: str
    value: float
    num_samples: int
    num_candidates: int
    outcomes: NDArray[np.float32] | None = field(default=None, compare=False)
    strata: NDArray[np.int64] | None = field(default=None, compare=False)
    clusters: NDArray[np.int64] | None = field(default=None, compare=False)
    replicates: NDArray[np.float64] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table. `language` is a code, "mean" or "mean:<group>"; low and high bound the value's 95 % interval, None where there is none.

    A mean row sums `num_samples` over its languages and rounds the mean of `num_candidates`.
    """

    task: str
    protocol: str
    language: str
    metric: str
    value: float
    num_samples: int
    num_candidates: int
    low: float | None = None
    high: float | None = None

    @property
    def is_mean(self) -> bool:
        return self.language == MEAN or self.language.startswith(GROUP_MEAN)


# --- files --------------------------------------------------------------------------------------------------------------


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write the table as CSV (UTF-8, a header line, six decimals) or, by its name, as parquet; atomically."""
    rows = [asdict(row) for row in results]
    if path.suffix == ".parquet":
        with storage.atomic_write(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, RESULTS_SCHEMA), file)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {name: f"{row[name]:.6f}" for name in ("value", "low", "high") if row[name] is not None})
    storage.write_bytes(path, text.getvalue().encode())


def read_results(path: Path) -> list[Result]:
    """The rows of a results file, CSV or parquet. Errors: ValueError for a missing file, other columns, or a cell that does not fit its column."""
    if not path.is_file():
        raise ValueError(f"{path}: not found; run `mc2 test` or `mc2 quickstart`, which write it")
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else read_csv(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: no results file ({str(error).splitlines()[0]}); need columns {', '.join(COLUMNS)}") from error
    if tuple(table.column_names) != COLUMNS:
        raise ValueError(f"{path}: found columns {', '.join(table.column_names)}; need {', '.join(COLUMNS)}")
    return [Result(**row) for row in table.to_pylist()]


def read_csv(path: Path) -> pa.Table:
    """Columns as they are in the file, those of RESULTS_SCHEMA in their types."""
    types = {field.name: field.type for field in RESULTS_SCHEMA}
    return pc_csv.read_csv(path, convert_options=pc_csv.ConvertOptions(column_types=types))
