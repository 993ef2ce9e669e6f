"""Groups of items as tasks of SLURM job arrays, through submitit.

The unit is the item, not the task: a task writes the outcome of each item to a file as it is done, and when a task ends early (killed, out of time, preempted) only
its unfinished items are submitted again. So the size of the groups may change from one run to the next.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import subprocess
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mc2.engines.engine import Item, Outcome, Result, gather
from mc2.engines.local import ProcessPool

POLL_SECONDS = {"slurm": 5.0, "local": 0.1}
QUEUE_SECONDS = 15.0  # between two looks at SLURM's queue, for tasks that ended without a word
SIGNAL_SECONDS = 30  # before the limit, for an orderly end


@dataclass(frozen=True)
class SlurmSettings:
    """What is asked of SLURM. Published for matching: groups of 2,000 tars, jobs of 40 GB and one hour.

    Args:
        partition: Partition; the cluster's default by default.
        time_minutes: Limit of a task.
        mem_gb: Memory of a task.
        cpus_per_task: CPUs of a task, each working on one item at a time.
        items_per_task: Items of a task.
        extra: More options of sbatch, as {account: us, qos: low}.
        cluster: "slurm", or "local" to try it out: the same tasks, as processes of this machine.
    """

    partition: str | None = None
    time_minutes: int = 60
    mem_gb: float = 40.0
    cpus_per_task: int = 1
    items_per_task: int = 2000
    extra: Mapping[str, str] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"


class SlurmEngine:
    """Groups of items as tasks of job arrays. `logs` must be seen by all nodes, as must the files; the driver waits and shows progress.

    Errors at construction: ValueError for numbers out of range or a machine without sbatch, ImportError without submitit.
    """

    def __init__(
        self, logs: Path, settings: SlurmSettings | None = None, workers: int | None = None, attempts: int = 3, progress: bool = True
    ) -> None:
        self.logs, self.settings, self.workers = logs, settings or SlurmSettings(), workers
        self.attempts, self.progress = attempts, progress
        if importlib.util.find_spec("submitit") is None:
            raise ImportError("engine: the package submitit is not installed; run `pip install 'mc2[slurm]'`, or choose --engine local")
        for what in ("time_minutes", "mem_gb", "cpus_per_task", "items_per_task"):
            if getattr(self.settings, what) <= 0:
                raise ValueError(f"engine: found slurm.{what} {getattr(self.settings, what)}, need more than 0")
        if self.settings.cluster == "slurm" and shutil.which("sbatch") is None:
            raise ValueError("engine: found no sbatch, need a machine of the SLURM cluster; log in there, or choose --engine local")

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        return gather(name, items, self._outcomes(name, function, items), self.progress)

    def _outcomes(self, name: str, function: Callable[[Item], Any], items: Sequence[Item]) -> Generator[tuple[int, Outcome]]:
        size = self.settings.items_per_task
        waiting = deque(tuple(range(start, min(start + size, len(items)))) for start in range(0, len(items), size))
        running: list[_Task] = []
        deaths, looked = Counter[int](), time.monotonic()
        queued: set[str] | None = None
        try:
            while waiting or running:
                running += self._submit(name, function, items, waiting, room=self._room() - len(running))
                time.sleep(POLL_SECONDS[self.settings.cluster])
                if time.monotonic() - looked > QUEUE_SECONDS:
                    looked, queued = time.monotonic(), _queued()
                for task in list(running):
                    ended = self._ended(task, queued)  # first, because what is written before the end is read after it
                    yield from task.new_outcomes()
                    if ended:
                        running.remove(task)
                        task.path.unlink(missing_ok=True)
                        yield from self._retry(task, items, deaths, waiting)
                queued = None
        finally:
            for task in running:  # Ctrl-C, SIGTERM, or closed before its end
                task.job.cancel(check=False)
            while self.settings.cluster == "local" and not all(task.job.done() for task in running):
                time.sleep(POLL_SECONDS["local"])  # for children of ours

    def _ended(self, task: _Task, queued: set[str] | None) -> bool:
        """`queued`: what waits or runs, if that is known. Not submitit's `done`: it asks the accounting, which many clusters do not have."""
        if self.settings.cluster == "local":
            return bool(task.job.done())
        return task.job.paths.result_pickle.exists() or (queued is not None and task.job.job_id not in queued)

    def _room(self) -> int:
        """How many tasks may be submitted. SLURM itself limits how many of an array run at once; the local executor does not."""
        return (self.workers or os.cpu_count() or 1) if self.settings.cluster == "local" else 1000  # arrays are limited to 1001 by default

    def _submit(
        self, name: str, function: Callable[[Item], Any], items: Sequence[Item], waiting: deque[tuple[int, ...]], room: int
    ) -> list[_Task]:
        groups = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        if not groups:
            return []
        folder = self.logs.absolute() / name
        bodies = [
            RunItems(
                name,
                function,
                tuple((i, items[i]) for i in group),
                folder / f"{uuid.uuid4().hex}.outcomes",
                self.settings.cpus_per_task,
                self.attempts,
            )
            for group in groups
        ]
        try:
            jobs = self._executor(name, folder).submit_array(bodies)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"engine: sbatch refuses {name}: {error}") from error
        return [_Task(job, body.path, group) for job, body, group in zip(jobs, bodies, groups, strict=True)]

    def _executor(self, name: str, folder: Path) -> Any:
        import submitit

        settings = self.settings
        executor = submitit.AutoExecutor(folder=folder, cluster=settings.cluster)
        executor.update_parameters(
            name=f"mc2-{name}",
            timeout_min=settings.time_minutes,
            mem_gb=settings.mem_gb,
            cpus_per_task=settings.cpus_per_task,
            slurm_signal_delay_s=SIGNAL_SECONDS,
            slurm_array_parallelism=self.workers or 1000,
            slurm_additional_parameters=dict(settings.extra),
            **({} if settings.partition is None else {"slurm_partition": settings.partition}),
        )
        return executor

    def _retry(
        self, task: _Task, items: Sequence[Item], deaths: Counter[int], waiting: deque[tuple[int, ...]]
    ) -> Iterator[tuple[int, Outcome]]:
        """Put the unfinished items of an ended task back, or give them up.

        Items are begun in their order, so the first ones were being worked on: each of them gets a task of its own. The others are innocent, unless the task did
        nothing at all.
        """
        left = [position for position in task.positions if position not in task.finished]
        begun = set(left[: self.settings.cpus_per_task])
        deaths.update(begun if task.finished else left)
        others = []
        for position in left:
            if deaths[position] >= self.attempts:
                how = f"its task died {deaths[position]} times; see {task.job.paths.stderr}"
                yield position, Outcome(error=ChildProcessError(f"{items[position]}: {how}"))
            elif position in begun:
                waiting.append((position,))
            else:
                others.append(position)
        if others:
            waiting.append(tuple(others))


