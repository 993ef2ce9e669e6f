"""Rows of `results.csv`: one number of one benchmark, its means over languages, and the file itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mc2 import storage

MEAN = "mean"  # stands in the language column: unweighted mean over all languages of the task
GROUP_MEAN = "mean:"  # + name of the group


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one language: `value` is a share in [0, 1], `num_classes` the classes (in retrieval, candidates) that were ranked."""

    protocol: str
    metric: str
    value: float
    num_samples: int
    num_classes: int


@dataclass(frozen=True, slots=True)
class Result:
    """One row of `results.csv`. `language` is a code, "mean" or "mean:<group>"; `seconds` is the wall time of the whole task, the same in
    all its rows.

    A mean row sums `num_samples` over its languages and rounds the mean of `num_classes`.
    """

    task: str
    protocol: str
    language: str
    metric: str
    value: float
    num_samples: int
    num_classes: int
    seconds: float

    @property
    def is_mean(self) -> bool:
        return self.language == MEAN or self.language.startswith(GROUP_MEAN)


COLUMNS = tuple(field.name for field in fields(Result))


def task_results(task: str, scores: Mapping[str, Iterable[Score]], groups: Mapping[str, str], seconds: float) -> list[Result]:
    """The rows of one task from its scores per language: mean over all languages, mean per group, then the languages."""
    rows = [
        Result(task, score.protocol, language, score.metric, score.value, score.num_samples, score.num_classes, round(seconds, 3))
        for language in scores
        for score in scores[language]
    ]
    means = mean_rows(rows, MEAN)
    for group in sorted({groups[language] for language in scores if language in groups}):
        means += mean_rows([row for row in rows if groups.get(row.language) == group], GROUP_MEAN + group)
    return means + rows


def mean_rows(rows: Iterable[Result], label: str) -> list[Result]:
    """For every (protocol, metric) the unweighted mean over the languages of one task."""
    same: dict[tuple[str, str, str], list[Result]] = {}
    for row in rows:
        same.setdefault((row.task, row.protocol, row.metric), []).append(row)
    return [
        Result(
            task,
            protocol,
            label,
            metric,
            value=sum(row.value for row in part) / len(part),
            num_samples=sum(row.num_samples for row in part),
            num_classes=round(sum(row.num_classes for row in part) / len(part)),
            seconds=part[0].seconds,
        )
        for (task, protocol, metric), part in same.items()
    ]


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write results as CSV (UTF-8, a header line), atomically; values keep six decimals."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "value": f"{row.value:.6f}"} for row in results)
    storage.write_bytes(path, text.getvalue().encode())


def read_results(path: Path) -> list[Result]:
    """The rows of a results file. Errors: ValueError for a missing file, another header, or a line that does not fit it."""
    if not path.is_file():
        raise ValueError(f"{path}: not found; run `mc2 test` or `mc2 quickstart`, which write it")
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: found columns {reader.fieldnames}, need {', '.join(COLUMNS)}")
        return [parse_row(row, f"{path}:{reader.line_num}") for row in reader]


def parse_row(row: Mapping[str, str | None], where: str) -> Result:
    """A Result from the text of its cells. Errors: ValueError that names file and line."""
    if None in row or None in row.values():
        raise ValueError(f"{where}: found {len([v for v in row.values() if v is not None])} cells, need {len(COLUMNS)}")
    cell = {name: str(value) for name, value in row.items()}
    try:
        return Result(
            cell["task"],
            cell["protocol"],
            cell["language"],
            cell["metric"],
            float(cell["value"]),
            int(cell["num_samples"]),
            int(cell["num_classes"]),
            float(cell["seconds"]),
        )
    except ValueError as error:
        raise ValueError(
            f"{where}: {error}; need a share in value, whole numbers in num_samples and num_classes, seconds as a number"
        ) from error
