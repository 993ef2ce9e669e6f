"""The files of one evaluation, in one folder.

results.parquet, results.csv, results.md    the tidy table (RESULTS_SCHEMA); as Markdown, languages x tasks
outcomes.parquet                            what each sample said (OUTCOMES_SCHEMA), which `mc2 compare` draws from; of what is no mean of samples its replicates
predictions.parquet                         the best answers for each image, if they were asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.benchmarks.results import Result, Score, write_results
from mc2.benchmarks.table import results_table

RESULTS, OUTCOMES, PREDICTIONS = "results.parquet", "outcomes.parquet", "predictions.parquet"

# One row per score. `samples` is a fingerprint of what was scored: keys of the images and texts of the language.
# `groups`: whose means the score is part of, as the labels of their rows ("mean", "mean:region:Africa").
OUTCOMES_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("protocol", pa.string()),
        ("language", pa.string()),
        ("metric", pa.string()),
        ("samples", pa.string()),
        ("groups", pa.list_(pa.string())),
        ("value", pa.float64()),
        ("num_candidates", pa.int64()),
        ("outcomes", pa.list_(pa.float32())),
        ("strata", pa.list_(pa.int32())),
        ("clusters", pa.list_(pa.int32())),
        ("replicates", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Kept:
    """A score with everything that a comparison needs."""

    task: str
    language: str
    samples: str
    groups: Sequence[str]
    score: Score

    @property
    def name(self) -> tuple[str, str, str, str]:
        return self.task, self.score.protocol, self.language, self.score.metric


def step_folder(folder: Path, step: int) -> Path:
    """Where the files of one step of a run are."""
    return folder / f"step={step}"


def write_files(folder: Path, results: Sequence[Result], kept: Sequence[Kept], predictions: pa.Table | None = None) -> None:
    """Write the files of an evaluation, each whole; results.parquet comes last and says that the others are there."""
    write_outcomes(folder / OUTCOMES, kept)
    if predictions is not None:
        with storage.atomic_write(folder / PREDICTIONS) as file:
            pq.write_table(predictions, file)
    storage.write_bytes(folder / "results.md", results_table(results).to_markdown().encode())
    write_results(folder / "results.csv", results)
    write_results(folder / RESULTS, results)


def write_outcomes(path: Path, kept: Sequence[Kept]) -> None:
    """OUTCOMES_SCHEMA, atomically."""
    rows = [
        {
            "task": row.task,
            "protocol": row.score.protocol,
            "language": row.language,
            "metric": row.score.metric,
            "samples": row.samples,
            "groups": list(row.groups),
            "value": row.score.value,
            "num_candidates": row.score.num_candidates,
            "outcomes": row.score.outcomes,
            "strata": row.score.strata,
            "clusters": row.score.clusters,
            "replicates": row.score.replicates,
        }
        for row in kept
    ]
    with storage.atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rows, OUTCOMES_SCHEMA), file, compression="zstd")


def read_outcomes(path: Path) -> list[Kept]:
    """What `write_outcomes` wrote. Errors: ValueError for a missing file or another one."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; give a folder that `mc2 test` or `mc2 fit` wrote its results to") from error
    except pa.ArrowException as error:
        raise ValueError(f"{path}: no file of outcomes ({str(error).splitlines()[0]}); run `mc2 test` again") from error
    if table.schema != OUTCOMES_SCHEMA:
        raise ValueError(f"{path}: found columns {', '.join(table.column_names)}; need {', '.join(OUTCOMES_SCHEMA.names)}; evaluate again")
    arrays = {name: table[name] for name in ("outcomes", "strata", "clusters", "replicates")}
    rows = table.drop_columns(list(arrays)).to_pylist()
    kept = []
    for index, row in enumerate(rows):
        values = {name: column[index].values for name, column in arrays.items()}
        numbers = {name: None if value is None else value.to_numpy(zero_copy_only=False) for name, value in values.items()}
        num_samples = 0 if numbers["outcomes"] is None else len(numbers["outcomes"])
        score = Score(row["protocol"], row["metric"], row["value"], num_samples, row["num_candidates"], **numbers)
        kept.append(Kept(row["task"], row["language"], row["samples"], row["groups"], score))
    return kept
