"""From the scores of a task's languages to its rows of the table: means over all languages and over groups of them, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mc2.benchmarks.bootstrap import FloatArray, interval, replicates
from mc2.benchmarks.results import GROUP_MEAN, MEAN, Result, Score


@dataclass(frozen=True)
class Drawn:
    """A score with its bootstrap replicates, (R,); None where it has no outcomes."""

    score: Score
    replicates: FloatArray | None

    @classmethod
    def of(cls, score: Score) -> Drawn:
        return cls(score, replicates(score))


def task_results(task: str, scores: Mapping[str, Sequence[Drawn]], groups: Mapping[str, Sequence[str]]) -> list[Result]:
    """The rows of one task: mean over all languages, mean of each group (its languages), then the languages."""
    rows = [row for label, codes in {MEAN: list(scores), **labelled(groups)}.items() for row in mean_rows(task, label, scores, codes)]
    for language, drawn in scores.items():
        for each in drawn:
            score, (low, high) = each.score, interval(each.replicates)
            rows.append(
                Result(task, score.protocol, language, score.metric, score.value, score.num_samples, score.num_candidates, low, high)
            )
    return rows


def labelled(groups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The groups under what stands in the language column."""
    return {GROUP_MEAN + group: codes for group, codes in groups.items()}


def mean_rows(task: str, label: str, scores: Mapping[str, Sequence[Drawn]], codes: Sequence[str]) -> list[Result]:
    """For every (protocol, metric) the unweighted mean over some languages of one task."""
    same: dict[tuple[str, str], list[Drawn]] = {}
    for code in codes:
        for drawn in scores[code]:
            same.setdefault((drawn.score.protocol, drawn.score.metric), []).append(drawn)
    rows = []
    for (protocol, metric), part in same.items():
        known = [drawn.replicates for drawn in part if drawn.replicates is not None]
        low, high = interval(np.mean(known, axis=0) if len(known) == len(part) else None)
        value = sum(drawn.score.value for drawn in part) / len(part)
        num_samples = sum(drawn.score.num_samples for drawn in part)
        num_candidates = round(sum(drawn.score.num_candidates for drawn in part) / len(part))
        rows.append(Result(task, protocol, label, metric, value, num_samples, num_candidates, low, high))
    return rows


def collection_rows(results: Sequence[Result]) -> list[Result]:
    """The mean over the tasks of a collection (SLIP-26, DataComp): of the means of all rows `main` whose protocol is the collection's name."""
    collections: dict[str, list[Result]] = {}
    for row in results:
        if row.metric == "main" and row.language == MEAN:
            collections.setdefault(row.protocol, []).append(row)
    return [
        Result(
            task=name,
            protocol=f"{len(rows)}-tasks",
            language=MEAN,
            metric="mean_of_tasks",
            value=sum(row.value for row in rows) / len(rows),
            num_samples=sum(row.num_samples for row in rows),
            num_candidates=round(sum(row.num_candidates for row in rows) / len(rows)),
        )
        for name, rows in collections.items()
    ]
