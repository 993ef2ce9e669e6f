"""What an engine is: it applies a function to shards and does nothing else (DESIGN decision 2). Stages are idempotent, so what failed is simply run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

Item = TypeVar("Item", str, Path)
Result = TypeVar("Result")


class Engine(Protocol):
    """Applies a picklable function to every item, in any order and anywhere, and returns the results in the order of the items.

    An item that fails does not stop the others. Errors: ValueError that names the failed items, after all others are done.
    """

    def map(self, name: str, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]: ...


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


def label(item: str | Path) -> str:
    return item.name if isinstance(item, Path) else item


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
