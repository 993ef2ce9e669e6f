"""From the scores of a task's languages to its rows of the table: means over all languages and over groups of them, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mc2.benchmarks.bootstrap import FloatArray, interval, mean_of, mean_of_tasks, replicates
from mc2.benchmarks.results import GROUP_MEAN, MAIN, MEAN, MEAN_OF_TASKS, Result, Score


@dataclass(frozen=True)
class Drawn:
    """A score with its bootstrap replicates, (R,); None where it has none."""

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
        low, high = interval(mean_replicates(part))
        value = sum(drawn.score.value for drawn in part) / len(part)
        num_samples = sum(drawn.score.num_samples for drawn in part)
        num_candidates = round(sum(drawn.score.num_candidates for drawn in part) / len(part))
        rows.append(Result(task, protocol, label, metric, value, num_samples, num_candidates, low, high))
    return rows


def mean_replicates(part: Sequence[Drawn]) -> FloatArray | None:
    """(R,) replicates of the mean of some scores; None if there is none, or one of them has none."""
    known = [drawn.replicates for drawn in part if drawn.replicates is not None]
    return mean_of(known) if known and len(known) == len(part) else None


def collection_rows(results: Sequence[Result], replicates_of_main: Mapping[str, FloatArray | None]) -> list[Result]:
    """The mean over the tasks of a collection (SLIP-26, DataComp): of the means of all rows `main` whose protocol is the collection's name.

    `replicates_of_main`: task -> (R,) of its row `main`.
    """
    collections: dict[str, list[Result]] = {}
    for row in results:
        if row.metric == MAIN and row.language == MEAN:
            collections.setdefault(row.protocol, []).append(row)
    means = []
    for name, rows in collections.items():
        value = sum(row.value for row in rows) / len(rows)
        num_samples, num_candidates = sum(row.num_samples for row in rows), round(sum(row.num_candidates for row in rows) / len(rows))
        known = {row.task: own for row in rows if (own := replicates_of_main.get(row.task)) is not None}
        low, high = interval(mean_of_tasks(known) if len(known) == len(rows) else None)
        means.append(Result(name, tasks_protocol(len(rows)), MEAN, MEAN_OF_TASKS, value, num_samples, num_candidates, low, high))
    return means


def tasks_protocol(num_tasks: int) -> str:
    """ "26-tasks"."""
    return f"{num_tasks}-tasks"
