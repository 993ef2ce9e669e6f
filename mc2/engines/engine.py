"""What an engine is: it applies a function to shards and does nothing else (DESIGN decision 2). Stages are idempotent, so what failed is simply run again."""

from __future__ import annotations

import pickle
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mc2.storage import DiskFullError

Item = TypeVar("Item", str, Path)
Result = TypeVar("Result")


class Engine(Protocol):
    """Applies a picklable function to every item, in any order and anywhere, and returns the results in the order of the items.

    An item that fails does not stop the others, unless the disk is full. An item whose process dies (killed, out of memory) is tried again a bounded number of
    times. Errors: ShardErrors with the names of the failed items, after all others are done.
    """

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]: ...


class ShardErrors(ValueError):
    """Some items failed. `failures` has the error of each by its path; the message names the first of them and shows the first error."""

    def __init__(self, name: str, failures: Mapping[str | Path, BaseException], total: int) -> None:
        self.failures = {str(item): error for item, error in failures.items()}
        names = [label(item) for item in failures]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        first = next(iter(failures.values()))
        text = str(first) if isinstance(first, ValueError | OSError) else f"{type(first).__name__}: {first}"
        super().__init__(
            f"{name}: {len(names)} of {total} failed ({shown}; the others are done); first error: {text}; mend that and run the same line again"
        )


def label(item: str | Path) -> str:
    return item.name if isinstance(item, Path) else item


# --- one item -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of an item: its result, or its error."""

    result: Any = None
    error: BaseException | None = None


def attempt(call: Callable[[], Any]) -> Outcome:
    """The outcome of a call; an error carries its trace as a note, because it may have to travel."""
    try:
        return Outcome(call())
    except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to this item alone)
        error.add_note("".join(traceback.format_exception(error)))
        return Outcome(error=error)


def encoded(outcome: Outcome) -> bytes:
    """The outcome in a form that other processes can read; what cannot be pickled is an error."""
    try:
        body = pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
        if outcome.error is not None:
            pickle.loads(body)  # many classes of errors can be written but not read
    except Exception as error:  # noqa: BLE001  (raised by anybody's __reduce__)
        found = error if outcome.error is None else outcome.error
        return pickle.dumps(Outcome(error=RuntimeError(f"{type(found).__name__}: {found}")))
    return body


# --- all items ----------------------------------------------------------------------------------------------------------


class Schedule:
    """Which item runs next, by position. One whose process died is tried again after the others; the last time alone, so that nobody else's memory kills it."""

    def __init__(self, name: str, items: Sequence[str | Path], attempts: int) -> None:
        self._name, self._items, self._attempts = name, items, attempts
        self._waiting, self._alone = deque(range(len(items))), deque[int]()
        self._deaths = Counter[int]()

    def next(self, running: int) -> int | None:
        """The position to start beside `running` others; None if none may start now."""
        if self._waiting:
            return self._waiting.popleft()
        return self._alone.popleft() if self._alone and not running else None

    def died(self, position: int, how: str) -> Outcome | None:
        """The outcome of an item whose process died once too often; None if it will be tried again."""
        self._deaths[position] += 1
        if self._deaths[position] >= self._attempts:
            return Outcome(error=ChildProcessError(f"{self._items[position]}: its worker died {self._deaths[position]} times ({how})"))
        print(f"{self._name}: a worker died at {label(self._items[position])} ({how}); it is tried again", file=sys.stderr)
        (self._alone if self._deaths[position] == self._attempts - 1 else self._waiting).append(position)
        return None


def gather(name: str, items: Sequence[Item], outcomes: Generator[tuple[int, Outcome]], progress: bool) -> list[Any]:
    """The results in the order of the items, from (position, outcome) in any order. However it ends, SIGTERM included, `outcomes` is closed.

    Errors: ShardErrors at the end; DiskFullError at once, for all others would fail too.
    """
    results, failures = dict[int, Any](), dict[int, BaseException]()
    with _terminated_as_exit(), progress_bar(name, len(items), progress) as advance, closing(outcomes):
        for position, outcome in outcomes:
            if isinstance(outcome.error, DiskFullError):
                raise outcome.error
            if outcome.error is None:
                results[position] = outcome.result
            else:
                failures[position] = outcome.error
            advance()
    if failures:
        errors: dict[str | Path, BaseException] = {items[position]: failures[position] for position in sorted(failures)}
        raise ShardErrors(name, errors, len(items)) from next(iter(errors.values()))
    return [results[position] for position in range(len(items))]


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the caller (exit status 143) instead of killing it where it stands, so that workers are stopped and temporary files removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_on_signal(number: int, _frame: object) -> None:
    sys.exit(128 + number)


@contextmanager
def progress_bar(name: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
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
