"""What a sweep file says: which experiments there are, each a list of YAMLs on top of a base, and which numbers its tables show."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mc2.benchmarks.results import Result


@dataclass(frozen=True)
class Column:
    """A number of a run: the unweighted mean of a metric over languages of a task.

    languages: only these; None: all. without_languages: all but these.
    """

    task: str
    metric: str = "top1"
    languages: list[str] | None = None
    without_languages: list[str] | None = None

    def value(self, results: list[Result]) -> float:
        """Errors: ValueError if the results have no such row."""
        values = [
            row.value
            for row in results
            if (row.task, row.metric) == (self.task, self.metric)
            and not row.is_mean
            and (self.languages is None or row.language in self.languages)
            and row.language not in (self.without_languages or ())
        ]
        if not values:
            raise ValueError(f"sweep: no row of the results has {self}; mend `columns` of the sweep file")
        return sum(values) / len(values)


@dataclass(frozen=True)
class Sweep:
    """A sweep file. YAMLs are named relative to the file's folder; in `prepare` that folder is {here}.

    out: folder of the runs (experiments/<name>/<seed>), results.parquet and table.md. base: YAMLs that all experiments begin with. experiments: name ->
    YAMLs on top. columns: heading -> number. prepare: `mc2` commands that make the data, each run once. models: experiments that leave a model folder,
    to be another's teacher. contrasts: name -> [experiment, the one that is subtracted].
    """

    out: Path
    base: list[str]
    experiments: dict[str, list[str]]
    columns: dict[str, Column]
    prepare: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    contrasts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.experiments:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"sweep: found an experiment {name!r}, need letters, digits, '_', '-' and '.': it names a folder")
        named = {name: f"contrasts.{title}" for title, pair in self.contrasts.items() for name in pair} | dict.fromkeys(
            self.models, "models"
        )
        for name, where in named.items():
            if name not in self.experiments:
                raise ValueError(f"sweep: {where} names {name!r}, need one of the experiments ({', '.join(self.experiments)})")
        if wrong := [title for title, pair in self.contrasts.items() if len(pair) != 2]:
            raise ValueError(f"sweep: contrasts.{wrong[0]} needs two experiments, the second is subtracted")


def read_sweep(path: Path) -> Sweep:
    """The settings in a file. Errors: ValueError, one line, for a file that is missing or says something else."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep, "sweep")
    try:
        value: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        sweep: Sweep = parser.instantiate_classes(parser.parse_object({"sweep": value})).sweep
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; give a sweep file, such as experiments/mini/sweep.yaml") from error
    except (yaml.YAMLError, ArgumentError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return sweep
