"""What changed between two evaluations of the same samples, and whether it is more than luck: the paired bootstrap over what each sample said."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from mc2 import storage
from mc2.benchmarks.bootstrap import FloatArray, false_discovery_rates, interval, mean_of, mean_of_tasks, p_value, replicates
from mc2.benchmarks.means import tasks_protocol
from mc2.benchmarks.result_files import OUTCOMES, RESULTS, Kept, read_outcomes
from mc2.benchmarks.results import GROUP_MEAN, MAIN, MEAN, MEAN_OF_TASKS, Result, Score, read_results

MANY = 64  # clusters: what luck can do with them is far below any rate of interest
SIGNIFICANT = 0.05  # share of false ones among the differences that are called significant


@dataclass(frozen=True)
class Change:
    """A row of two tables beside each other. `change` = after - before, with its 95 % interval.

    `rate`: the smallest share of false discoveries, among the languages (or the means) of the same task, protocol and metric, at which this one counts; None
    where there are no outcomes to draw from.
    """

    task: str
    protocol: str
    language: str
    metric: str
    before: float
    after: float
    change: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    rate: float | None = None

    @property
    def is_significant(self) -> bool:
        return self.rate is not None and self.rate < SIGNIFICANT

    @property
    def is_mean(self) -> bool:
        return self.language == MEAN or self.language.startswith(GROUP_MEAN)


@dataclass(frozen=True)
class Comparison:
    """All changes, in the order of the table; and the rows that only one of both has."""

    changes: list[Change]
    only_before: int
    only_after: int


Name = tuple[str, str, str, str]  # task, protocol, language, metric


def compare(before: Path, after: Path) -> Comparison:
    """Two folders of results. Errors: ValueError if files are missing, nothing is in both, or the same name stands for different samples."""
    first, second = ({name_of(row): row for row in read_results(folder / RESULTS)} for folder in (before, after))
    pairs = Pairs(read_outcomes(before / OUTCOMES), read_outcomes(after / OUTCOMES), f"{before} and {after}")
    names = [name for name in second if name in first and (not second[name].is_mean or pairs.same_languages(name))]
    if not names:
        raise ValueError(f"compare: {before} and {after} have no task, protocol, language and metric in common; evaluate the same tasks")
    changes = [pairs.change(first[name], second[name]) for name in names]
    return Comparison(with_rates(changes), len(first) - len(names), len(second) - len(names))


def name_of(row: Result | Change) -> Name:
    return row.task, row.protocol, row.language, row.metric


class Pairs:
    """The scores that both evaluations have, with the differences of their outcomes, sample by sample, in the place of outcomes.

    Errors: ValueError if a name stands for different samples.
    """

    def __init__(self, before: Sequence[Kept], after: Sequence[Kept], where: str) -> None:
        self._members = [members_by_mean(before), members_by_mean(after)]
        self._differences: dict[Name, Score] = {}
        self._replicates: dict[Name, FloatArray] = {}
        first = {kept.name: kept for kept in before}
        for kept in after:
            if kept.name not in first:
                continue
            one, other = first[kept.name].score, kept.score
            if first[kept.name].samples != kept.samples or not same_samples(one, other):
                raise ValueError(
                    f"compare: {' '.join(kept.name)} was scored on different samples in {where}: other images, texts or candidates; "
                    "evaluate both on the same data"
                )
            if one.outcomes is not None and other.outcomes is not None:
                self._differences[kept.name] = difference = replace(other, outcomes=other.outcomes - one.outcomes)
                drawn = replicates(difference)
            elif one.replicates is not None and other.replicates is not None:
                self._differences[kept.name] = difference = replace(other, replicates=other.replicates - one.replicates)
                drawn = difference.replicates
            else:
                continue
            if drawn is not None:
                self._replicates[kept.name] = drawn

    def same_languages(self, mean: Name) -> bool:
        """Whether the row of a mean is over the same languages in both."""
        return self._members[0].get(mean) == self._members[1].get(mean)

    def change(self, before: Result, after: Result) -> Change:
        """One row; a mean is drawn as the mean of its languages, that of a collection as the mean of its tasks."""
        name = name_of(after)
        change = Change(*name, before.value, after.value, after.value - before.value)
        members = sorted(self._members[1].get(name, ())) if after.is_mean else [name]
        if not members or not self._replicates.keys() >= set(members):
            return change
        by_task: dict[str, list[FloatArray]] = {}
        for member in members:
            by_task.setdefault(member[0], []).append(self._replicates[member])
        means = {task: mean_of(own) for task, own in by_task.items()}
        difference_R = mean_of_tasks(means) if after.metric == MEAN_OF_TASKS else means[after.task]
        low, high = interval(difference_R)
        chance = p_value(change.change, difference_R, num_changed([self._differences[member] for member in members]))
        return replace(change, low=low, high=high, p_value=chance)


def members_by_mean(kept: Iterable[Kept]) -> dict[Name, set[Name]]:
    """The scores that each row of a mean is over."""
    members: dict[Name, set[Name]] = {}
    for row in kept:
        for label in row.groups:
            members.setdefault((row.task, row.score.protocol, label, row.score.metric), set()).add(row.name)
    mains = [name for own in members.values() for name in own if name[3] == MAIN]
    for collection in {protocol for _, protocol, _, _ in mains}:
        own = {name for name in mains if name[1] == collection}
        members[collection, tasks_protocol(len({name[0] for name in own})), MEAN, MEAN_OF_TASKS] = own
    return members


def same_samples(one: Score, other: Score) -> bool:
    """Whether two scores may be of the same samples, as far as their numbers and arrays say."""

    def same(a: object, b: object) -> bool:
        return (a is None) == (b is None) and (a is None or np.array_equal(a, b))  # type: ignore[arg-type]

    return (
        (one.num_samples, one.num_candidates) == (other.num_samples, other.num_candidates)
        and same(one.strata, other.strata)
        and same(one.clusters, other.clusters)
    )


def num_changed(differences: Iterable[Score]) -> int:
    """Clusters of which a sample changed, in any language. Of what is no mean of samples it is not known: many, if anything did."""
    changed: set[int] = set()
    for score in differences:
        if score.outcomes is None:
            changed.update(range(MANY if np.any(score.replicates) else 0))
            continue
        index_N = np.flatnonzero(score.outcomes)
        changed.update((index_N if score.clusters is None else np.asarray(score.clusters)[index_N]).tolist())
    return len(changed)


def with_rates(changes: Sequence[Change]) -> list[Change]:
    """The rates of false discoveries, among languages and among means apart."""
    families: dict[tuple[str, str, str, bool], list[int]] = {}
    for index, row in enumerate(changes):
        if row.p_value is not None:
            families.setdefault((row.task, row.protocol, row.metric, row.is_mean), []).append(index)
    rated = list(changes)
    for indices in families.values():
        rates = false_discovery_rates([p for index in indices if (p := changes[index].p_value) is not None])
        for index, rate in zip(indices, rates, strict=True):
            rated[index] = replace(changes[index], rate=rate)
    return rated


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """All rows as CSV, atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Change)], lineterminator="\n")
    writer.writeheader()
    for change in changes:
        writer.writerow({name: f"{value:.6f}" if isinstance(value, float) else value for name, value in asdict(change).items()})
    storage.write_bytes(path, text.getvalue().encode())
