"""The default engine: processes on this machine.

A pool of its own and not concurrent.futures', because there one dead worker breaks the whole pool and nobody knows which item it was at. Here every worker has
its own pipe and one item at a time: who dies is known, nobody else notices, and no lock can be left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from mc2.engines.engine import Item, Outcome, Result, Schedule, attempt, encoded, exit_on_signal, gather

STOP_SECONDS = 3.0  # until a worker that does not stop is killed


class LocalEngine:
    """Processes on this machine: one per core by default, none besides the caller's for `workers=1`. Shows a progress bar with the time left.

    An item whose process dies is tried `attempts` times; with `workers=1` it would take the caller with it.
    """

    def __init__(self, workers: int | None = None, progress: bool = True, attempts: int = 3) -> None:
        self.workers = workers if workers is not None else os.cpu_count() or 1
        if self.workers < 1:
            raise ValueError(f"engine: found {workers} workers, need at least 1")
        if attempts < 1:
            raise ValueError(f"engine: found {attempts} attempts, need at least 1")
        self.progress = progress
        self._pool = ProcessPool(self.workers, attempts)

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        outcomes = _run_here(function, items) if self.workers == 1 else self._pool.run(name, function, items)
        return gather(name, items, outcomes, self.progress)


def _run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[tuple[int, Outcome]]:
    for position, item in enumerate(items):
        yield position, attempt(partial(function, item))


class ProcessPool:
    """At most `size` workers, started when they are needed and kept from one run to the next, with what they have loaded."""

    def __init__(self, size: int, attempts: int) -> None:
        self.size, self.attempts = size, attempts
        self._idle: list[_Worker] = []

    def run(self, name: str, function: Callable[[Item], Any], items: Sequence[Item]) -> Generator[tuple[int, Outcome]]:
        """(position, outcome) of every item, as they are done. Closed early, it stops the workers."""
        schedule = Schedule(name, items, self.attempts)
        busy: dict[Any, tuple[_Worker, int]] = {}
        try:
            while True:
                while len(busy) < self.size and (position := schedule.next(len(busy))) is not None:
                    worker = self._start(function, items[position])
                    busy[worker.pipe] = worker, position
                if not busy:
                    return
                for pipe in wait(list(busy)):
                    worker, position = busy.pop(pipe)
                    outcome = worker.outcome() or schedule.died(position, worker.how_it_died())
                    if worker.alive:
                        self._idle.append(worker)
                    if outcome is not None:
                        yield position, outcome
        except BaseException:  # Ctrl-C, SIGTERM, or closed before its end
            stop([*self._idle, *(worker for worker, _ in busy.values())])
            self._idle = []
            raise

    def _start(self, function: Callable[[Item], Any], item: Item) -> _Worker:
        """A worker with this item: an idle one, or a new one if there is none or it died in its sleep."""
        while self._idle:
            worker = self._idle.pop()
            if worker.give(function, item):
                return worker
        worker = _Worker()
        worker.give(function, item)
        return worker


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )  # fork would copy locks that the caller's threads hold
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.alive = True

    def give(self, function: Callable[[Item], Any], item: Item) -> bool:
        """False if the process is not there any more."""
        try:
            self.pipe.send_bytes(pickle.dumps((function, item)))
        except OSError:
            self.alive = False
        return self.alive

    def outcome(self) -> Outcome | None:
        """What the process sends; None if it dies instead, were it in the middle of a message."""
        try:
            outcome: Outcome = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.alive = False
            return None
        return outcome

    def how_it_died(self) -> str:
        self.process.join(STOP_SECONDS)
        code = self.process.exitcode or 0
        return f"{signal.Signals(-code).name}: killed, or out of memory?" if code < 0 else f"exit status {code}"


def stop(workers: Sequence[_Worker]) -> None:
    """End processes: they are asked to clean up, and killed if they do not."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(STOP_SECONDS)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


# --- in the worker ------------------------------------------------------------------------------------------------------


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's
    signal.signal(signal.SIGTERM, exit_on_signal)
    threading.Thread(target=_die_with_the_caller, daemon=True).start()
    while True:
        try:
            task = pipe.recv_bytes()
        except (EOFError, OSError):
            return  # the engine is gone
        pipe.send_bytes(encoded(attempt(partial(_call, task))))


def _call(task: bytes) -> Any:
    function, item = pickle.loads(task)
    return function(item)


def _die_with_the_caller() -> None:
    """A caller that was killed with -9 leaves no worker behind, whatever the worker is doing."""
    caller = multiprocessing.parent_process()
    assert caller is not None
    wait([caller.sentinel])
    os._exit(1)
