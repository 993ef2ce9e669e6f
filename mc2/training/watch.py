"""`mc2 test --watch RUN`: the checkpoints of a running job, evaluated one after the other by another process, each once.

A checkpoint is held by hard links while it is evaluated, so that the job may prune it meanwhile; one that is pruned before is passed over. What is done is
known by a mark, RUN/watched/step=N/done, so the watcher may be stopped and started again at any time. With several processes rank 0 chooses and tells the
others, also that it waits and that it is at the end: no rank ever looks for itself, where it could see something else.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from mc2 import storage
from mc2.training.checkpoints import checkpoint_folder, checkpoints_by_step, step_of

WATCHED = "watched"  # below the run: the results of each step
HELD = ".held"  # below that: the checkpoint that is being evaluated
DONE = "done"  # below the results of a step: the mark of a finished evaluation
SECONDS_TO_APPEAR = 60  # of a new name on another node's view of a network file system


class Choice(NamedTuple):
    """What all ranks do next: evaluate `held`, end, or wait and look again."""

    held: Path | None
    ends: bool = False


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


def is_done(run: Path, step: int) -> bool:
    """Whether a step was evaluated to the end, by this watcher or one before it."""
    return (results_folder(run, step) / DONE).exists()


def choose(run: Path, last_step: int, passed_over: set[int]) -> Choice:
    """The oldest checkpoint of a run that is not done, held; the end where there is none and `last_step` is done or gone. Steps that are gone are added to
    `passed_over`.
    """
    for checkpoint in checkpoints_by_step(checkpoint_folder(run)):
        step = step_of(checkpoint)
        if step in passed_over or is_done(run, step):
            continue
        held = hold(checkpoint, run / WATCHED / HELD)
        if held is not None:
            return Choice(held)
        passed_over.add(step)
        print(f"watch: {checkpoint} was removed before it was evaluated", flush=True)
    return Choice(None, ends=last_step >= 0 and (last_step in passed_over or is_done(run, last_step)))


def new_checkpoints(
    run: Path,
    poll_seconds: float,
    last_step: int,
    rank: int = 0,
    broadcast: Callable[[Choice], Choice] = lambda choice: choice,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Path, None, None]:
    """Checkpoints to evaluate, held, as they come; ends after `last_step` (-1: never). Asking for the next one says that the one before is done, and lets it go.

    All ranks run it side by side; `broadcast` hands on what rank 0 says.
    """
    passed_over: set[int] = set()
    while True:
        choice = broadcast(choose(run, last_step, passed_over) if rank == 0 else Choice(None))
        if choice.ends:
            return
        if choice.held is None:
            sleep(poll_seconds)
            continue
        for _ in range(SECONDS_TO_APPEAR):
            if choice.held.exists():
                break
            sleep(1.0)
        try:
            yield choice.held
            if rank == 0:
                storage.write_bytes(results_folder(run, step_of(choice.held)) / DONE, b"")
        finally:
            if rank == 0:
                shutil.rmtree(run / WATCHED / HELD, ignore_errors=True)
