"""Numbers to stand beside ours: the paper's (arXiv 2507.22062 v3, packaged as paper_results.csv) or another evaluation's."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pyarrow.csv as pc_csv

from mc2.benchmarks.result_files import RESULTS
from mc2.benchmarks.results import Result, read_results


def read_reference(name: str) -> list[Result]:
    """The rows of a model of the paper by its name, or of a folder of results. Errors: ValueError for what is neither."""
    paper = paper_results()
    if name in paper:
        return paper[name]
    if not (Path(name) / RESULTS).is_file():
        models = ", ".join(repr(model) for model in paper)
        raise ValueError(f"benchmarks.reference: found neither a folder of results nor a model at {name!r}; need one of {models}")
    return read_results(Path(name) / RESULTS)


def paper_results() -> dict[str, list[Result]]:
    """Model ("H/14 worldwide 29B") -> what the paper prints of it, under the names of our tasks and protocols."""
    with importlib.resources.as_file(importlib.resources.files("mc2.benchmarks") / "paper_results.csv") as path:
        rows = pc_csv.read_csv(path).to_pylist()
    models: dict[str, list[Result]] = {}
    for row in rows:
        result = Result(row["task"], row["protocol"], row["language"], row["metric"], row["percent"] / 100, 0, 0)
        models.setdefault(row["model"], []).append(result)
    return models