def _queued() -> set[str] | None:
    """The ids of this user's tasks that wait or run, as "17_3"; None if SLURM does not answer."""
    answer = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%i"], capture_output=True, text=True, check=False)
    return set(answer.stdout.split()) if answer.returncode == 0 else None


# --- outcomes on the disk -----------------------------------------------------------------------------------------------

_LENGTH_BYTES = 8


def read_frames(path: Path, offset: int = 0) -> tuple[list[Any], int]:
    """The whole frames (length, pickle) of a file from an offset on, and where they end: a writer may be in the middle of the next one, or have died there."""
    frames = []
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while len(head := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
                body = file.read(int.from_bytes(head, "big"))
                if len(body) < int.from_bytes(head, "big"):
                    break
                frames.append(pickle.loads(body))
                offset += _LENGTH_BYTES + len(body)
    except FileNotFoundError:
        pass
    return frames, offset


@dataclass(frozen=True)
class RunItems:
    """The body of a task: (position, outcome) of each item goes to the file as it is done. Run again, it goes on where it stopped: SLURM may requeue it."""

    name: str
    function: Callable[[Any], Any]
    items: tuple[tuple[int, Any], ...]
    path: Path
    workers: int
    attempts: int

    def __call__(self) -> None:
        frames, end = read_frames(self.path)
        finished = {position for position, _ in frames}
        todo = [(position, item) for position, item in self.items if position not in finished]
        with open(self.path, "ab") as file, closing(self._run(todo)) as outcomes:
            file.truncate(end)
            for index, outcome in outcomes:
                body = pickle.dumps((todo[index][0], outcome), pickle.HIGHEST_PROTOCOL)
                file.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
                file.flush()
                os.fsync(file.fileno())  # the driver may be on another machine

    def _run(self, todo: Sequence[tuple[int, Any]]) -> Generator[tuple[int, Outcome]]:
        pool = ProcessPool(self.workers, self.attempts)  # were it of one process: an item that kills it does not end the task
        return pool.run(self.name, self.function, [item for _, item in todo])


@dataclass
class _Task:
    """A submitted group of items, and what is known of it."""

    job: Any
    path: Path
    positions: tuple[int, ...]
    finished: set[int] = field(default_factory=set)
    offset: int = 0

    def new_outcomes(self) -> Iterator[tuple[int, Outcome]]:
        frames, self.offset = read_frames(self.path, self.offset)
        for position, outcome in frames:
            self.finished.add(position)
            yield position, outcome
