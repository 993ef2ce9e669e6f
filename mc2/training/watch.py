"""`mc2 test --watch RUN`: the checkpoints of a running job, evaluated one after the other by another process, each once.

A checkpoint is held by hard links while it is evaluated, so that the job may prune it meanwhile; one that is pruned before is passed over. What is done is
known by its results, RUN/watched/step=N/results.parquet, so the watcher may be stopped and started again at any time. With several processes rank 0 chooses,
and the others find its links.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path

from mc2.training.checkpoints import checkpoint_folder, checkpoints_by_step

WATCHED = "watched"  # below the run: the results of each step
HELD = ".held"  # below that: the checkpoint that is being evaluated
RESULTS = "results.parquet"  # the last file of an evaluation


def step_of(checkpoint: Path) -> int:
    """17 for step=17.ckpt."""
    return int(checkpoint.stem.removeprefix("step="))


def results_folder(run: Path, step: int) -> Path:
    """Where the results of a step go."""
    return run / WATCHED / f"step={step}"


def hold(checkpoint: Path, folder: Path) -> Path | None:
    """The same checkpoint, file or folder, under another name that nobody prunes: links where the file system has them, else copies. None if it is gone."""
    held, temporary = folder / checkpoint.name, folder / f".{checkpoint.name}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if checkpoint.is_dir():
            shutil.copytree(checkpoint, temporary, copy_function=link_or_copy)
            if not checkpoint.is_dir():  # it was being removed: not all of it may be here
                return None
        else:
            link_or_copy(checkpoint, temporary)
    except (FileNotFoundError, shutil.Error):
        return None
    os.replace(temporary, held)
    return held


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name of a file. Errors: FileNotFoundError."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def chosen(run: Path, passed_over: set[int]) -> Path | None:
    """The oldest checkpoint of a run that has no results yet, held; None if there is none now. Steps that are gone are added to `passed_over`."""
    for checkpoint in checkpoints_by_step(checkpoint_folder(run)):
        step = step_of(checkpoint)
        if step in passed_over or (results_folder(run, step) / RESULTS).exists():
            continue
        held = hold(checkpoint, run / WATCHED / HELD)
        if held is not None:
            return held
        passed_over.add(step)
        print(f"watch: {checkpoint} was removed before it was evaluated", flush=True)
    return None


def new_checkpoints(
    run: Path, poll_seconds: float, last_step: int, rank: int = 0, sleep: Callable[[float], None] = time.sleep
) -> Generator[Path, None, None]:
    """Checkpoints to evaluate, held, as they come; ends after `last_step` (-1: never). What was yielded is let go when the next one is asked for."""
    done: set[int] = set()
    while last_step < 0 or (last_step not in done and not (results_folder(run, last_step) / RESULTS).exists()):
        if rank == 0:
            held = chosen(run, done)
        else:
            held = next((path for path in checkpoints_by_step(run / WATCHED / HELD) if step_of(path) not in done), None)
        if held is None:
            sleep(poll_seconds)
            continue
        try:
            yield held
            done.add(step_of(held))
        finally:
            if rank == 0:
                shutil.rmtree(run / WATCHED / HELD, ignore_errors=True)
