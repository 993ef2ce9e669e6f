"""Where a function is applied to shards: an engine maps, nothing else (DESIGN decision 2). Stages are idempotent, so what failed is simply run again."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

Item = TypeVar("Item", str, Path)
Result = TypeVar("Result")


class Engine(Protocol):
    """Applies a picklable function to every item, in any order and anywhere, and returns the results in the order of the items.

    An item that fails does not stop the others. Errors: ValueError that names the failed items, after all others are done.
    """

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]: ...


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
        with _progress_bar(name, len(items), self.progress) as advance, closing(run(function, items)) as futures:
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
            errors = {_label(item): failures[item] for item in items if item in failures}
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


class ShardErrors(ValueError):
    """Some items failed. `failures` has the error of each by name; the message names all and shows the first error."""

    def __init__(self, name: str, failures: dict[str, BaseException], total: int) -> None:
        self.failures = failures
        names = list(failures)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        first = failures[names[0]]
        text = str(first) if isinstance(first, ValueError | OSError) else f"{type(first).__name__}: {first}"
        super().__init__(
            f"{name}: {len(names)} of {total} failed ({shown}; the others are done); first error: {text}; mend that and run the same line again"
        )


def _label(item: str | Path) -> str:
    return item.name if isinstance(item, Path) else item


def _leave_interrupt_to_the_caller() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _progress_bar(name: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A function that advances the bar by one."""
    if not shown or not total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)
