"""`mc2 sweep FILE`: every experiment of a sweep file with every seed, what is done only once, and tables with 95 % intervals."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.benchmarks.results import RESULTS_SCHEMA
from mc2.sweep.runs import Processes, Run
from mc2.sweep.settings import Sweep, read_sweep
from mc2.sweep.statistics import difference, estimate

SEEDS = (0, 1, 2)
Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # column -> experiment -> seed -> share


def sweep(
    file: Path,
    seeds: list[int] = list(SEEDS),  # noqa: B006  (read only)
    jobs: int = 1,
    only: list[str] | None = None,
    options: list[str] | None = None,
) -> int:
    """Run all experiments of a sweep file with several seeds; the same line again goes on, and only shows the tables when all is done.

    Args:
        file: Sweep file, such as experiments/mini/sweep.yaml: experiments, the data they need, and the numbers to show.
        seeds: Of the initial weights and of the order of the data.
        jobs: Runs at the same time; the cores are divided among them. On a CPU one run a core is fastest; on GPUs set CUDA_VISIBLE_DEVICES and run one sweep each.
        only: Names of some of the experiments.
        options: More words for every `mc2 fit`, such as --options '[--trainer.max_steps, "2"]' to try a sweep; the runs are then others than those without.
    """
    settings = read_sweep(file)
    if jobs < 1 or not seeds:
        raise ValueError(f"sweep: found jobs {jobs} and seeds {seeds}, need at least one of each")
    if unknown := sorted(set(only or ()) - set(settings.experiments)):
        raise ValueError(f"sweep: found no experiment {unknown[0]!r}, need some of {', '.join(settings.experiments)}")
    processes = Processes(max(1, (os.cpu_count() or 1) // jobs))
    prepare(settings, file.parent, processes)
    runs = [
        run
        for seed in seeds
        for run in planned(settings, file.parent, seed, tuple(options or ()))
        if only is None or run.experiment in only
    ]
    failed = execute(runs, jobs, processes)
    report(settings, [run for run in runs if run not in failed])
    return 1 if failed else 0


def planned(settings: Sweep, here: Path, seed: int, options: tuple[str, ...]) -> list[Run]:
    """The runs of one seed, in the order of the file: a teacher stands before its students."""
    return [
        Run(
            name,
            seed,
            tuple(here / path for path in [*settings.base, *overlays]),
            settings.out / "experiments" / name / str(seed),
            options,
            name in settings.models,
        )
        for name, overlays in settings.experiments.items()
    ]


def prepare(settings: Sweep, here: Path, processes: Processes) -> None:
    """Run the commands that make the data, those that were run already not again. Errors: ValueError if one fails."""
    mark = settings.out / "prepared.json"
    done: list[str] = storage.read_json(mark) if mark.exists() else []
    for number, line in enumerate(settings.prepare, 1):
        command = line.replace("{here}", here.as_posix())
        if command not in done:
            print(f"prepare {number}/{len(settings.prepare)}  mc2 {command}", flush=True)
            try:
                processes.run(settings.out / "prepare.log", *shlex.split(command))
            except KeyboardInterrupt:
                processes.stop()
                raise
            done.append(command)
            storage.write_json(mark, done)


def execute(runs: Sequence[Run], jobs: int, processes: Processes) -> set[Run]:
    """Execute all runs, one line for each. Returns those that failed. After Ctrl-C the running ones save; the next call goes on from there."""
    failed: set[Run] = set()
    started: dict[Run, float] = {}

    def one(run: Run) -> bool:
        started[run] = time.monotonic()
        return run.execute(processes)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, run): run for run in runs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                run, said = futures[future], ""
                try:
                    said = f"{time.monotonic() - started[run]:.0f} s" if future.result() else "was done"
                except (ValueError, OSError) as error:
                    failed.add(run)
                    said = f"FAILED: {error}"
                print(f"{number:>4}/{len(runs)}  {run.experiment}, seed {run.seed}: {said}", flush=True)
        except KeyboardInterrupt:
            processes.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return failed


# --- what came out ------------------------------------------------------------------------------------------------------


def report(settings: Sweep, runs: Sequence[Run]) -> None:
    """Write results.parquet and table.md, print the table."""
    if not runs:
        return
    results = {run: run.results() for run in runs}
    tables = [
        pa.Table.from_pylist([asdict(row) for row in rows], RESULTS_SCHEMA)
        .add_column(0, "seed", pa.array([run.seed] * len(rows), pa.int64()))
        .add_column(0, "experiment", pa.array([run.experiment] * len(rows)))
        for run, rows in results.items()
    ]
    with storage.atomic_write(settings.out / "results.parquet") as file:
        pq.write_table(pa.concat_tables(tables), file)
    values: dict[str, dict[str, dict[int, float]]] = {title: {} for title in settings.columns}
    for run, rows in results.items():
        for title, column in settings.columns.items():
            values[title].setdefault(run.experiment, {})[run.seed] = column.value(rows)
    pairs = {run.experiment: run.pairs_seen() for run in runs}
    text = experiments_table(settings, values, pairs) + "\n" + contrasts_table(settings, values)
    storage.write_bytes(settings.out / "table.md", text.encode())
    print(f"\n{text}\n{settings.out}/table.md, results.parquet ({len(RESULTS_SCHEMA.names) + 2} columns)")


def experiments_table(settings: Sweep, values: Values, pairs: Mapping[str, int]) -> str:
    """Percent, mean over seeds ± half of the 95 % interval, one line an experiment."""
    lines = [["experiment", "on top of the base", "pairs seen", "seeds", *settings.columns]]
    for name in (name for name in settings.experiments if name in pairs):
        cells = [estimate(list(values[title][name].values())) for title in settings.columns]
        overlays = ", ".join(Path(path).stem for path in settings.experiments[name]) or "nothing"
        lines.append([name, overlays, f"{pairs[name]:,}", str(cells[0].num_seeds), *(cell.percent() for cell in cells)])
    return markdown(lines)


def contrasts_table(settings: Sweep, values: Values) -> str:
    """Percentage points, differences of runs with the same seed."""
    lines = [["difference", *settings.columns]]
    for title, (one, other) in settings.contrasts.items():
        cells = [difference(column.get(one, {}), column.get(other, {})) for column in values.values()]
        if all(cell is not None for cell in cells):
            lines.append([f"{title}: {one} - {other}", *(cell.percent(signed=True) for cell in cells if cell is not None)])
    return markdown(lines) if len(lines) > 1 else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A GitHub table; the first line is the head."""
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [lines[0], rule, *lines[1:]])


def main(argv: list[str]) -> int:
    """Run `mc2 sweep ...`; argv begins with "sweep"."""
    from mc2.usage import call

    status: int = call(sweep, argv[1:], "mc2 sweep")
    return status
