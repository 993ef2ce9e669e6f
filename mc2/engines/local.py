"""The default engine: processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

from mc2.engines.engine import Item, Result, ShardErrors, label, progress_bar


class LocalEngine:
    """Processes on this machine: one per core by default, none besides the caller's for `workers=1`. Shows a progress bar with the time left."""

    def __init__(self, workers: int | None = None, progress: bool = True) -> None:
        self.workers = workers if workers is not None else os.cpu_count() or 1
        self.progress = progress
        self._pool: ProcessPoolExecutor | None = None  # kept from one map to the next, with what the workers have loaded
        if self.workers < 1:
            raise ValueError(f"engine: found {workers} workers, need at least 1")

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        results: dict[Item, Result] = {}
        failures: dict[Item, BaseException] = {}
        run = self._run_here if min(self.workers, len(items)) <= 1 else self._run_in_processes
        with progress_bar(name, len(items), self.progress) as advance, closing(run(function, items)) as futures:
            for item, future in futures:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise ValueError(
                        f"{name}: a worker process died (killed, or out of memory?) after {len(results)} of {len(items)}; run the same line again, with fewer "
                        "workers if memory is short (finished work is kept)"
                    ) from error
                if error is None:
                    results[item] = future.result()
                else:
                    failures[item] = error
                advance()
        if failures:
            errors = {label(item): failures[item] for item in items if item in failures}
            raise ShardErrors(name, errors, len(items)) from next(iter(errors.values()))
        return [results[item] for item in items]

    def _run_here(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[tuple[Item, Future[Result]]]:
        for item in items:
            future: Future[Result] = Future()
            try:
                future.set_result(function(item))
            except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to this item alone)
                future.set_exception(error)
            yield item, future

    def _run_in_processes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Generator[tuple[Item, Future[Result]]]:
        pool = self._pool = self._pool or _process_pool(self.workers)
        item_of: dict[Future[Result], Item] = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(item_of):
                yield item_of[future], future
        except BaseException:  # Ctrl-C, or a worker that died
            pool.shutdown(cancel_futures=True)
            self._pool = None
            raise


def _process_pool(workers: int) -> ProcessPoolExecutor:
    method = (
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )  # fork would copy locks that the caller's threads hold
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_leave_interrupt_to_the_caller)


def _leave_interrupt_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
